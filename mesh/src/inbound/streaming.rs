//! Server-streaming calls. An open stream holds no concurrency slot, so streams have a quota of their own, in all and for each client address. A stream
//! ends when its handler ends it, at the deadline that its caller set, or at once when the process is told to stop: then with UNAVAILABLE, so that the
//! caller opens it again at another replica. A stream whose access token expires or is revoked ends with UNAUTHENTICATED, and one whose caller does not
//! read what is sent with `SLOW_READER`.

use std::collections::HashSet;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tower::Service;

use super::identity::bearer;
use crate::call::Call;
use crate::identity::TokenVerifier;
use crate::identity::token::Refusal;
use crate::outcome;
use crate::quota::{Permit, Quota};
use crate::status::{DEADLINE_EXCEEDED, Problem, RATE_LIMITED, SLOW_READER, UNAUTHENTICATED, UNAVAILABLE};

/// The quota of open streams, for one client address and in all. An open stream takes some 40 KB of memory.
const PER_ADDRESS: usize = 2_000;
const IN_ALL: usize = 10_000;
/// A stream is ended when its caller reads nothing for so long although something was sent.
const SLOW_AFTER: Duration = Duration::from_secs(30);
/// How often the token of an open stream is verified again. Verifying is a look into a cache.
const VERIFY_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(super) struct Streaming<S> {
    inner: S,
    methods: Arc<HashSet<&'static str>>,
    stop: CancellationToken,
    verifier: Arc<TokenVerifier>,
    places: Arc<Quota>,
}

impl<S> Streaming<S> {
    pub(super) fn new(inner: S, methods: Arc<HashSet<&'static str>>, stop: CancellationToken, verifier: Arc<TokenVerifier>) -> Self {
        Self { inner, methods, stop, verifier, places: Quota::new(PER_ADDRESS, IN_ALL) }
    }
}

impl<S> Service<Request<Body>> for Streaming<S>
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
        let token = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer).map(str::to_owned);
        let dead: Pin<Box<dyn Future<Output = ()> + Send>> = match token {
            Some(token) => Box::pin(until_dead(self.verifier.clone(), token)),
            None => Box::pin(std::future::pending()),
        };
        let (stop, answer) = (self.stop.clone(), self.inner.call(request));
        Box::pin(async move {
            let response = answer.await?;
            // An answer without a body has its status in the head: there is nothing to wrap.
            if outcome::code_in(response.headers()).is_some() {
                return Ok(response);
            }
            let stopped = Box::pin(stop.cancelled_owned());
            let late = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
            Ok(response.map(|body| Body::new(StreamingBody { body, stopped, dead, late, given: None, ended: false, _place: place })))
        })
    }
}

/// Waits until a token expires or is revoked. While its validity cannot be told, the stream goes on.
async fn until_dead(verifier: Arc<TokenVerifier>, token: String) {
    loop {
        sleep(VERIFY_EVERY).await;
        if matches!(verifier.verify(&token).await, Err(Refusal::Invalid)) {
            return;
        }
    }
}

struct StreamingBody {
    body: Body,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Ends when the token of the stream is no longer valid.
    dead: Pin<Box<dyn Future<Output = ()> + Send>>,
    late: Option<Pin<Box<Sleep>>>,
    /// When the last frame was given to the connection. The connection asks for the next one as soon as that frame is sent.
    given: Option<Instant>,
    ended: bool,
    _place: Permit,
}

impl StreamingBody {
    /// The reason to end the stream now, if there is one.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Problem> {
        if self.stopped.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Problem::new(&UNAVAILABLE, "this replica stops; call again, with the id of the last event"));
        }
        if self.dead.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Problem::new(&UNAUTHENTICATED, "the access token is not valid any more; log in again"));
        }
        if self.late.as_mut().is_some_and(|late| late.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Problem::new(&DEADLINE_EXCEEDED, "the stream lasted as long as its caller allowed"));
        }
        Poll::Pending
    }
}

impl http_body::Body for StreamingBody {
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

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::sync::mpsc;
    use tonic::Code;
    use tower::ServiceExt as _;
    use tower::util::BoxCloneSyncService;

    use super::*;
    use crate::identity::{KeySource, Revocations};
    use crate::inbound::GrpcService;

    const PATH: &str = "/test.Service/Watch";

    /// The layer over a service that answers what it is sent.
    fn streaming(stop: &CancellationToken) -> (Streaming<GrpcService>, mpsc::UnboundedSender<Bytes>) {
        let (send, receive) = mpsc::unbounded_channel::<Bytes>();
        let receive = Arc::new(std::sync::Mutex::new(Some(receive)));
        let service = BoxCloneSyncService::new(tower::service_fn(move |_: Request<Body>| {
            let receive = receive.lock().expect("not poisoned").take();
            let body = receive.map_or_else(Body::empty, |mut receive| {
                let frames = futures_util::stream::poll_fn(move |cx| {
                    receive.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok::<_, tonic::Status>(Frame::data(bytes))))
                });
                Body::new(StreamBody::new(frames))
            });
            std::future::ready(Ok(Response::new(body)))
        }));
        let nobody: KeySource = Box::new(|| Box::pin(async { None }));
        let verifier = Arc::new(TokenVerifier::new(nobody, None, Revocations::default()));
        (Streaming::new(service, Arc::new(HashSet::from([PATH])), stop.clone(), verifier), send)
    }

    async fn open(layer: impl Service<Request<Body>, Response = Response<Body>, Error = Infallible>, within: Duration) -> Body {
        let mut request = Request::builder().uri(PATH).body(Body::empty()).expect("a request");
        request.extensions_mut().insert(Call::start(within));
        layer.oneshot(request).await.expect("infallible").into_body()
    }

    async fn code(body: &mut Body) -> Option<Code> {
        let frame = body.frame().await?.expect("no error of transport");
        frame.trailers_ref().and_then(outcome::code_in)
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_when_the_process_stops_or_its_time_is_over_and_gives_its_place_back() {
        let stop = CancellationToken::new();
        let (layer, send) = streaming(&stop);
        let places = layer.places.clone();
        let mut body = open(layer, Duration::from_secs(3600)).await;
        assert!(!places.is_unused());
        send.send(Bytes::from_static(b"one")).expect("open");
        assert_eq!(code(&mut body).await, None, "a message");
        stop.cancel();
        assert_eq!(code(&mut body).await, Some(Code::Unavailable));
        assert!(body.frame().await.is_none());
        drop(body);
        assert!(places.is_unused());

        let (layer, _send) = streaming(&CancellationToken::new());
        let mut body = open(layer, Duration::from_secs(60)).await;
        assert_eq!(code(&mut body).await, Some(Code::DeadlineExceeded));
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_too_slowly_is_told() {
        let (layer, send) = streaming(&CancellationToken::new());
        let mut body = open(layer, Duration::from_secs(3600)).await;
        for _ in 0..3 {
            send.send(Bytes::from_static(b"one")).expect("open");
        }
        assert_eq!(code(&mut body).await, None);
        tokio::time::sleep(SLOW_AFTER / 2).await;
        assert_eq!(code(&mut body).await, None, "slow, and not too slow");
        tokio::time::sleep(SLOW_AFTER * 2).await;
        assert_eq!(code(&mut body).await, Some(Code::ResourceExhausted));
        assert!(body.frame().await.is_none());
    }
}
