//! The caller's view of a call: hands on correlation id, trace and token, and counts the outcome.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use tokio::time::Instant;
use tonic::body::Body;
use tower::Service;

use crate::call::{CORRELATION_HEADER, Call};
use crate::inbound::FORWARDED_FOR;
use crate::metrics::MethodMetrics;
use crate::outcome;
use crate::trace::TRACEPARENT;

#[derive(Clone)]
pub(super) struct Telemetry<S> {
    pub inner: S,
    pub target: &'static str,
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(call) = request.extensions().get::<Call>().cloned() {
            let headers = request.headers_mut();
            headers.insert(CORRELATION_HEADER, call.correlation_id.to_header());
            headers.insert(TRACEPARENT, call.trace.to_header());
            if let Some(address) = call.address.and_then(|address| HeaderValue::from_str(&address.to_string()).ok()) {
                headers.insert(FORWARDED_FOR, address);
            }
            if let Some(token) = call.token {
                headers.entry(AUTHORIZATION).or_insert(token);
            }
        }
        let started = Instant::now();
        let method = self.metrics.of(request.uri().path());
        let target = self.target;
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            Ok(outcome::observe(response, move |code| {
                method.record(code, started.elapsed());
                tracing::debug!(target_service = target, code = ?code, "outbound call");
            }))
        })
    }
}
