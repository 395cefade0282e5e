//! Judging a call where gRPC puts its status: in the headers of a trailers-only answer, else in the trailers at the END of the
//! stream. Telemetry and breaker see the same outcome.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{HeaderMap, Response};
use http_body::{Frame, SizeHint};
use tonic::{Code, body::Body};

use crate::status::DEPENDENCY_HEADER;

/// What is told of a call's end.
type OnEnd = Box<dyn FnOnce(Code) + Send>;

/// The status in these headers or trailers.
pub fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}

/// As [`observe`], of the service that was called alone: that it could not do its work because another one is away is no failure of its own.
pub fn observe_target(response: Response<Body>, on_end: impl FnOnce(Code) + Send + 'static) -> Response<Body> {
    let own = !response.headers().contains_key(DEPENDENCY_HEADER);
    observe(response, move |code| on_end(if own { code } else { Code::FailedPrecondition }))
}

/// Calls `on_end` exactly once with the call's outcome: at once for a trailers-only answer, else when its body ends. A body that is
/// dropped before its end is CANCELLED; one that ends without a status is UNKNOWN.
pub fn observe(response: Response<Body>, on_end: impl FnOnce(Code) + Send + 'static) -> Response<Body> {
    if let Some(code) = code_in(response.headers()) {
        on_end(code);
        return response;
    }
    response.map(|body| Body::new(Observed { body, on_end: Some(Box::new(on_end)) }))
}

/// As [`observe`] for a call that streams: the head of the answer is its outcome. How long the stream goes on, and how it ends, is up to its caller.
pub fn observe_head(response: Response<Body>, on_end: impl FnOnce(Code)) -> Response<Body> {
    on_end(code_in(response.headers()).unwrap_or(Code::Ok));
    response
}

struct Observed {
    body: Body,
    on_end: Option<OnEnd>,
}

impl Observed {
    fn end(&mut self, code: Code) {
        if let Some(on_end) = self.on_end.take() {
            on_end(code);
        }
    }
}

impl http_body::Body for Observed {
    type Data = bytes::Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = ready!(http_body::Body::poll_frame(Pin::new(&mut self.body), cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.end(code_in(trailers).unwrap_or(Code::Unknown));
                }
            }
            Some(Err(status)) => self.end(status.code()),
            None => self.end(Code::Unknown),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        http_body::Body::is_end_stream(&self.body)
    }

    fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.body)
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}
