//! REST over the services. A request is validated against the contract of its method, becomes one gRPC call, and the answer becomes HTTP as the
//! annotations of the method say. One generic handler serves every unary method and one every server-streaming method; what depends on the types of a
//! method is generated (`lastro_proto::rest_methods`), so that a new method needs no code here.

mod body;
mod csv;
mod headers;
mod json_path;
mod query;
mod routes;
mod streaming;
mod unary;
mod words;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, Request, Response, Uri};
use lastro_mesh::call::{Call, CorrelationId, Slot};
use lastro_mesh::inbound::ClientAddress;
use lastro_mesh::outbound::Outbound;
use lastro_mesh::serve::{NotReceived, Received, Receiving};
use lastro_mesh::status::{BODY_TOO_LARGE, BODY_TOO_SLOW, INVALID_ARGUMENT, MALFORMED_MESSAGE, Problem};
use lastro_mesh::trace::TraceContext;
use lastro_proto::methods::Method;
use lastro_proto::reasons::{METHOD_NOT_ALLOWED, NO_SUCH_ROUTE, UNSUPPORTED_MEDIA_TYPE};
use lastro_proto::rest_methods::RestMethod;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::routes::Routes;
use crate::answer::Body;

/// The key of a request that creates something (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// How many seconds the proxy before us waits for an answer, where it waits for less than anybody may ask for.
const PATIENCE: HeaderName = HeaderName::from_static("x-lastro-patience");
/// An answer has to be on its way so long before a proxy's patience ends.
const PATIENCE_MARGIN: Duration = Duration::from_millis(200);
/// For calls that wait for nothing.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Headers that a request may carry to a method: what a browser asks for before it sends them from another origin.
pub const HEADERS_TAKEN: &str =
    "authorization, content-type, idempotency-key, last-event-id, prefer, traceparent, x-correlation-id, x-lastro-freshness";

/// Every method that REST offers, and the ways to the services behind them.
pub struct Rest {
    routes: Routes,
    /// Requests that are handled at once.
    slots: Arc<Semaphore>,
}

/// The context of a request: correlation id, trace and address are read from the headers once, when the request arrives, for all that follows.
#[derive(Clone)]
pub struct RequestContext {
    /// In the answer, every log line, and the calls to services.
    pub correlation_id: CorrelationId,
    /// The trace, with the span of this request.
    pub trace: TraceContext,
    /// Where the client is.
    pub address: IpAddr,
    /// Cancelled when the gateway is told to stop, which ends its streams.
    pub stop: CancellationToken,
}

/// A request for one method, as its handler gets it.
struct MethodCall {
    method: &'static Method,
    /// The request message as JSON: the fields of the path, the query and the body together.
    json: Bytes,
    headers: HeaderMap,
    context: RequestContext,
    /// The concurrency slot. A call that waits for an outcome, or streams, releases it: it costs nothing while it waits.
    slot: Slot,
}

impl Rest {
    /// Over the services behind these channels, by the packages that they serve.
    pub fn new(channels: &HashMap<&'static str, Outbound>, concurrency_max: usize) -> Self {
        Self { routes: Routes::new(channels), slots: Arc::new(Semaphore::new(concurrency_max)) }
    }

    /// Answers a request, or says why it is refused.
    pub async fn answer<B>(&self, request: Request<B>, context: RequestContext, receiving: &Receiving) -> Result<Response<Body>, Problem>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let (parts, body) = request.into_parts();
        let path = current_version(parts.uri.path());
        let (route, path_values) = self.routes.find(&parts.method, &path).ok_or_else(|| self.not_routed(&path))?;
        headers::check(&parts.headers)?;
        let fields = [path_values?, query::read(route.method, parts.uri.query().unwrap_or_default())?];
        let bytes_max = route.method.body_bytes_max;
        let received = if is_announced_too_large(&parts.headers, bytes_max) {
            Err(NotReceived::TooLarge)
        } else {
            receiving.receive(body, bytes_max, Some(context.address)).await
        };
        // The permits for a large body are held until the answer.
        let Received { message: body, held: _held } = received.map_err(|why| not_received(why, bytes_max))?;
        check_content_type(&parts.headers, &body)?;
        let json = body::read(route.method, body, fields)?;
        // Taken only after the body has arrived: a client that sends its body slowly must not hold a slot.
        let slot = Slot::new(self.slots.clone().try_acquire_owned().ok());
        if !slot.is_held() {
            return Err(Problem::crowded("too many requests at once"));
        }
        let input = MethodCall { method: route.method, json, headers: parts.headers, context, slot: slot.clone() };
        let answered = (route.handle)(route.channel.clone(), input).await;
        slot.release();
        answered
    }

    /// The methods that a path takes, for `Allow`.
    pub fn allowed(&self, path: &str) -> Vec<&'static str> {
        self.routes.allowed(&current_version(path))
    }

    /// Why a request has no route: nothing has this path, or what has it takes other methods.
    fn not_routed(&self, path: &str) -> Problem {
        let allowed = self.routes.allowed(path);
        if allowed.is_empty() {
            return no_resource();
        }
        Problem::new(&METHOD_NOT_ALLOWED, format!("this resource takes {}", allowed.join(", ")))
    }
}

/// Nothing has this path.
pub fn no_resource() -> Problem {
    Problem::new(&NO_SUCH_ROUTE, "no resource has this path; /docs lists them")
}

/// A request with its path in the usual form.
pub fn with_usual_path<B>(mut request: Request<B>) -> Request<B> {
    if let Some(usual) = routes::usual(request.uri().path()) {
        *request.uri_mut() = with_path(request.uri(), &usual);
    }
    request
}

fn with_path(uri: &Uri, path: &str) -> Uri {
    let target = uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = target.parse().ok();
    // What was a path before is one still.
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

/// A path without a version means the current one.
fn current_version(path: &str) -> String {
    let Some(rest) = path.strip_prefix("/api/") else { return path.to_owned() };
    let first = rest.split('/').next().unwrap_or_default();
    let versioned = first.strip_prefix('v').is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
    if versioned { path.to_owned() } else { format!("/api/v1/{rest}") }
}

fn not_received(why: NotReceived, bytes_max: usize) -> Problem {
    match why {
        NotReceived::TooLarge => Problem::new(&BODY_TOO_LARGE, format!("a request body of this method has at most {bytes_max} bytes")),
        NotReceived::EndedEarly => Problem::new(&MALFORMED_MESSAGE, "the request body ended early"),
        NotReceived::Late(within) => Problem::new(&BODY_TOO_SLOW, format!("the request body did not come within {} s", within.as_secs())),
        NotReceived::NoRoom => Problem::crowded("too many incomplete or large requests at once"),
    }
}

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

impl MethodCall {
    /// The request message, with what stands in headers.
    fn read<M: RestMethod>(&self) -> Result<M::Request, Problem> {
        let mut request = serde_json::from_slice(&self.json).map_err(|error| {
            let unreadable = words::unreadable(self.method, &error, &self.json);
            // Without a body the fields stood in the path and the query: no JSON was sent.
            if self.method.takes_body { unreadable } else { Problem { reason: &INVALID_ARGUMENT, ..unreadable } }
        })?;
        if let Some(external_id) = M::external_id(&mut request) {
            headers::apply_idempotency_key(external_id, &self.headers)?;
        }
        if let Some(last_event_id) = M::last_event_id(&mut request) {
            headers::apply_last_event_id(last_event_id, &self.headers)?;
        }
        Ok(request)
    }

    /// What is told in [`PATIENCE`].
    fn patience(&self) -> Option<Duration> {
        self.headers.get(PATIENCE)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
    }

    /// The call as it goes on to a service. Its deadline lets us answer in our own words before a proxy gives us up.
    fn call(&self, timeout: Duration) -> Call {
        let timeout = self.patience().map_or(timeout, |patience| timeout.min(patience.saturating_sub(PATIENCE_MARGIN)));
        Call {
            correlation_id: self.context.correlation_id.clone(),
            trace: self.context.trace,
            token: self.headers.get(header::AUTHORIZATION).cloned(),
            address: Some(self.context.address),
            ..Call::start(timeout)
        }
    }
}

/// A request to a service on behalf of the client.
fn request_to<T>(call: &Call, message: T) -> tonic::Request<T> {
    let mut request = call.request(message);
    if let Some(address) = call.address {
        request.extensions_mut().insert(ClientAddress(address));
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_without_a_version_means_the_current_one() {
        for (given, meant) in [
            ("/api/users", "/api/v1/users"),
            ("/api/v1/users", "/api/v1/users"),
            ("/api/v2/users", "/api/v2/users"),
            ("/api/vouchers", "/api/v1/vouchers"),
            ("/.well-known/jwks.json", "/.well-known/jwks.json"),
        ] {
            assert_eq!(current_version(given), meant);
        }
    }
}
