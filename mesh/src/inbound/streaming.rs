//! Server-streaming calls. An open stream holds no concurrency slot, so streams have a quota of their own, in all and for each client address. A stream
//! ends when its handler ends it, at the deadline that its caller set, or at once when the process is told to stop: then with UNAVAILABLE, so that the
//! caller opens it again at another replica. A stream whose access token expires or is revoked ends with UNAUTHENTICATED, and one whose caller does not
//! read what is sent with `SLOW_READER`.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::Service;
use uuid::Uuid;

use super::identity::bearer;
use crate::call::Call;
use crate::endable::{Ender, endable};
use crate::identity::TokenVerifier;
use crate::identity::token::Refusal;
use crate::outcome;
use crate::quota::Quota;
use crate::serve::limited_address;
use crate::status::{DEADLINE_EXCEEDED, Problem, RATE_LIMITED, UNAUTHENTICATED, UNAVAILABLE};

/// The quota of open streams, for one client address and in all. An open stream takes some 40 KB of memory.
const PER_ADDRESS: usize = 2_000;
const IN_ALL: usize = 10_000;
/// And for one user, from wherever it calls.
const PER_USER: usize = 1_500;
/// How often the token of an open stream is verified again. Verifying is a look into a cache.
const VERIFY_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(super) struct Streaming<S> {
    inner: S,
    methods: Arc<HashSet<&'static str>>,
    stop: CancellationToken,
    verifier: Arc<TokenVerifier>,
    quota: Arc<Quota<IpAddr>>,
    quota_of_users: Arc<Quota<Uuid>>,
}

impl<S> Streaming<S> {
    pub(super) fn new(inner: S, methods: Arc<HashSet<&'static str>>, stop: CancellationToken, verifier: Arc<TokenVerifier>) -> Self {
        Self { inner, methods, stop, verifier, quota: Quota::new(PER_ADDRESS, IN_ALL), quota_of_users: Quota::new(PER_USER, IN_ALL) }
    }
}

impl<S> Service<Request<Body>> for Streaming<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
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
        let Some(of_address) = self.quota.take(address.map(limited_address), 1) else {
            return Box::pin(std::future::ready(Ok(too_many("streams_of_address"))));
        };
        let token = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer).map(str::to_owned);
        let (stop, verifier, quota_of_users) = (self.stop.clone(), self.verifier.clone(), self.quota_of_users.clone());
        // The clone that is ready is the one to call; the fresh one takes its place.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        Box::pin(async move {
            // A token that proves nobody is refused by the layer within.
            let user = match &token {
                Some(token) => verifier.verify(token).await.ok().map(|user| user.id),
                None => None,
            };
            let Some(of_user) = quota_of_users.take(user, 1) else { return Ok(too_many("streams_of_user")) };
            let response = inner.call(request).await?;
            // An answer without a body has its status in the head: there is nothing to wrap.
            if outcome::code_in(response.headers()).is_some() {
                return Ok(response);
            }
            let (head, body) = response.into_parts();
            let (body, ender) = endable(body, (of_address, of_user), |problem| trailers(problem).map(Ok));
            tokio::spawn(supervise(ender, Limits { stop, deadline, verifier, token }));
            Ok(Response::from_parts(head, Body::new(body)))
        })
    }
}

fn too_many(limit: &str) -> Response<Body> {
    tonic::Status::from(Problem::new(&RATE_LIMITED, "too many streams are open; end some").with("limit", limit)).into_http()
}

/// What ends a stream from outside.
struct Limits {
    stop: CancellationToken,
    deadline: Option<Instant>,
    verifier: Arc<TokenVerifier>,
    token: Option<String>,
}

/// Ends a stream when the process stops, at its deadline, when its token expires or is revoked, and when it is read too slowly. While the validity of a
/// token cannot be told, the stream goes on.
async fn supervise<B>(ender: Ender<B>, limits: Limits) {
    let late = async {
        match limits.deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    let mut late = pin!(late);
    while ender.end_if_slow() {
        tokio::select! {
            () = limits.stop.cancelled() => {
                return ender.end(Problem::new(&UNAVAILABLE, "this replica stops; call again, with the id of the last event"));
            }
            () = &mut late => return ender.end(Problem::new(&DEADLINE_EXCEEDED, "the stream lasted as long as its caller allowed")),
            () = sleep(VERIFY_EVERY) => {}
        }
        if let Some(token) = &limits.token
            && matches!(limits.verifier.verify(token).await, Err(Refusal::Invalid))
        {
            return ender.end(Problem::new(&UNAUTHENTICATED, "the access token is not valid any more; log in again"));
        }
    }
}

/// gRPC's way to say why a stream ends.
fn trailers(problem: Problem) -> Option<Frame<Bytes>> {
    let mut trailers = HeaderMap::new();
    tonic::Status::from(problem).add_header(&mut trailers).ok()?;
    Some(Frame::trailers(trailers))
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::sync::mpsc;
    use tonic::Code;
    use tower::ServiceExt as _;
    use tower::util::BoxCloneSyncService;

    use super::*;
    use crate::endable::SLOW_AFTER;
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
        let places = layer.quota.clone();
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
    async fn who_reads_too_slowly_is_told_and_holds_nothing_meanwhile() {
        let (layer, send) = streaming(&CancellationToken::new());
        let quota = layer.quota.clone();
        let mut body = open(layer, Duration::from_secs(3600)).await;
        for _ in 0..3 {
            send.send(Bytes::from_static(b"one")).expect("open");
        }
        assert_eq!(code(&mut body).await, None);
        tokio::time::sleep(SLOW_AFTER / 2).await;
        assert_eq!(code(&mut body).await, None, "slow, and not too slow");
        tokio::time::sleep(SLOW_AFTER * 2).await;
        // Nobody has polled the body since, as HTTP/2 does not when its reader gives no window.
        assert!(quota.is_unused() && send.is_closed());
        assert_eq!(code(&mut body).await, Some(Code::ResourceExhausted));
        assert!(body.frame().await.is_none());
    }
}
