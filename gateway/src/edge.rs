//! What every HTTP request passes, from outside to inside:
//!
//! 1. ids and the span, so that every answer and every log line bears them;
//! 2. metrics, outside of everything that may refuse, so that refusals are counted and timed as well;
//! 3. headers of the answer: security, caching, and what scripts of other origins may read;
//! 4. the rest of a body that nobody wanted, which is read and thrown away, so that its sender sees the answer;
//! 5. the policy, where callers prove who they are;
//! 6. the limit of the client's address, before anything that costs;
//! 7. what the gateway answers itself, and preflights;
//! 8. the limit of the user, which costs a signature for a token that was not seen yet;
//! 9. REST ([`crate::rest`]): the route, the body, one call to a service.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::Either;
use hyper::body::Incoming;
use lastro_mesh::call::{CORRELATION_HEADER, CorrelationId};
use lastro_mesh::health::Health;
use lastro_mesh::inbound::client_address;
use lastro_mesh::logs::otlp;
use lastro_mesh::serve::Peer;
use lastro_mesh::status::{BODY_TOO_SLOW, PERMISSION_DENIED, Problem, RATE_LIMITED};
use lastro_mesh::trace::{TRACERESPONSE, TraceContext};
use lastro_proto::reasons::METHOD_NOT_ALLOWED;
use metrics::{Counter, Histogram, counter, histogram};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::answer::{Body, empty, full};
use crate::limits::Limiter;
use crate::rest::{HEADERS_TAKEN, RequestContext, Rest, no_resource, with_usual_path};
use crate::{Settings, docs, openapi, problem};

/// The gateway's one request handler.
pub struct Edge {
    rest: Rest,
    settings: Settings,
    limiter: Limiter,
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

/// Of a body that is not wanted, so much is read and thrown away: as much as nginx passes on.
const DISCARD_BYTES_MAX: usize = 1024 * 1024;

impl Edge {
    pub fn new(settings: Settings) -> Self {
        Self {
            rest: Rest::new(&settings.channels, settings.concurrency_max),
            limiter: Limiter::new(settings.limits),
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

    /// Answers one request: the first three of the steps above. `stop` ends streams.
    pub async fn handle(&self, request: Request<Incoming>, peer: &Peer, stop: &CancellationToken) -> Response<Body> {
        let started = Instant::now();
        let request = with_usual_path(request);
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let origin = request.headers().get(header::ORIGIN).cloned();
        let correlation_id = CorrelationId::accept(request.headers()).unwrap_or_default();
        let span = tracing::info_span!("http", service = crate::NAME, correlationId = correlation_id.as_str(), traceId = tracing::field::Empty, method = %method, path = path.as_str());
        let trace = otlp::join(&span, TraceContext::of(request.headers()));
        if !span.is_disabled() {
            span.record("traceId", format!("{:032x}", trace.trace_id).as_str());
        }
        let address = client_address(peer, request.headers());
        let context = RequestContext { correlation_id: correlation_id.clone(), trace, address, stop: stop.clone() };

        let outcome = self.answer(request, context, peer).instrument(span).await;
        let mut response = outcome.unwrap_or_else(|problem| self.refuse(&problem, &path, &correlation_id));
        response.headers_mut().insert(TRACERESPONSE, trace.to_header());
        self.finish(response.headers_mut(), &correlation_id, origin.as_ref());
        if method == Method::HEAD {
            let length = response.body().size_hint().exact().unwrap_or_default();
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            *response.body_mut() = Either::Left(http_body_util::Full::default());
        }
        self.metrics.record(response.status(), started.elapsed());
        response
    }

    /// The answer, once the rest of the body is out of the way.
    async fn answer(&self, request: Request<Incoming>, context: RequestContext, peer: &Peer) -> Result<Response<Body>, Problem> {
        let (head, mut body) = request.into_parts();
        let address = context.address;
        let outcome = self.route(Request::from_parts(head, &mut body), context, peer).await;
        let given_up = outcome.as_ref().err().is_some_and(|problem| problem.reason == &BODY_TOO_SLOW);
        if !body.is_end_stream() && !given_up {
            // Read, though nobody wants it: who is still sending takes an end of the connection for a failure, and does not see the answer.
            peer.receiving.discard(&mut body, DISCARD_BYTES_MAX, Some(address)).await;
        }
        let status = outcome.as_ref().map_or_else(|problem| problem.reason.http_status, |response| response.status().as_u16());
        tracing::info!(status, %address, "request");
        outcome
    }

    async fn route(&self, request: Request<&mut Incoming>, context: RequestContext, peer: &Peer) -> Result<Response<Body>, Problem> {
        // All of REST or nothing of it: which paths there are is ours to say.
        if let Some(caller) = peer.caller.as_ref().filter(|caller| !caller.may_call("/api/v1")) {
            return Err(Problem::new(&PERMISSION_DENIED, format!("the policy does not let {} call this API", caller.name)));
        }
        if let Some(wait) = self.limiter.address(context.address) {
            return Err(Problem::new(&RATE_LIMITED, "too many requests from this address").retry_after(wait));
        }
        if let Some(response) = self.own(request.method(), request.uri().path()) {
            return Ok(full(response));
        }
        if request.method() == Method::OPTIONS {
            return self.preflight(request.uri().path());
        }
        self.limit_user(request.headers()).await?;
        self.rest.answer(request, context, &peer.receiving).await
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
                HeaderValue::from_static("location, preference-applied, retry-after, traceresponse, x-correlation-id, x-lastro-freshness"),
            );
        } else {
            // A preflight that is not answered for this origin says nothing of what we take.
            headers.remove(header::ACCESS_CONTROL_ALLOW_METHODS);
            headers.remove(header::ACCESS_CONTROL_ALLOW_HEADERS);
            headers.remove(header::ACCESS_CONTROL_MAX_AGE);
        }
    }

    fn refuse(&self, problem: &Problem, path: &str, correlation_id: &CorrelationId) -> Response<Body> {
        let mut response = full(problem::response(problem, correlation_id));
        if problem.reason == &METHOD_NOT_ALLOWED
            && let Ok(allow) = HeaderValue::from_str(&self.rest.allowed(path).join(", "))
        {
            response.headers_mut().insert(header::ALLOW, allow);
        }
        response
    }

    /// What a browser asks before it sends a request from another origin; `finish` takes it back for origins that are not listed.
    fn preflight(&self, path: &str) -> Result<Response<Body>, Problem> {
        let allowed = self.rest.allowed(path);
        if allowed.is_empty() {
            return Err(no_resource());
        }
        let mut response = empty(StatusCode::NO_CONTENT);
        let headers = response.headers_mut();
        if let Ok(methods) = HeaderValue::from_str(&allowed.join(", ")) {
            headers.insert(header::ALLOW, methods.clone());
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        }
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(HEADERS_TAKEN));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        Ok(response)
    }
}

fn json_response(status: StatusCode, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
