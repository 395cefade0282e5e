//! One call as it travels: correlation id, trace, deadline, principal, client address. The inbound stack puts a [`Call`] in the
//! request's extensions; handlers read it and hand it on to the clients that they use.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::AsHeaderName;
use http::{HeaderMap, HeaderValue};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::identity::Principal;
use crate::status::{self, Problem};
use crate::trace::TraceContext;

/// The header of the correlation id, in requests and answers.
pub const CORRELATION_HEADER: &str = "x-correlation-id";

/// One of the slots for calls that are handled at once, held until the call ends or [releases](Self::release) it: a call that waits for an outcome
/// is no load. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Slot(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Slot {
    /// A slot that is held, or none.
    pub fn new(permit: Option<OwnedSemaphorePermit>) -> Self {
        Self(Arc::new(Mutex::new(permit)))
    }

    /// Whether it is held.
    pub fn is_held(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Gives the slot to somebody else.
    pub fn release(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// What goes along with one call from hop to hop.
#[derive(Debug, Clone)]
pub struct Call {
    /// In every log line, span, event, downstream call and answer.
    pub correlation_id: CorrelationId,
    /// W3C trace context.
    pub trace: TraceContext,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// Who calls, once identity is established.
    pub principal: Option<Principal>,
    /// The bearer token that proved the user, to be verified again by the next service.
    pub token: Option<HeaderValue>,
    /// Where the call came from, as the first trusted hop saw it.
    pub address: Option<IpAddr>,
    /// True when the caller asked to wait for an outcome: not a slow call to a breaker, and no bulkhead slot.
    pub waits: bool,
    /// True for a call whose answers come as long as its caller likes: its deadline, if it set none itself, is for the first of them.
    pub streams: bool,
    /// What the call holds of the service that handles it.
    pub slot: Slot,
}

impl Call {
    /// A call that starts here, such as one of a background job.
    pub fn start(timeout: Duration) -> Self {
        Self {
            correlation_id: CorrelationId::new(),
            trace: TraceContext::start(),
            deadline: Instant::now() + timeout,
            principal: None,
            token: None,
            address: None,
            waits: false,
            streams: false,
            slot: Slot::default(),
        }
    }

    /// The call that the inbound stack put into a request.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<&Self, Problem> {
        request.extensions().get::<Self>().ok_or_else(|| {
            tracing::error!("a handler runs outside the inbound stack");
            Problem::new(&status::INTERNAL, "internal error")
        })
    }

    /// A request to another service on behalf of this call.
    pub fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        // The slot stays here.
        request.extensions_mut().insert(Self { slot: Slot::default(), ..self.clone() });
        request
    }

    /// The user who calls, or UNAUTHENTICATED.
    pub fn user(&self) -> Result<&crate::identity::User, Problem> {
        let user = self.principal.as_ref().and_then(Principal::user);
        user.ok_or_else(|| Problem::new(&status::UNAUTHENTICATED, "this method needs a user's token"))
    }

    /// What is left until the deadline.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// Whether a header is given more than once with different values: which of them is meant cannot be told.
pub fn is_ambiguous(headers: &HeaderMap, name: impl AsHeaderName) -> bool {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    values.any(|value| Some(value) != first)
}

/// `[A-Za-z0-9._-]{1,64}`: made where a caller gave none, or none that fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorrelationId(Arc<str>);

impl CorrelationId {
    /// A new one.
    pub fn new() -> Self {
        Self(uuid::Uuid::now_v7().simple().to_string().into())
    }

    /// The caller's, if it may be kept. Of two that differ neither may.
    pub fn accept(headers: &HeaderMap) -> Option<Self> {
        let header = headers.get(CORRELATION_HEADER).filter(|_| !is_ambiguous(headers, CORRELATION_HEADER));
        let text = header?.to_str().ok()?;
        let fits = (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        fits.then(|| Self(text.into()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As a header's value.
    pub fn to_header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0).unwrap_or(HeaderValue::from_static("invalid"))
    }
}

impl Default for CorrelationId {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Display for CorrelationId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(ids: &[&str]) -> HeaderMap {
        let name = || CORRELATION_HEADER.parse::<http::HeaderName>().expect("a name");
        ids.iter().map(|id| (name(), HeaderValue::from_str(id).expect("ascii"))).collect()
    }

    #[test]
    fn keeps_ids_that_fit_and_replaces_others() {
        for (text, kept) in [("abc-1._Z", true), (&"x".repeat(64), true), ("", false), (&"x".repeat(65), false), ("a b", false), ("a/b", false)] {
            assert_eq!(CorrelationId::accept(&headers(&[text])).is_some(), kept, "{text:?}");
        }
        assert_eq!(CorrelationId::accept(&headers(&[])), None);
        assert!(CorrelationId::accept(&headers(&["a", "a"])).is_some());
        assert_eq!(CorrelationId::accept(&headers(&["a", "b"])), None);
    }
}
