//! The absolute deadline of a call: the caller's or the client's timeout, whichever ends first. Covers attempts, waiting and the body,
//! tells the next service what is left, and answers DEADLINE_EXCEEDED. Of a call that streams only the head of the answer has to come by then.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::body::Body;
use tower::Service;

use crate::call::Call;
use crate::status::{DEADLINE_EXCEEDED, Problem};

#[derive(Clone)]
pub(super) struct Deadline<S> {
    pub inner: S,
    pub timeout: Duration,
}

impl<S> Service<Request<Body>> for Deadline<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let now = Instant::now();
        let call = request.extensions().get::<Call>();
        let own = if call.is_some_and(|call| call.waits) { Duration::from_secs(35) } else { self.timeout };
        let deadline = call.map_or(now + own, |call| call.deadline.min(now + own));
        // The layers below bound what they do by it.
        if let Some(call) = request.extensions_mut().get_mut::<Call>() {
            call.deadline = deadline;
        }
        let streams = request.extensions().get::<Call>().is_some_and(|call| call.streams);
        let left_us = deadline.saturating_duration_since(now).as_micros().min(99_999_999);
        if let Some(header) = HeaderValue::from_str(&format!("{left_us}u")).ok().filter(|_| !streams) {
            request.headers_mut().insert("grpc-timeout", header);
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            match tokio::time::timeout_at(deadline, answer).await {
                Ok(Ok(response)) if streams || response.headers().contains_key("grpc-status") => Ok(response),
                Ok(Ok(response)) => Ok(response.map(|body| Body::new(Timed { body, sleep: Box::pin(sleep_until(deadline)), ended: false }))),
                Ok(Err(never)) => match never {},
                Err(_) => Ok(exceeded().into_http()),
            }
        })
    }
}

fn exceeded() -> tonic::Status {
    Problem::new(&DEADLINE_EXCEEDED, "the deadline passed before the answer").into()
}

/// A body that ends in DEADLINE_EXCEEDED when the deadline passes before its own end.
struct Timed {
    body: Body,
    sleep: Pin<Box<Sleep>>,
    ended: bool,
}

impl http_body::Body for Timed {
    type Data = bytes::Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        ready!(self.sleep.as_mut().poll(cx));
        self.ended = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(exceeded().add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
