//! A method that answers once: the status and the headers of the answer are those of its annotation.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use lastro_mesh::call::Call;
use lastro_mesh::codec::ValidatingCodec;
use lastro_mesh::freshness::FRESHNESS_HEADER;
use lastro_mesh::outbound::Outbound;
use lastro_mesh::status::{INTERNAL, Problem};
use lastro_proto::methods::Success;
use lastro_proto::reasons::NOT_FRESH_YET;
use lastro_proto::rest_methods::{Progress, RestMethod};
use tonic::client::Grpc;
use tonic::metadata::AsciiMetadataValue;

use super::{MethodCall, TIMEOUT, csv, headers, request_to};
use crate::answer::{self, Body};
use crate::problem;

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// nginx takes the request, which it keeps, to this place of its configuration, and this answer goes no further. It cannot know before that
/// a call is to wait for longer than it would: the wait may stand in the body.
/// <https://nginx.org/en/docs/http/ngx_http_proxy_module.html#proxy_ignore_headers>
const REDIRECT: HeaderName = HeaderName::from_static("x-accel-redirect");
const LONG_WAIT_PLACE: HeaderValue = HeaderValue::from_static("@long_wait");
/// The longest wait that a service grants; it refuses a longer one.
const WAIT_MAX_S: u64 = 30;

/// Makes the call, and answers.
pub async fn answer<M: RestMethod>(channel: Outbound, input: MethodCall) -> Result<Response<Body>, Problem> {
    if let Some(table) = M::METHOD.csv.filter(|_| csv::is_wanted(&input.headers)) {
        return csv::answer::<M>(channel, input, table).await;
    }
    let mut request: M::Request = input.read::<M>()?;
    let wait = Wait::read::<M>(&mut request, &input.headers);
    let waits_s = if M::METHOD.waits_outside { wait.seconds.max(TIMEOUT.as_secs()) } else { wait.seconds };
    if input.patience().is_some_and(|patience| patience < Duration::from_secs(waits_s + 1)) {
        let mut elsewhere = answer::empty(StatusCode::OK);
        elsewhere.headers_mut().insert(REDIRECT, LONG_WAIT_PLACE);
        return Ok(elsewhere);
    }
    let mut call = input.call(TIMEOUT + Duration::from_secs(wait.seconds));
    let freshness = freshness_of::<M>(&input.headers)?;
    call.waits = wait.waits || M::METHOD.waits_outside || !freshness.is_empty();
    if call.waits {
        input.slot.release();
    }
    let validates_only = M::validates_only(&request);
    let (metadata, answer, _) = call_once::<M>(channel, &call, request, freshness).await?.into_parts();

    let status = if validates_only { StatusCode::OK } else { status_of::<M>(&answer, wait.waits) };
    let mut response = if status == StatusCode::NO_CONTENT {
        answer::empty(status)
    } else {
        let json = serde_json::to_vec(&answer).map_err(|error| {
            tracing::error!(%error, method = M::METHOD.path, "an answer cannot be written as JSON");
            Problem::new(&INTERNAL, "internal error")
        })?;
        let mut response = answer::full(Response::new(Bytes::from(json)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    };
    if M::METHOD.csv.is_some() {
        csv::set_vary(response.headers_mut());
    }
    for value in metadata.into_headers().get_all(FRESHNESS_HEADER) {
        response.headers_mut().append(FRESHNESS_HEADER, value.clone());
    }
    if let Some(location) = M::location(&answer).filter(|_| !validates_only).and_then(|location| HeaderValue::from_str(&location).ok()) {
        response.headers_mut().insert(LOCATION, location);
    }
    if let Some(applied) = wait.preferred.and_then(|seconds| HeaderValue::from_str(&format!("wait={seconds}")).ok()) {
        response.headers_mut().insert(PREFERENCE_APPLIED, applied);
    }
    Ok(response)
}

/// What the header of freshness says. Only a method that reads what others write waits for it: to all others the header says nothing.
pub fn freshness_of<M: RestMethod>(headers: &HeaderMap) -> Result<Vec<AsciiMetadataValue>, Problem> {
    if M::METHOD.reasons.contains(&NOT_FRESH_YET.name) { headers::freshness(headers) } else { Ok(Vec::new()) }
}

/// Makes the call.
pub async fn call_once<M: RestMethod>(
    channel: Outbound,
    call: &Call,
    request: M::Request,
    freshness: Vec<AsciiMetadataValue>,
) -> Result<tonic::Response<M::Answer>, Problem> {
    let codec = ValidatingCodec::<M::Request, M::Answer>::default();
    let mut request = request_to(call, request);
    for token in freshness {
        request.metadata_mut().append(FRESHNESS_HEADER, token);
    }
    let answered = Grpc::new(channel).unary(request, PathAndQuery::from_static(M::METHOD.path), codec).await;
    answered.map_err(|status| problem::from_status(&status))
}

fn status_of<M: RestMethod>(answer: &M::Answer, waits: bool) -> StatusCode {
    match (M::METHOD.success, M::is_replayed(answer)) {
        (Success::Ok, _) | (Success::Created | Success::Taken, true) => StatusCode::OK,
        (Success::Created, false) => StatusCode::CREATED,
        (Success::Taken, false) => StatusCode::ACCEPTED,
        (Success::NoContent, _) => StatusCode::NO_CONTENT,
        (Success::Accepted, is_replayed) => status_of_accepted(M::progress(answer), is_replayed, waits),
    }
}

/// 202 as long as the outcome is not known or was not waited for; 201 with it; 200 for a repetition that has it for good.
fn status_of_accepted(progress: Progress, is_replayed: bool, waits: bool) -> StatusCode {
    match (progress, is_replayed) {
        (Progress::Final, true) => StatusCode::OK,
        (Progress::Decided | Progress::Final, false) if waits => StatusCode::CREATED,
        _ => StatusCode::ACCEPTED,
    }
}

/// For how long the call waits for its outcome.
#[derive(Default)]
struct Wait {
    waits: bool,
    /// Whole ones, up to what a service grants.
    seconds: u64,
    /// What the header asked for.
    preferred: Option<i64>,
}

impl Wait {
    /// The header, which beats the body, is put into the request. A wait out of range is the service's to refuse.
    fn read<M: RestMethod>(request: &mut M::Request, headers: &HeaderMap) -> Self {
        let Some(wait) = M::wait(request) else { return Self::default() };
        let preferred = preferred_wait(headers);
        if let Some(seconds) = preferred {
            *wait = Some(pbjson_types::Duration { seconds, nanos: 0 });
        }
        let seconds = wait.as_ref().and_then(|wait| u64::try_from(wait.seconds).ok()).unwrap_or_default().min(WAIT_MAX_S);
        let waits = wait.as_ref().is_some_and(|wait| wait.seconds > 0 || wait.nanos > 0);
        Self { waits, seconds, preferred }
    }
}

/// `Prefer: wait=5` (RFC 7240), in seconds. What is not understood is ignored, as the RFC says.
fn preferred_wait(headers: &HeaderMap) -> Option<i64> {
    let lists = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split([',', ';'])).find_map(|preference| {
        let (name, value) = preference.split_once('=')?;
        let digits = value.trim().trim_matches('"');
        let is_wait = name.trim().eq_ignore_ascii_case("wait") && !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
        // A number that is too large is understood, and refused by the service as what is too long.
        is_wait.then(|| digits.parse().unwrap_or(i64::MAX))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn reads_the_preference_to_wait() {
        for (value, wait) in [
            ("wait=5", Some(5)),
            ("respond-async, wait=10", Some(10)),
            ("Wait = \"7\"", Some(7)),
            ("wait=99999999999999999999", Some(i64::MAX)),
            ("wait=-1", None),
            ("wait", None),
            ("wait=x", None),
            ("other=1", None),
        ] {
            assert_eq!(preferred_wait(&headers(&[(PREFER, value)])), wait, "{value}");
        }
    }

    #[test]
    fn the_status_tells_how_far_it_came() {
        for (progress, is_replayed, waits, status) in [
            (Progress::Final, false, false, 202),
            (Progress::Final, false, true, 201),
            (Progress::Decided, false, true, 201),
            (Progress::Unspecified, false, true, 202),
            (Progress::Final, true, false, 200),
            (Progress::Unspecified, true, true, 202),
            (Progress::Decided, true, true, 202),
        ] {
            assert_eq!(status_of_accepted(progress, is_replayed, waits).as_u16(), status, "{progress:?} {is_replayed} {waits}");
        }
    }
}
