//! Receives the whole request of a method that takes one message, within its size and its time, before anything is done for it. What is large takes
//! from a budget that all such requests share, so that half messages cannot fill the memory; what is small never does.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tower::Service;

use super::ClientAddress;
use crate::status::{BODY_TOO_LARGE, BODY_TOO_SLOW, MALFORMED_MESSAGE, Problem, UNAVAILABLE};

/// A message that does not come holds a stream of its connection.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests up to this size do not take from the budget.
const SMALL_BYTES: usize = 4 * 1024;
/// What larger ones may have in memory together, in units of [`SMALL_BYTES`]: 32 MiB.
const BUDGET: usize = 8192;
/// gRPC's own header before a message.
const FRAME_BYTES: usize = 5;

#[derive(Clone)]
pub(super) struct Receive<S> {
    inner: S,
    bytes_max: Arc<HashMap<&'static str, usize>>,
    budget: Arc<Semaphore>,
}

impl<S> Receive<S> {
    pub(super) fn new(inner: S, bytes_max: Arc<HashMap<&'static str, usize>>) -> Self {
        Self { inner, bytes_max, budget: Arc::new(Semaphore::new(BUDGET)) }
    }
}

impl<S> Service<Request<Body>> for Receive<S>
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
        // A call of this process brings its message whole, and whoever made it has looked at its size.
        if request.extensions().get::<ClientAddress>().is_some() {
            return Box::pin(self.inner.call(request));
        }
        // The clone that is ready is the one to call; the fresh one takes its place.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let Some(bytes_max) = self.bytes_max.get(request.uri().path()).copied() else {
            return Box::pin(inner.call(request));
        };
        let budget = self.budget.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let mut taken = None;
            let received = tokio::time::timeout(RECEIVE_TIMEOUT, receive(body, bytes_max + FRAME_BYTES, &budget, &mut taken)).await;
            let message = match received {
                Ok(Ok(message)) => message,
                Ok(Err(problem)) => return Ok(tonic::Status::from(problem).into_http()),
                Err(_) => {
                    let problem = Problem::new(&BODY_TOO_SLOW, format!("the message did not come within {} s", RECEIVE_TIMEOUT.as_secs()));
                    return Ok(tonic::Status::from(problem).into_http());
                }
            };
            let answer = inner.call(Request::from_parts(head, Body::new(Full::new(message)))).await;
            drop(taken);
            answer
        })
    }
}

async fn receive(mut body: Body, bytes_max: usize, budget: &Arc<Semaphore>, taken: &mut Option<OwnedSemaphorePermit>) -> Result<Bytes, Problem> {
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::new(&MALFORMED_MESSAGE, "the message ended early"))?;
        let Ok(data) = frame.into_data() else { continue };
        let total = first.len() + rest.len() + data.len();
        if total > bytes_max {
            return Err(Problem::new(&BODY_TOO_LARGE, format!("a request of this method has at most {} bytes", bytes_max - FRAME_BYTES)));
        }
        let units = if total > SMALL_BYTES { total.div_ceil(SMALL_BYTES) } else { 0 };
        let missing = units - taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits).min(units);
        if missing > 0 {
            let more = budget
                .clone()
                .try_acquire_many_owned(missing as u32)
                .map_err(|_| Problem::new(&UNAVAILABLE, "too many large requests at once").retry_after(Duration::from_millis(250)))?;
            match taken {
                Some(taken) => taken.merge(more),
                None => *taken = Some(more),
            }
        }
        if first.is_empty() {
            first = data;
        } else {
            rest.extend_from_slice(&data);
        }
    }
    if rest.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(first.len() + rest.len());
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&rest);
    Ok(whole.freeze())
}

#[cfg(test)]
mod tests {
    use http_body::Frame;
    use http_body_util::StreamBody;
    use tower::{ServiceExt as _, service_fn};

    use super::*;
    use crate::outcome;
    use crate::status::reason_name;

    fn service(
        seen: Arc<std::sync::Mutex<Vec<usize>>>,
    ) -> Receive<impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone> {
        let inner = service_fn(move |request: Request<Body>| {
            let seen = seen.clone();
            async move {
                let bytes = request.into_body().collect().await.expect("a body").to_bytes();
                seen.lock().expect("not poisoned").push(bytes.len());
                Ok(tonic::Status::ok("").into_http())
            }
        });
        Receive::new(inner, Arc::new(HashMap::from([("/s/m", 10_000)])))
    }

    fn request(path: &str, body: Body) -> Request<Body> {
        Request::builder().uri(path).body(body).expect("a request")
    }

    fn pieces(sizes: &'static [usize], ends: bool) -> Body {
        let frames = futures_util::stream::iter(sizes.iter().map(|size| Ok::<_, tonic::Status>(Frame::data(Bytes::from(vec![0; *size])))));
        let end = futures_util::stream::once(async move { if ends { None } else { std::future::pending().await } });
        use futures_util::StreamExt as _;
        Body::new(StreamBody::new(Box::pin(frames.chain(end.filter_map(std::future::ready)))))
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_comes_whole_or_not_at_all() {
        let seen = Arc::default();
        let service = service(Arc::clone(&seen));
        for (sizes, reason) in
            [(&[10][..], None), (&[5000, 5005], None), (&[], None), (&[10_006], Some("BODY_TOO_LARGE")), (&[9000, 1006], Some("BODY_TOO_LARGE"))]
        {
            let answer = service.clone().oneshot(request("/s/m", pieces(sizes, true))).await.expect("infallible");
            let status = tonic::Status::from_header_map(answer.headers());
            assert_eq!(status.and_then(|status| reason_name(&status)).as_deref(), reason, "{sizes:?}");
        }
        assert_eq!(*seen.lock().expect("not poisoned"), [10, 10_005, 0]);
        let late = service.clone().oneshot(request("/s/m", pieces(&[10], false))).await.expect("infallible");
        assert_eq!(outcome::code_in(late.headers()), Some(tonic::Code::DeadlineExceeded));
        assert_eq!(service.budget.available_permits(), BUDGET, "everything is given back");
        // What streams is not received beforehand.
        let streams = tokio::time::timeout(Duration::from_secs(60), service.clone().oneshot(request("/s/other", pieces(&[10], false)))).await;
        assert!(streams.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn half_messages_take_from_a_budget_and_small_ones_do_not() {
        let service = service(Arc::default());
        let half: Vec<_> = (0..4000).map(|_| tokio::spawn(service.clone().oneshot(request("/s/m", pieces(&[9000], false))))).collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(service.budget.available_permits() < 3);
        let large = service.clone().oneshot(request("/s/m", pieces(&[9000], true))).await.expect("infallible");
        assert_eq!(outcome::code_in(large.headers()), Some(tonic::Code::Unavailable));
        let small = service.clone().oneshot(request("/s/m", pieces(&[300], true))).await.expect("infallible");
        assert_eq!(outcome::code_in(small.headers()), Some(tonic::Code::Ok));
        for one in half {
            let _ = one.await;
        }
        assert_eq!(service.budget.available_permits(), BUDGET);
    }
}
