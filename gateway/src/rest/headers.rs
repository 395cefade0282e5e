//! Headers that mean something here stand once. Of two with different values, which one counts would depend on who reads them.

use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};
use lastro_mesh::freshness::{FRESHNESS_HEADER, MUST_BE};
use lastro_mesh::status::Problem;
use lastro_proto::reasons::IDEMPOTENCY_KEY_CONFLICT;
use tonic::metadata::AsciiMetadataValue;

use super::IDEMPOTENCY_KEY;

/// The event that a client of a stream had last (WHATWG HTML, "Server-sent events").
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

const SINGLE: [(HeaderName, &str); 5] = [
    (AUTHORIZATION, "Authorization"),
    (IDEMPOTENCY_KEY, "Idempotency-Key"),
    (LAST_EVENT_ID, "Last-Event-ID"),
    (CONTENT_TYPE, "Content-Type"),
    (CONTENT_ENCODING, "Content-Encoding"),
];

/// It goes on to the services in a header, and a header that they do not take would make them look broken. Ours have about 700.
const TOKEN_BYTES_MAX: usize = 4096;

/// The same holds for these, together with the token.
const FRESHNESS_BYTES_MAX: usize = 2048;

/// The freshness tokens of a request, as they go on to a service that reads what others write.
pub fn freshness(headers: &HeaderMap) -> Result<Vec<AsciiMetadataValue>, Problem> {
    let values = || headers.get_all(FRESHNESS_HEADER).iter().filter(|value| !value.is_empty());
    if values().map(HeaderValue::len).sum::<usize>() > FRESHNESS_BYTES_MAX {
        let rule = format!("has at most {FRESHNESS_BYTES_MAX} bytes in all; send only the tokens of your last writes");
        return Err(Problem::field(FRESHNESS_HEADER, rule));
    }
    // What is no ASCII is no token.
    let value = |value: &HeaderValue| value.to_str().ok().and_then(|value| value.parse().ok());
    let malformed = || Problem::field(FRESHNESS_HEADER, MUST_BE);
    values().map(|one| value(one).ok_or_else(malformed)).collect()
}

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

/// Puts the key of the header `Idempotency-Key` into the request; both may be given only if they say the same. Whether one of them is needed is the
/// service's to say, after it knows who calls.
pub fn apply_idempotency_key(external_id: &mut String, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(header) = headers.get(IDEMPOTENCY_KEY) else { return Ok(()) };
    let unreadable = || Problem::field("Idempotency-Key", "must be 1 to 128 visible ASCII characters");
    // The draft of the header has a quoted string (RFC 8941); a bare one is what everybody sends.
    let key = header.to_str().map_err(|_| unreadable())?.trim();
    let key = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key);
    if key.is_empty() {
        return Err(unreadable());
    }
    if !external_id.is_empty() && external_id != key {
        let fields = Problem::field("external_id", "differs from the header Idempotency-Key; send one of them, or the same in both").fields;
        return Err(Problem { fields, ..Problem::new(&IDEMPOTENCY_KEY_CONFLICT, "Idempotency-Key and externalId differ") });
    }
    key.clone_into(external_id);
    Ok(())
}

/// Puts the id of the header `Last-Event-ID` into the request; both may be given only if they say the same. An empty one is none.
pub fn apply_last_event_id(last_event_id: &mut Option<String>, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(header) = headers.get(LAST_EVENT_ID) else { return Ok(()) };
    let id = header.to_str().map_err(|_| Problem::field("Last-Event-ID", "must be visible ASCII characters"))?.trim();
    if id.is_empty() {
        return Ok(());
    }
    if last_event_id.as_ref().is_some_and(|given| given != id) {
        return Err(Problem::field("last_event_id", "differs from the header Last-Event-ID; send one of them, or the same in both"));
    }
    *last_event_id = Some(id.to_owned());
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
    #[test]
    fn the_key_may_come_in_either_place_but_not_differ() {
        let keyed = |header: Option<&'static str>, body: &str| {
            let headers: HeaderMap = header.map(|value| (IDEMPOTENCY_KEY, HeaderValue::from_static(value))).into_iter().collect();
            let mut external_id = body.to_owned();
            apply_idempotency_key(&mut external_id, &headers).map(|()| external_id).map_err(|problem| problem.reason.name)
        };
        assert_eq!(keyed(Some("k"), ""), Ok("k".to_owned()));
        assert_eq!(keyed(Some("\"k\""), "k"), Ok("k".to_owned()));
        assert_eq!(keyed(None, "k"), Ok("k".to_owned()));
        assert_eq!(keyed(Some("k"), "l"), Err("IDEMPOTENCY_KEY_CONFLICT"));
        assert_eq!(keyed(Some(""), ""), Err("INVALID_ARGUMENT"));
        assert_eq!(keyed(None, ""), Ok(String::new()));
    }

    #[test]
    fn the_last_event_may_be_named_in_either_place_but_not_differ() {
        let named = |header: &'static str, query: &str| {
            let headers: HeaderMap = [(LAST_EVENT_ID, HeaderValue::from_static(header))].into_iter().collect();
            let mut id = Some(query.to_owned()).filter(|query| !query.is_empty());
            apply_last_event_id(&mut id, &headers).map(|()| id).map_err(|problem| problem.fields[0].field.clone())
        };
        assert_eq!(named("a", ""), Ok(Some("a".to_owned())));
        assert_eq!(named("", "a"), Ok(Some("a".to_owned())));
        assert_eq!(named("a", "a"), Ok(Some("a".to_owned())));
        assert_eq!(named("a", "b"), Err("last_event_id".to_owned()));
    }
}
