//! Which methods a path takes: for 405 with `Allow`, and to tell it from 404.

use lastro_proto::methods::{METHODS, Method};

/// The methods of the routes that this path fits, or none.
pub fn allowed(path: &str) -> Vec<&'static str> {
    let mut allowed: Vec<&str> = fitting(path).map(|method| method.http_method).collect();
    if allowed.contains(&"GET") {
        allowed.push("HEAD");
    }
    allowed.sort_unstable();
    allowed.dedup();
    allowed
}

/// The route of a request.
pub fn find(method: &str, path: &str) -> Option<&'static Method> {
    fitting(path).find(|one| one.http_method == method)
}

/// A name that a route spells out is that route's alone: `/users/me` is no id.
fn fitting(path: &str) -> impl Iterator<Item = &'static Method> {
    let spelled_out = METHODS.iter().any(|method| method.http_path == path);
    METHODS
        .iter()
        .filter(move |method| !method.http_path.is_empty() && if spelled_out { method.http_path == path } else { fits(method.http_path, path) })
}

fn fits(template: &str, path: &str) -> bool {
    let (template, path): (Vec<&str>, Vec<&str>) = (template.split('/').collect(), path.split('/').collect());
    template.len() == path.len()
        && template.iter().zip(&path).all(|(part, given)| {
            // `{id}` takes any one segment, `{id}:verb` one that ends in `:verb`.
            match part.split_once('}') {
                Some((variable, verb)) if variable.starts_with('{') => {
                    given.len() > verb.len() && given.ends_with(verb) && (!verb.is_empty() || !given.contains(':'))
                }
                _ => part == given,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_a_path_takes() {
        assert_eq!(allowed("/api/v1/users"), ["GET", "HEAD", "POST"]);
        assert_eq!(allowed("/api/v1/users/0190b3a2"), ["DELETE", "GET", "HEAD", "PATCH"]);
        assert_eq!(allowed("/api/v1/users/me"), ["GET", "HEAD"]);
        assert_eq!(allowed("/api/v1/users/me:changePassword"), ["POST"]);
        assert_eq!(allowed("/api/v1/nothing"), [""; 0]);
        assert_eq!(allowed("/api/v1/users/"), [""; 0]);
    }
}
