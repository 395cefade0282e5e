//! Which methods a path takes: for 405 with `Allow`, and to tell it from 404.

use std::sync::LazyLock;

use lastro_proto::methods::{METHODS, Method};

/// The method behind a route, and the route's path in its parts, taken apart once.
struct Route {
    method: &'static Method,
    parts: Vec<Part>,
}

enum Part {
    /// `users`, as it stands.
    Literal(&'static str),
    /// `{id}`, which is any one part, or `{id}:verb`, which is one that ends in `:verb`.
    Variable { verb: &'static str },
}

static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| {
    let with_path = METHODS.iter().filter(|method| !method.http_path.is_empty());
    with_path.map(|method| Route { method, parts: method.http_path.split('/').map(Part::of).collect() }).collect()
});

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
    let spelled_out = ROUTES.iter().any(|route| route.method.http_path == path);
    let given: Vec<&str> = path.split('/').collect();
    let fits = move |route: &&Route| if spelled_out { route.method.http_path == path } else { route.fits(&given) };
    ROUTES.iter().filter(fits).map(|route| route.method)
}

impl Route {
    fn fits(&self, given: &[&str]) -> bool {
        self.parts.len() == given.len() && self.parts.iter().zip(given).all(|(part, given)| part.fits(given))
    }
}

impl Part {
    fn of(text: &'static str) -> Self {
        match text.split_once('}') {
            Some((variable, verb)) if variable.starts_with('{') => Self::Variable { verb },
            _ => Self::Literal(text),
        }
    }

    fn fits(&self, given: &str) -> bool {
        match self {
            Self::Literal(text) => *text == given,
            Self::Variable { verb } => given.len() > verb.len() && given.ends_with(verb) && (!verb.is_empty() || !given.contains(':')),
        }
    }
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
