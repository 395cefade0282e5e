//! Bounds the calls at once to one service, with a bounded queue before them. A call that waits for an outcome takes no slot: it is
//! not load, it is patience.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use tokio::sync::Semaphore;
use tonic::body::Body;
use tower::Service;

use crate::call::Call;
use crate::status::{NOT_ASKED_HEADER, Problem, UNAVAILABLE};

#[derive(Clone)]
pub(super) struct Bulkhead<S> {
    inner: S,
    slots: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    queue_max: usize,
}

impl<S> Bulkhead<S> {
    pub(super) fn new(inner: S, concurrency_max: usize, queue_max: usize) -> Self {
        Self { inner, slots: Arc::new(Semaphore::new(concurrency_max)), waiting: Arc::default(), queue_max }
    }
}

/// Counts a call in the queue for as long as it lives, also when its caller gives up.
struct Queued(Arc<AtomicUsize>);

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S> Service<Request<Body>> for Bulkhead<S>
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
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        if request.extensions().get::<Call>().is_some_and(|call| call.waits) {
            return Box::pin(inner.call(request));
        }
        let queued = Queued(self.waiting.clone());
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.queue_max {
            let problem = Problem::new(&UNAVAILABLE, "too many calls wait for this service").retry_after(Duration::from_millis(250));
            let mut refusal: Response<Body> = tonic::Status::from(problem).into_http();
            refusal.headers_mut().insert(NOT_ASKED_HEADER, HeaderValue::from_static("1"));
            return Box::pin(std::future::ready(Ok(refusal)));
        }
        let slots = self.slots.clone();
        Box::pin(async move {
            let slot = slots.acquire_owned().await;
            drop(queued);
            let answer = inner.call(request).await;
            drop(slot);
            answer
        })
    }
}
