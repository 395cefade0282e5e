//! Sheds load by concurrency: what exceeds the bound is refused at once, with a pushback, instead of queueing past its deadline. A slot is taken when
//! the request is there whole, and a call that waits for an outcome gives it back before.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tokio::sync::Semaphore;
use tonic::body::Body;
use tower::Service;

use crate::call::{Call, Slot};
use crate::status::Problem;

#[derive(Clone)]
pub(super) struct Shed<S> {
    inner: S,
    slots: Arc<Semaphore>,
}

impl<S> Shed<S> {
    pub(super) fn new(inner: S, concurrency_max: usize) -> Self {
        Self { inner, slots: Arc::new(Semaphore::new(concurrency_max)) }
    }
}

impl<S> Service<Request<Body>> for Shed<S>
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
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            let problem = Problem::crowded("too many calls at once");
            return Box::pin(std::future::ready(Ok(tonic::Status::from(problem).into_http())));
        };
        let slot = Slot::new(Some(slot));
        if let Some(call) = request.extensions_mut().get_mut::<Call>() {
            call.slot = slot.clone();
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            slot.release();
            answer
        })
    }
}
