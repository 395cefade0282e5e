//! Errors over REST: RFC 9457 `application/problem+json` with `type, title, status, detail, reason, correlationId, errors[]`.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use lastro_mesh::call::CorrelationId;
use lastro_mesh::status::{self, Problem, Reason};
use lastro_proto::reasons;
use rest_over_grpc::handling;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::{FieldViolation, StatusExt as _};

/// As problem+json.
pub fn response(problem: &Problem, correlation_id: &CorrelationId) -> Response<Bytes> {
    let reason = problem.reason;
    let fields: Vec<FieldViolation> = problem.fields.iter().map(|one| FieldViolation::new(camel_case(&one.field), &one.description)).collect();
    let errors: Vec<Value> = fields.iter().map(|one| json!({ "field": one.field, "description": one.description })).collect();
    // A detail that only names the fields names them as JSON does.
    let detail = if problem.detail == status::detail_of(&problem.fields) { &status::detail_of(&fields) } else { &problem.detail };
    let body = json!({
        "type": format!("https://lastro.dev/problems/{}", reason.name.to_lowercase().replace('_', "-")),
        "title": reason.title,
        "status": reason.http_status,
        "detail": detail,
        "reason": reason.name,
        "correlationId": correlation_id.as_str(),
        "errors": errors,
    });
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(reason.http_status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if let Some(after) = problem.retry_after {
        // Whole seconds, rounded up: earlier is too early.
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(after.as_secs() + u64::from(after.subsec_nanos() > 0)));
    }
    if reason.http_status == 401 {
        response.headers_mut().insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// A service's refusal.
pub fn from_status(status: &Status) -> Problem {
    let details = status.get_error_details();
    let named = details.error_info().filter(|info| info.domain == status::DOMAIN).and_then(|info| reasons::by_name(&info.reason));
    Problem {
        reason: named.unwrap_or_else(|| reason_of(status.code())),
        // What did not come from our own services may say what nobody outside should read.
        detail: if named.is_some() { status.message().to_owned() } else { reason_of(status.code()).title.to_owned() },
        fields: details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default(),
        retry_after: details.retry_info().and_then(|info| info.retry_delay),
        dependency: None,
    }
}

fn reason_of(code: Code) -> &'static Reason {
    status::ALL.iter().copied().find(|reason| reason.code == code).unwrap_or(&status::INTERNAL)
}

/// Packs a refusal into what the transcoder carries; [`unpack`] takes it out again.
pub fn pack(problem: &Problem) -> handling::Status {
    let fields: Vec<Value> = problem.fields.iter().map(|one| json!([one.field, one.description])).collect();
    let packed =
        json!({ "reason": problem.reason.name, "fields": fields, "retryAfterMs": problem.retry_after.map(|after| after.as_millis() as u64) });
    let code = handling::Code::from_i32(problem.reason.code as i32).unwrap_or(handling::Code::Unknown);
    handling::Status::new(code, problem.detail.clone()).with_detail(packed)
}

/// What [`pack`] packed, from the body that the transcoder made of it; None when the transcoder itself refused.
pub fn unpack(body: &[u8]) -> Result<Problem, String> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = find(&body, "message").and_then(Value::as_str).unwrap_or("the request cannot be read").to_owned();
    let packed = find(&body, "details").and_then(|details| details.get(0));
    let Some((packed, reason)) = packed.and_then(|packed| Some((packed, reasons::by_name(packed.get("reason")?.as_str()?)?))) else {
        return Err(message);
    };
    let pair = |pair: &Value| Some(FieldViolation::new(pair.get(0)?.as_str()?, pair.get(1)?.as_str()?));
    Ok(Problem {
        dependency: None,
        reason,
        detail: message,
        fields: packed["fields"].as_array().into_iter().flatten().filter_map(pair).collect(),
        retry_after: packed["retryAfterMs"].as_u64().map(Duration::from_millis),
    })
}

/// At the top, or under `error`.
fn find<'a>(body: &'a Value, key: &str) -> Option<&'a Value> {
    body.get(key).or_else(|| body.get("error")?.get(key))
}

/// `amount.currency_code` is `amount.currencyCode` in JSON; what stands in brackets is a client's own.
pub fn camel_case(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    let (mut upper, mut in_brackets) = (false, false);
    for character in path.chars() {
        in_brackets = (in_brackets || character == '[') && character != ']';
        match character {
            '_' if !in_brackets => upper = true,
            _ if upper => {
                text.extend(character.to_uppercase());
                upper = false;
            }
            _ => text.push(character),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked() {
        let problem = Problem::field("amount.currency_code", "must be upper case").retry_after(Duration::from_millis(1500));
        let body = rest_over_grpc::transcoding::HttpResponse::from_status(&pack(&problem)).into_body();
        let unpacked = unpack(&body).expect("a packed problem");
        assert_eq!((unpacked.reason, unpacked.detail, unpacked.retry_after), (problem.reason, problem.detail, problem.retry_after));
        assert_eq!(unpacked.fields[0].field, "amount.currency_code");
    }

    #[test]
    fn a_status_that_is_not_ours_says_nothing_of_what_is_inside() {
        let problem = from_status(&Status::internal("SELECT * FROM secrets"));
        assert_eq!((problem.reason, problem.detail.as_str()), (&status::INTERNAL, "Internal error"));
    }

    #[test]
    fn fields_are_named_as_in_json() {
        assert_eq!(camel_case("amount.currency_code"), "amount.currencyCode");
        assert_eq!(camel_case("metadata[\"a_b\"].next_one"), "metadata[\"a_b\"].nextOne");
        let body = |problem: &Problem| serde_json::from_slice::<Value>(response(problem, &CorrelationId::default()).body()).expect("JSON");
        let problem = body(&Problem::field("page_token", "must be one"));
        assert_eq!((&problem["detail"], &problem["errors"][0]["field"]), (&json!("pageToken must be one"), &json!("pageToken")));
        assert_eq!(body(&Problem { detail: "a_b".to_owned(), ..Problem::field("page_token", "x") })["detail"], json!("a_b"));
    }
}
