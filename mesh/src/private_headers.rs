//! Headers that the parts of Lastro speak with each other: all of `x-lastro-…`, but for the public ones. They are taken from, and given to, who
//! proved to be one of them; a listener takes them off everybody else's requests and off the answers to everybody else.

use http::HeaderMap;

const PREFIX: &str = "x-lastro-";
/// How fresh a read has to be, and how fresh a write was: for every client.
const PUBLIC: [&str; 1] = ["x-lastro-freshness"];

/// Takes them off.
pub fn remove(headers: &mut HeaderMap) {
    let is_private = |name: &str| name.starts_with(PREFIX) && !PUBLIC.contains(&name);
    // Usually there is none, and looking costs next to nothing.
    while let Some(name) = headers.keys().find(|name| is_private(name.as_str())).cloned() {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_public_passes() {
        let names = ["x-lastro-patience", "x-lastro-heartbeat", "x-lastro-anything-later", "x-lastro-freshness", "x-forwarded-for", "authorization"];
        let mut headers: HeaderMap = names.iter().map(|name| (name.parse().expect("a name"), http::HeaderValue::from_static("1"))).collect();
        headers.append("x-lastro-patience", http::HeaderValue::from_static("2"));
        remove(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(http::HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "x-forwarded-for", "x-lastro-freshness"]);
    }
}
