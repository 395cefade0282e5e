//! Which methods a path takes: for 405 with `Allow`, and to tell it from 404.

use lastro_proto::methods::METHODS;

/// The methods of the routes that this path fits, or none. A name that a route spells out is that route's alone: `/users/me` is no id.
pub fn allowed(path: &str) -> Vec<&'static str> {
    let fitting = |template: &str| !template.is_empty() && fits(template, path);
    let spelled_out = METHODS.iter().any(|method| method.http_path == path);
    let routes = METHODS.iter().filter(|method| if spelled_out { method.http_path == path } else { fitting(method.http_path) });
    let mut allowed: Vec<&str> = routes.map(|method| method.http_method).collect();
    if allowed.contains(&"GET") {
        allowed.push("HEAD");
    }
    allowed.sort_unstable();
    allowed.dedup();
    allowed
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
