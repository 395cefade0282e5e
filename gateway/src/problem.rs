//! Errors over REST: RFC 9457 `application/problem+json` with `type, title, status, detail, reason, correlationId, errors[]`, and `metadata` where
//! a program is told more.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use lastro_mesh::call::CorrelationId;
use lastro_mesh::status::{self, Problem, Reason};
use lastro_proto::json::camel_case;
use lastro_proto::reasons;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::{FieldViolation, StatusExt as _};

/// The body of a problem, which is also the last event of a stream that it ends.
pub fn json(problem: &Problem, correlation_id: &CorrelationId) -> Value {
    let reason = problem.reason;
    let fields: Vec<FieldViolation> = problem.fields.iter().map(|one| FieldViolation::new(camel_case(&one.field), &one.description)).collect();
    let errors: Vec<Value> = fields.iter().map(|one| json!({ "field": one.field, "description": one.description })).collect();
    // A detail that only names the fields names them as JSON does.
    let detail = if problem.detail == status::detail_of(&problem.fields) { &status::detail_of(&fields) } else { &problem.detail };
    let mut body = json!({
        "type": format!("https://lastro.dev/problems/{}", reason.name.to_lowercase().replace('_', "-")),
        "title": reason.title,
        "status": reason.http_status,
        "detail": detail,
        "reason": reason.name,
        "correlationId": correlation_id.as_str(),
        "errors": errors,
    });
    if !problem.metadata.is_empty() {
        body["metadata"] = json!(problem.metadata);
    }
    body
}

/// As problem+json.
pub fn response(problem: &Problem, correlation_id: &CorrelationId) -> Response<Bytes> {
    let reason = problem.reason;
    let mut response = Response::new(Bytes::from(json(problem, correlation_id).to_string()));
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
    let metadata = named.and(details.error_info()).map(|info| info.metadata.clone());
    Problem {
        reason: named.unwrap_or_else(|| reason_of(status.code())),
        // What did not come from our own services may say what nobody outside should read.
        detail: if named.is_some() { status.message().to_owned() } else { reason_of(status.code()).title.to_owned() },
        fields: details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default(),
        retry_after: details.retry_info().and_then(|info| info.retry_delay),
        dependency: None,
        // The first of the fields stands there as well, and is among the errors.
        metadata: metadata.into_iter().flatten().filter(|(name, _)| name != "field").collect(),
    }
}

fn reason_of(code: Code) -> &'static Reason {
    status::ALL.iter().copied().find(|reason| reason.code == code).unwrap_or(&status::INTERNAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_is_not_ours_says_nothing_of_what_is_inside() {
        let problem = from_status(&Status::internal("SELECT * FROM secrets"));
        assert_eq!((problem.reason, problem.detail.as_str()), (&status::INTERNAL, "Internal error"));
    }

    #[test]
    fn fields_are_named_as_in_json() {
        let body = |problem: &Problem| serde_json::from_slice::<Value>(response(problem, &CorrelationId::default()).body()).expect("JSON");
        let problem = body(&Problem::field("page_token", "must be one"));
        assert_eq!((&problem["detail"], &problem["errors"][0]["field"]), (&json!("pageToken must be one"), &json!("pageToken")));
        assert_eq!(body(&Problem { detail: "a_b".to_owned(), ..Problem::field("page_token", "x") })["detail"], json!("a_b"));
    }
}
