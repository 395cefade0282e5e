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

/// A path in its usual form (RFC 3986, 6.2.2.2): letters, digits and `-._~` stand for themselves, escaped or not. None where it is in it already.
pub fn usual(path: &str) -> Option<String> {
    let mut usual = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        usual.push_str(&rest[..at]);
        let escape = rest[at..].get(..3);
        let byte = escape.and_then(|escape| u8::from_str_radix(escape.get(1..)?, 16).ok());
        let plain = byte.filter(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(byte));
        match (plain, escape) {
            (Some(byte), Some(escape)) => {
                usual.push(char::from(byte));
                rest = &rest[at + escape.len()..];
            }
            _ => {
                usual.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    usual.push_str(rest);
    (usual != path).then_some(usual)
}

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
    fn what_is_escaped_without_need_is_the_same_path() {
        for (given, meant) in [
            ("/api/v1/users/%6d%65", Some("/api/v1/users/me")),
            ("/%61pi%2Fv1/%2D%2e%5f%7E", Some("/api%2Fv1/-._~")),
            ("/a%20b%2F%zz%4", None),
            ("/%+1%é%C3%A9", None),
            ("/plain", None),
        ] {
            assert_eq!(usual(given).as_deref(), meant, "{given}");
        }
    }

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
