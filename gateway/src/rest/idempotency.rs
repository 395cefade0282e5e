//! The idempotency key, wherever something is created: in the request, as `externalId`, or in the header `Idempotency-Key`.

use http::HeaderMap;
use lastro_mesh::status::Problem;
use lastro_proto::reasons::IDEMPOTENCY_KEY_CONFLICT;
use rest_over_grpc::handling;

use super::IDEMPOTENCY_KEY;
use crate::problem;

/// Puts the header's key into the request; both may be given only if they say the same. Whether one of them is needed is the service's to say,
/// after it knows who calls.
pub fn apply(external_id: &mut String, headers: &HeaderMap) -> Result<(), handling::Status> {
    read(external_id, headers).map_err(|problem| problem::pack(&problem))
}

fn read(external_id: &mut String, headers: &HeaderMap) -> Result<(), Problem> {
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

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_key_may_come_in_either_place_but_not_differ() {
        let keyed = |header: Option<&'static str>, body: &str| {
            let headers: HeaderMap = header.map(|value| (IDEMPOTENCY_KEY, HeaderValue::from_static(value))).into_iter().collect();
            let mut external_id = body.to_owned();
            read(&mut external_id, &headers).map(|()| external_id).map_err(|problem| problem.reason.name)
        };
        assert_eq!(keyed(Some("k"), ""), Ok("k".to_owned()));
        assert_eq!(keyed(Some("\"k\""), "k"), Ok("k".to_owned()));
        assert_eq!(keyed(None, "k"), Ok("k".to_owned()));
        assert_eq!(keyed(Some("k"), "l"), Err("IDEMPOTENCY_KEY_CONFLICT"));
        assert_eq!(keyed(Some(""), ""), Err("INVALID_ARGUMENT"));
        assert_eq!(keyed(None, ""), Ok(String::new()));
    }
}
