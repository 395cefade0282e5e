//! Counts and times every call by its method and its outcome at the end of the stream.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tokio::time::Instant;
use tonic::body::Body;
use tower::Service;

use crate::metrics::MethodMetrics;
use crate::outcome;

#[derive(Clone)]
pub(super) struct Telemetry<S> {
    pub inner: S,
    pub metrics: Arc<MethodMetrics>,
}

impl<S> Service<Request<Body>> for Telemetry<S>
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
        let started = Instant::now();
        let method = self.metrics.of(request.uri().path());
        let span = tracing::Span::current();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            Ok(outcome::observe(response, move |code| {
                let elapsed = started.elapsed();
                method.record(code, elapsed);
                tracing::info!(parent: &span, code = ?code, latency_us = elapsed.as_micros() as u64, "call");
            }))
        })
    }
}
