//! What every HTTP request passes: ids, limits, the body cap, routing, the transcoder, and the headers of the answer.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use hyper::body::{Body as _, Incoming};
use lastro_mesh::call::{CORRELATION_HEADER, CorrelationId, Slot};
use lastro_mesh::health::Health;
use lastro_mesh::inbound::client_address;
use lastro_mesh::logs::otlp;
use lastro_mesh::serve::{NotReceived, Peer, Received, Receiving};
use lastro_mesh::status::{BODY_TOO_LARGE, BODY_TOO_SLOW, INTERNAL, MALFORMED_MESSAGE, PERMISSION_DENIED, Problem, RATE_LIMITED};
use lastro_mesh::trace::{TRACEPARENT, TRACERESPONSE, TraceContext};
use lastro_proto::methods;
use lastro_proto::reasons::{METHOD_NOT_ALLOWED, NO_SUCH_ROUTE, UNSUPPORTED_MEDIA_TYPE};
use metrics::{Counter, Histogram, counter, histogram};
use rest_over_grpc::transcoding::{HttpResponse, Transcode as _, TranscodeResponse};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::limits::Limiter;
use crate::rest::{self, ADDRESS_HEADER, SLOT, STATUS_HEADER};
use crate::{Settings, body, docs, headers, openapi, problem, query, routes, words};

/// The gateway's one request handler.
pub struct Edge {
    api: rest::Api,
    settings: Settings,
    limiter: Limiter,
    /// Requests that are handled at once.
    slots: Arc<Semaphore>,
    openapi: Bytes,
    metrics: HttpMetrics,
}

/// Answers by the class of their status, and how long they took.
struct HttpMetrics {
    by_class: [Counter; 5],
    latency: Histogram,
}

impl HttpMetrics {
    fn new() -> Self {
        let by_class = ["1xx", "2xx", "3xx", "4xx", "5xx"].map(|class| counter!("lastro_http_total", "service" => crate::NAME, "status" => class));
        Self { by_class, latency: histogram!("lastro_http_duration_seconds", "service" => crate::NAME) }
    }

    fn record(&self, status: StatusCode, elapsed: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        self.by_class[class].increment(1);
        self.latency.record(elapsed);
    }
}

/// Headers of every answer. The reference at `/docs` brings its own content policy.
const SECURITY_HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000; includeSubDomains")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
];

impl Edge {
    pub fn new(settings: Settings) -> Self {
        Self {
            api: rest::api(&settings.customers, &settings.transactions),
            limiter: Limiter::new(settings.limits),
            slots: Arc::new(Semaphore::new(settings.concurrency_max)),
            openapi: Bytes::from(openapi::document().to_string()),
            metrics: HttpMetrics::new(),
            settings,
        }
    }

    /// The readiness of the process.
    pub fn health(&self) -> &Health {
        &self.settings.health
    }

    /// Callers that have been quiet no longer count.
    pub fn forget_quiet(&self) {
        self.limiter.forget_quiet();
    }

    /// Answers one request.
    pub async fn handle(&self, mut request: Request<Incoming>, peer: &Peer) -> Response<Bytes> {
        let (started, address) = (Instant::now(), client_address(peer, request.headers()));
        let correlation_id = CorrelationId::accept(request.headers()).unwrap_or_default();
        let received = TraceContext::of(request.headers());
        if let Some(usual) = routes::usual(request.uri().path()) {
            *request.uri_mut() = with_path(request.uri(), &usual);
        }
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let origin = request.headers().get(header::ORIGIN).cloned();

        let headers = request.headers_mut();
        headers.insert(CORRELATION_HEADER, correlation_id.to_header());
        headers.remove(STATUS_HEADER);
        if let Ok(value) = HeaderValue::from_str(&address.to_string()) {
            headers.insert(ADDRESS_HEADER, value);
        }

        let span = tracing::info_span!("http", service = crate::NAME, correlationId = correlation_id.as_str(), traceId = tracing::field::Empty, method = %method, path = path.as_str());
        let trace = otlp::join(&span, received);
        if !span.is_disabled() {
            span.record("traceId", format!("{:032x}", trace.trace_id).as_str());
        }
        request.headers_mut().insert(TRACEPARENT, trace.to_header());
        let (head, mut body) = request.into_parts();
        let outcome = async {
            let outcome = self.route(Request::from_parts(head, &mut body), peer, address).await;
            let given_up = outcome.as_ref().err().is_some_and(|problem| problem.reason == &BODY_TOO_SLOW);
            if !body.is_end_stream() && !given_up {
                // Read, though nobody wants it: who is still sending takes an end of the connection for a failure, and does not see the answer.
                peer.receiving.discard(&mut body, DISCARD_BYTES_MAX, Some(address)).await;
            }
            let status = outcome.as_ref().map_or_else(|problem| problem.reason.http_status, |response| response.status().as_u16());
            tracing::info!(status, %address, "request");
            outcome
        };
        let mut response = outcome.instrument(span).await.unwrap_or_else(|problem| refuse(&problem, &path, &correlation_id));
        response.headers_mut().insert(TRACERESPONSE, trace.to_header());
        self.finish(response.headers_mut(), &correlation_id, origin.as_ref());
        if method == Method::HEAD {
            let length = HeaderValue::from(response.body().len());
            *response.body_mut() = Bytes::new();
            response.headers_mut().insert(header::CONTENT_LENGTH, length);
        }
        self.metrics.record(response.status(), started.elapsed());
        response
    }

    async fn route(&self, request: Request<&mut Incoming>, peer: &Peer, address: IpAddr) -> Result<Response<Bytes>, Problem> {
        // All of REST or nothing of it: which paths there are is ours to say.
        if let Some(caller) = peer.caller.as_ref().filter(|caller| !caller.may_call("/api/v1")) {
            return Err(Problem::new(&PERMISSION_DENIED, format!("the policy does not let {} call this API", caller.name)));
        }
        if let Some(wait) = self.limiter.address(address) {
            return Err(Problem::new(&RATE_LIMITED, "too many requests from this address").retry_after(wait));
        }
        if let Some(response) = self.own(request.method(), request.uri().path()) {
            return Ok(response);
        }
        if request.method() == Method::OPTIONS {
            return preflight(request.uri().path());
        }
        self.limit_user(request.headers()).await?;
        self.transcode(request, &peer.receiving, address).await
    }

    /// What the gateway answers itself.
    fn own(&self, method: &Method, path: &str) -> Option<Response<Bytes>> {
        if method != Method::GET && method != Method::HEAD {
            return None;
        }
        match path {
            "/livez" => Some(json_response(StatusCode::OK, Bytes::from_static(br#"{"status":"live"}"#))),
            "/readyz" => {
                let health = &self.settings.health;
                let (ready, said) = if health.is_ready() { (true, "ready") } else { (false, "not ready") };
                let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                let body = json!({ "status": said, "checks": health.checks(), "degraded": health.degraded() });
                Some(json_response(status, Bytes::from(body.to_string())))
            }
            "/openapi.json" => Some(json_response(StatusCode::OK, self.openapi.clone())),
            path => docs::page(path),
        }
    }

    async fn limit_user(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.split_once(' ')).map(|(_, token)| token.trim());
        let Some(token) = token else { return Ok(()) };
        let Ok(user) = self.settings.verifier.verify(token).await else { return Ok(()) };
        match self.limiter.user(user.id) {
            Some(wait) => Err(Problem::new(&RATE_LIMITED, "too many requests by this user").retry_after(wait)),
            None => Ok(()),
        }
    }

    async fn transcode(&self, request: Request<&mut Incoming>, receiving: &Receiving, address: IpAddr) -> Result<Response<Bytes>, Problem> {
        let (mut parts, body) = request.into_parts();
        let target = current_version(parts.uri.path_and_query().map_or("/", |target| target.as_str()));
        let path = target.split('?').next().unwrap_or_default();
        let method = if parts.method == Method::HEAD { Method::GET } else { parts.method };
        let route = routes::find(method.as_str(), path).ok_or_else(|| not_routed(path))?;
        headers::check(&parts.headers)?;
        let target = format!("{path}{}", query::read(route, target.split_once('?').map(|(_, query)| query).unwrap_or_default())?);
        let received = if is_announced_too_large(&parts.headers, route.request_bytes_max) {
            Err(NotReceived::TooLarge)
        } else {
            receiving.receive(body, route.request_bytes_max, Some(address)).await
        };
        // What is held of the budget for large bodies is held until the answer.
        let Received { message: body, held: _held } = received.map_err(|why| not_received(why, route.request_bytes_max))?;
        check_content_type(&parts.headers, &body)?;
        let body = body::read(route, body)?;
        parts.headers.remove(header::CONTENT_LENGTH);
        // Not before the body is there: who sends none must not hold a slot.
        let slot = Slot::new(self.slots.clone().try_acquire_owned().ok());
        if !slot.is_held() {
            return Err(Problem::crowded("too many requests at once"));
        }
        // It is large: where it is made it stays.
        let answer = pin!(self.api.try_transcode(method.as_str(), &target, parts.headers, &body));
        let answered = SLOT.scope(slot, answer).await;
        match answered {
            Some(TranscodeResponse::Unary(unary)) => finish_unary(unary, route, &body),
            Some(_) => Err(Problem::new(&INTERNAL, "internal error")),
            // The path fits a route that the transcoder does not: a variable that is empty or malformed.
            None => Err(Problem::new(&NO_SUCH_ROUTE, NO_RESOURCE)),
        }
    }

    fn finish(&self, headers: &mut HeaderMap, correlation_id: &CorrelationId, origin: Option<&HeaderValue>) {
        for (name, value) in SECURITY_HEADERS {
            headers.entry(name).or_insert(value);
        }
        headers.insert(CORRELATION_HEADER, correlation_id.to_header());
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        let Some(origin) = origin else { return };
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
        let listed = self.settings.cors_origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes());
        if listed {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(
                header::ACCESS_CONTROL_EXPOSE_HEADERS,
                HeaderValue::from_static("location, preference-applied, retry-after, traceresponse, x-correlation-id"),
            );
        } else {
            // A preflight that is not answered for this origin says nothing of what we take.
            headers.remove(header::ACCESS_CONTROL_ALLOW_METHODS);
            headers.remove(header::ACCESS_CONTROL_ALLOW_HEADERS);
            headers.remove(header::ACCESS_CONTROL_MAX_AGE);
        }
    }
}

/// The same but for its path.
fn with_path(uri: &Uri, path: &str) -> Uri {
    let target = uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = target.parse().ok();
    // What was a path before is one still.
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

const NO_RESOURCE: &str = "no resource has this path; /docs lists them";

/// Why a request has no route: nothing has this path, or what has it takes other methods.
fn not_routed(path: &str) -> Problem {
    let allowed = routes::allowed(path);
    if allowed.is_empty() {
        return Problem::new(&NO_SUCH_ROUTE, NO_RESOURCE);
    }
    Problem::new(&METHOD_NOT_ALLOWED, format!("this resource takes {}", allowed.join(", ")))
}

/// A path without a version means the current one.
fn current_version(target: &str) -> String {
    let Some(rest) = target.strip_prefix("/api/") else { return target.to_owned() };
    let first = rest.split(['/', '?']).next().unwrap_or_default();
    let versioned = first.strip_prefix('v').is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
    if versioned { target.to_owned() } else { format!("/api/v1/{rest}") }
}

fn too_large(bytes_max: usize) -> Problem {
    Problem::new(&BODY_TOO_LARGE, format!("a request body of this method has at most {bytes_max} bytes"))
}

fn not_received(why: NotReceived, bytes_max: usize) -> Problem {
    match why {
        NotReceived::TooLarge => too_large(bytes_max),
        NotReceived::EndedEarly => Problem::new(&MALFORMED_MESSAGE, "the request body ended early"),
        NotReceived::Late(within) => Problem::new(&BODY_TOO_SLOW, format!("the request body did not come within {} s", within.as_secs())),
        NotReceived::NoRoom => Problem::crowded("too many incomplete or large requests at once"),
    }
}

/// Of a body that is not wanted, so much is read and thrown away: as much as nginx passes on.
const DISCARD_BYTES_MAX: usize = 1024 * 1024;

fn is_announced_too_large(headers: &HeaderMap, bytes_max: usize) -> bool {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    announced.is_some_and(|length| length > bytes_max)
}

fn check_content_type(headers: &HeaderMap, body: &Bytes) -> Result<(), Problem> {
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(Problem::new(&UNSUPPORTED_MEDIA_TYPE, "send the body without a content-encoding"));
    }
    let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    let essence = content_type.map(|value| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    if !body.is_empty() && essence.as_ref().is_some_and(|essence| essence != "application/json") {
        return Err(Problem::new(&UNSUPPORTED_MEDIA_TYPE, "send the header content-type: application/json"));
    }
    Ok(())
}

fn finish_unary(unary: HttpResponse, route: &methods::Method, body: &[u8]) -> Result<Response<Bytes>, Problem> {
    let mut response = unary.into_http().map(Bytes::from);
    if response.status().is_success() {
        let status = response.headers_mut().remove(STATUS_HEADER).and_then(|value| StatusCode::from_bytes(value.as_bytes()).ok());
        *response.status_mut() = status.unwrap_or(StatusCode::OK);
        if response.status() == StatusCode::NO_CONTENT {
            *response.body_mut() = Bytes::new();
            response.headers_mut().remove(header::CONTENT_TYPE);
        }
        return Ok(response);
    }
    Err(problem::unpack(response.body()).unwrap_or_else(|message| words::malformed(route, &message, body)))
}

fn refuse(problem: &Problem, path: &str, correlation_id: &CorrelationId) -> Response<Bytes> {
    let mut response = problem::response(problem, correlation_id);
    if problem.reason == &METHOD_NOT_ALLOWED
        && let Ok(allow) = HeaderValue::from_str(&routes::allowed(&current_version(path)).join(", "))
    {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

/// What a browser asks before it sends a request from another origin; `finish` takes it back for origins that are not listed.
fn preflight(path: &str) -> Result<Response<Bytes>, Problem> {
    let allowed = routes::allowed(&current_version(path));
    if allowed.is_empty() {
        return Err(Problem::new(&NO_SUCH_ROUTE, NO_RESOURCE));
    }
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    if let Ok(methods) = HeaderValue::from_str(&allowed.join(", ")) {
        headers.insert(header::ALLOW, methods.clone());
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    }
    let taken = "authorization, content-type, idempotency-key, prefer, traceparent, x-correlation-id";
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(taken));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    Ok(response)
}

fn json_response(status: StatusCode, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_without_a_version_means_the_current_one() {
        for (given, meant) in [
            ("/api/users", "/api/v1/users"),
            ("/api/v1/users?pageSize=2", "/api/v1/users?pageSize=2"),
            ("/api/v2/users", "/api/v2/users"),
            ("/api/vouchers", "/api/v1/vouchers"),
            ("/.well-known/jwks.json", "/.well-known/jwks.json"),
        ] {
            assert_eq!(current_version(given), meant);
        }
    }
}
