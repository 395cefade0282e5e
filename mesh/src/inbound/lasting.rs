//! Answers that last: of methods that stream. They hold no slot, so they have places of their own, of which one address has a share. Each ends by
//! itself, at the deadline that its caller set, or within moments after the process is told to stop: then in UNAVAILABLE, so that its caller goes on
//! elsewhere.

use std::collections::HashSet;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tower::Service;

use crate::call::Call;
use crate::outcome;
use crate::shares::{Place, Shares};
use crate::status::{DEADLINE_EXCEEDED, Problem, RATE_LIMITED, SLOW_READER, UNAVAILABLE};

/// Streams of one address, and of all. Each takes some KB, and some tens of them behind a gateway with TLS.
const PER_ADDRESS: usize = 2_000;
const IN_ALL: usize = 10_000;
/// Who does not take what there is within this time is ended, with a reason.
const SLOW_AFTER: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub(super) struct Lasting<S> {
    inner: S,
    methods: Arc<HashSet<&'static str>>,
    stop: CancellationToken,
    places: Arc<Shares>,
}

impl<S> Lasting<S> {
    pub(super) fn new(inner: S, methods: Arc<HashSet<&'static str>>, stop: CancellationToken) -> Self {
        Self { inner, methods, stop, places: Shares::new(PER_ADDRESS, IN_ALL) }
    }
}

impl<S> Service<Request<Body>> for Lasting<S>
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

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !self.methods.contains(request.uri().path()) {
            return Box::pin(self.inner.call(request));
        }
        let call = request.extensions().get::<Call>();
        let (address, deadline) = (call.and_then(|call| call.address), call.map(|call| call.deadline));
        let Some(place) = self.places.take(address, 1) else {
            let problem = Problem::new(&RATE_LIMITED, "too many streams are open; end some").with("limit", "streams");
            return Box::pin(std::future::ready(Ok(tonic::Status::from(problem).into_http())));
        };
        let (stop, answer) = (self.stop.clone(), self.inner.call(request));
        Box::pin(async move {
            let response = answer.await?;
            // All of an answer without a body is in its head.
            if outcome::code_in(response.headers()).is_some() {
                return Ok(response);
            }
            let stopped = Box::pin(stop.cancelled_owned());
            let late = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
            Ok(response.map(|body| Body::new(LastingBody { body, stopped, late, given: None, ended: false, _place: place })))
        })
    }
}

struct LastingBody {
    body: Body,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    late: Option<Pin<Box<Sleep>>>,
    /// When something was given to whoever sends it; it comes back for more as soon as that is sent.
    given: Option<Instant>,
    ended: bool,
    _place: Place,
}

impl LastingBody {
    /// Why it ends now, if it does.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Problem> {
        if self.stopped.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Problem::new(&UNAVAILABLE, "this replica stops; call again, with the id of the last event"));
        }
        if self.late.as_mut().is_some_and(|late| late.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Problem::new(&DEADLINE_EXCEEDED, "the stream lasted as long as its caller allowed"));
        }
        Poll::Pending
    }
}

impl http_body::Body for LastingBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let is_slow = self.given.take().is_some_and(|given| given.elapsed() > SLOW_AFTER);
        let problem = if is_slow {
            Problem::new(&SLOW_READER, format!("nothing was read for {} s; call again, with the id of the last event", SLOW_AFTER.as_secs()))
        } else if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.given = Some(Instant::now());
            return Poll::Ready(frame);
        } else {
            std::task::ready!(self.poll_end(cx))
        };
        self.ended = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(tonic::Status::from(problem).add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }
}
