//! Headers that mean something here stand once. Of two with different values, which one counts would depend on who reads them.

use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName};
use lastro_mesh::status::Problem;

use crate::rest::IDEMPOTENCY_KEY;

const SINGLE: [(HeaderName, &str); 4] =
    [(AUTHORIZATION, "Authorization"), (IDEMPOTENCY_KEY, "Idempotency-Key"), (CONTENT_TYPE, "Content-Type"), (CONTENT_ENCODING, "Content-Encoding")];

/// It goes on to the services in a header, and a header that they do not take would make them look broken. Ours have about 700.
const TOKEN_BYTES_MAX: usize = 4096;

/// Refuses a header that is given more than once with different values.
pub fn check(headers: &HeaderMap) -> Result<(), Problem> {
    for (name, shown) in &SINGLE {
        if lastro_mesh::call::is_ambiguous(headers, name) {
            return Err(Problem::field(*shown, "is given more than once, with different values; send it once"));
        }
    }
    if headers.get(AUTHORIZATION).is_some_and(|token| token.len() > TOKEN_BYTES_MAX) {
        return Err(Problem::field("Authorization", format!("has at most {TOKEN_BYTES_MAX} bytes")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_header_says_one_thing() {
        let given =
            |values: &[&'static str]| -> HeaderMap { values.iter().map(|value| (IDEMPOTENCY_KEY, HeaderValue::from_static(value))).collect() };
        for (values, taken) in [(&[][..], true), (&["a"], true), (&["a", "a"], true), (&["a", "b"], false), (&["a", "a", "b"], false)] {
            assert_eq!(check(&given(values)).is_ok(), taken, "{values:?}");
        }
        assert_eq!(check(&given(&["a", "b"])).expect_err("two").fields[0].field, "Idempotency-Key");
    }
}
