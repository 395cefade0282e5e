//! The caller's deadline: `grpc-timeout`, or the default. tonic's own timeout answers CANCELLED; callers expect DEADLINE_EXCEEDED.

use std::collections::HashSet;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use tokio::time::Instant;
use tonic::body::Body;
use tower::Service;

use crate::call::{Call, is_ambiguous};
use crate::status::{DEADLINE_EXCEEDED, Problem};

const GRPC_TIMEOUT: &str = "grpc-timeout";

#[derive(Clone)]
pub(super) struct Deadline<S> {
    pub inner: S,
    pub timeout_default: Duration,
    pub timeout_max: Duration,
    /// Methods that stream: their deadline is for the end of the stream, and may be as far away as their caller likes.
    pub streaming: Arc<HashSet<&'static str>>,
}

/// A stream whose caller set no deadline ends after so long, and its caller goes on with another one.
const STREAM_MAX: Duration = Duration::from_hours(24);

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
        let streams = self.streaming.contains(request.uri().path());
        let timeout = match request.headers().get(GRPC_TIMEOUT) {
            None if streams => STREAM_MAX,
            None => self.timeout_default,
            Some(header) => match parse(header).filter(|_| !is_ambiguous(request.headers(), GRPC_TIMEOUT)) {
                Some(timeout) => timeout,
                None => {
                    let problem = Problem::field(GRPC_TIMEOUT, "must be 1 to 8 digits and one of H, M, S, m, u and n, and stand once");
                    return Box::pin(std::future::ready(Ok(tonic::Status::from(problem).into_http())));
                }
            },
        };
        // Who asks for more gets this much: nobody holds anything for a day.
        let deadline = Instant::now() + timeout.min(self.timeout_max);
        if let Some(call) = request.extensions_mut().get_mut::<Call>() {
            call.deadline = if streams { Instant::now() + timeout } else { deadline };
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            match tokio::time::timeout_at(deadline, answer).await {
                // An answer that comes too late is none: its caller counts on the deadline.
                Ok(answer) if Instant::now() <= deadline => answer,
                _ => Ok(tonic::Status::from(Problem::new(&DEADLINE_EXCEEDED, "the deadline passed before the answer")).into_http()),
            }
        })
    }
}

/// The header `grpc-timeout`: at most 8 digits and a unit. Capped at a day, so that no sum of instants overflows.
pub fn parse(header: &HeaderValue) -> Option<Duration> {
    let text = header.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(value.saturating_mul(3600)),
        "M" => Duration::from_secs(value.saturating_mul(60)),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    };
    Some(timeout.min(Duration::from_hours(24)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_grpc_timeouts() {
        for (text, timeout) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("5S", Some(Duration::from_secs(5))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999H", Some(Duration::from_hours(24))),
            ("5", None),
            ("", None),
            ("S", None),
            ("123456789S", None),
            ("-1S", None),
            ("1é", None),
        ] {
            assert_eq!(HeaderValue::from_str(text).ok().as_ref().and_then(parse), timeout, "{text:?}");
        }
    }
}
