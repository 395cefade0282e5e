//! Retries by the rules of gRFC A6: jittered exponential backoff from 50 ms, a shared budget, pushback honoured, and only where a
//! second attempt does no harm. An answer with a message is committed and never tried again.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use tokio::time::Instant;
use tonic::Code;
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

use super::balance::NotSent;
use super::breaker::{Class, Refused};
use crate::call::Call;
use crate::outcome;
use crate::status::{DEPENDENCY_HEADER, Problem, UNAVAILABLE};

/// The longest pause before each further attempt; a pause is anything up to that (gRFC A6).
const PAUSES_MAX: ExponentialBuilder =
    ExponentialBuilder::new().with_min_delay(Duration::from_millis(50)).with_max_delay(Duration::from_secs(2)).with_factor(2.0).without_max_times();
/// What is left of the deadline is needed to answer.
const ANSWER_MARGIN: Duration = Duration::from_millis(50);
/// A frozen endpoint answers nothing: after so long another one is asked, where a second attempt does no harm.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// At most one retry for five calls over time, ten at once: a service that is down is not buried under retries.
#[derive(Debug)]
pub struct RetryBudget(AtomicU32);

impl RetryBudget {
    const CALL: u32 = 1;
    const RETRY: u32 = 5;
    const MAX: u32 = 50;

    /// A full budget.
    pub const fn new() -> Self {
        Self(AtomicU32::new(Self::MAX))
    }

    /// Every call earns a fifth of a retry.
    pub fn deposit(&self) {
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some((left + Self::CALL).min(Self::MAX)));
    }

    /// Takes one retry, if there is one.
    pub fn withdraw(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(Self::RETRY)).is_ok()
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Clone)]
pub(super) struct Retry<S> {
    inner: S,
    attempts_max: usize,
    retry_safe: fn(&str) -> bool,
    class: fn(&str) -> Class,
    budget: Arc<RetryBudget>,
}

impl<S> Retry<S> {
    pub(super) fn new(inner: S, attempts_max: usize, retry_safe: fn(&str) -> bool, class: fn(&str) -> Class) -> Self {
        Self { inner, attempts_max, retry_safe, class, budget: Arc::default() }
    }
}

impl<S> Service<Request<Body>> for Retry<S>
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
        self.budget.deposit();
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        if self.attempts_max < 2 || !(self.retry_safe)(request.uri().path()) {
            return Box::pin(inner.call(request));
        }
        let (attempts_max, budget, reads) = (self.attempts_max, self.budget.clone(), (self.class)(request.uri().path()) == Class::Read);
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let deadline = parts.extensions.get::<Call>().map(|call| call.deadline);
            let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let waits = parts.extensions.get::<Call>().is_some_and(|call| call.waits && !call.streams);
            let (mut refused, mut early): (Option<Response<Body>>, Option<Response<Body>>) = (None, None);
            // Whether an earlier attempt may have been done, for all that is known.
            let mut maybe_done = false;
            for attempt in 1.. {
                let mut request = Request::from_parts(parts.clone(), Body::new(Full::new(body.clone())));
                if attempt > 1 {
                    request.headers_mut().insert("grpc-previous-rpc-attempts", HeaderValue::from(attempt - 1));
                }
                let mut answer = pin!(inner.ready().await?.call(request));
                if !waits && attempt < attempts_max {
                    let patience = Instant::now() + ATTEMPT_TIMEOUT;
                    let worthwhile = |end: Instant| patience + ANSWER_MARGIN < end;
                    if deadline.is_none_or(worthwhile) && !answered_by(patience, answer.as_mut(), &mut early).await {
                        refused.get_or_insert_with(silence);
                        if budget.withdraw() {
                            maybe_done = true;
                            continue;
                        }
                    }
                }
                let response = match (early.take(), refused.take(), deadline) {
                    (Some(early), ..) => early,
                    // What an earlier attempt was told says more than that the time ran out meanwhile.
                    (None, Some(earlier), Some(end)) => match tokio::time::timeout_at(end - ANSWER_MARGIN, answer).await {
                        Ok(Ok(response)) => response,
                        Err(_) => return Ok(earlier),
                    },
                    _ => answer.await?,
                };
                let again = attempt < attempts_max && response.extensions().get::<Refused>().is_none();
                let pause = pause_before_retry(response.headers(), attempt).filter(|_| again);
                match pause {
                    Some(pause) if deadline.is_none_or(|end| Instant::now() + pause + ANSWER_MARGIN < end) && budget.withdraw() => {
                        maybe_done |= !response.headers().contains_key(DEPENDENCY_HEADER) && response.extensions().get::<NotSent>().is_none();
                        refused = Some(response);
                        tokio::time::sleep(pause).await;
                    }
                    _ if maybe_done && !reads && outcome::code_in(response.headers()).is_some_and(may_be_its_own_doing) => return Ok(silence()),
                    _ => return Ok(response),
                }
            }
            unreachable!("the loop returns")
        })
    }
}

/// Whether a repetition may be refused so because of what the attempt before it has done: a session that it ended, a user whom it deleted. Then
/// neither the refusal is told, nor that the call succeeded: nobody knows.
fn may_be_its_own_doing(code: Code) -> bool {
    matches!(code, Code::Unauthenticated | Code::PermissionDenied | Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted)
}

/// What is known of an attempt that was given up.
fn silence() -> Response<Body> {
    let problem = Problem::new(&UNAVAILABLE, "the service did not answer; whether the call was done is not known");
    tonic::Status::from(problem.retry_after(Duration::from_secs(1))).into_http()
}

/// Waits for an answer until an instant; keeps it if it came.
async fn answered_by<F>(until: Instant, answer: Pin<&mut F>, early: &mut Option<Response<Body>>) -> bool
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    *early = tokio::time::timeout_at(until, answer).await.ok().map(|Ok(response)| response);
    early.is_some()
}

/// How long to pause, or None where another attempt is of no use: success, another code, or a server that says no.
fn pause_before_retry(headers: &HeaderMap, attempt: usize) -> Option<Duration> {
    (outcome::code_in(headers)? == Code::Unavailable).then_some(())?;
    if let Some(pushback) = headers.get("grpc-retry-pushback-ms") {
        // Negative or unreadable means: do not retry.
        return pushback.to_str().ok()?.parse().ok().map(Duration::from_millis);
    }
    let ceiling = PAUSES_MAX.build().nth(attempt - 1)?;
    Some(Duration::from_micros(rand::random_range(0..=ceiling.as_micros() as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_a_fifth_of_the_calls() {
        let budget = RetryBudget::new();
        assert_eq!((0..100).filter(|_| budget.withdraw()).count(), 10);
        (0..25).for_each(|_| budget.deposit());
        assert_eq!((0..100).filter(|_| budget.withdraw()).count(), 5);
    }

    #[test]
    fn only_unavailable_is_tried_again_and_pushback_is_honoured() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            pairs.iter().map(|(k, v)| (http::HeaderName::from_static(k), HeaderValue::from_static(v))).collect::<HeaderMap>()
        };
        assert_eq!(pause_before_retry(&headers(&[]), 1), None);
        assert_eq!(pause_before_retry(&headers(&[("grpc-status", "0")]), 1), None);
        assert_eq!(pause_before_retry(&headers(&[("grpc-status", "13")]), 1), None);
        assert!(pause_before_retry(&headers(&[("grpc-status", "14")]), 1).is_some_and(|pause| pause <= Duration::from_millis(50)));
        assert_eq!(pause_before_retry(&headers(&[("grpc-status", "14"), ("grpc-retry-pushback-ms", "700")]), 1), Some(Duration::from_millis(700)));
        assert_eq!(pause_before_retry(&headers(&[("grpc-status", "14"), ("grpc-retry-pushback-ms", "-1")]), 1), None);
    }

    /// When a call with a deadline of 3 s ended, in milliseconds, and how; the attempts answer after `answers`, or never.
    async fn retried(waits: bool, budget: RetryBudget, answers: &'static [Option<u64>]) -> (u128, Code) {
        let attempts = Arc::new(AtomicU32::new(0));
        let inner = tower::service_fn(move |_: Request<Body>| {
            let answer = answers[attempts.fetch_add(1, Ordering::Relaxed) as usize];
            async move {
                match answer {
                    Some(after) => tokio::time::sleep(Duration::from_millis(after)).await,
                    None => std::future::pending().await,
                }
                Ok(tonic::Status::ok("").into_http())
            }
        });
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(Call { waits, ..Call::start(Duration::from_secs(3)) });
        let started = Instant::now();
        let call = Retry { budget: Arc::new(budget), ..Retry::new(inner, 3, |_| true, |_| Class::Write) }.oneshot(request);
        // The deadline layer stands outside of this one.
        let response = tokio::time::timeout(Duration::from_secs(3), call).await;
        let code = response.map_or(Code::DeadlineExceeded, |Ok(response)| outcome::code_in(response.headers()).expect("a status"));
        (started.elapsed().as_millis(), code)
    }

    /// A user disables itself, say: the answer is lost, and the repetition comes with a token that is dead by now.
    #[tokio::test(start_paused = true)]
    async fn what_a_call_did_itself_is_not_told_as_its_refusal() {
        // No repetition may be made, and the one attempt takes long to say no.
        let inner = tower::service_fn(|_: Request<Body>| async {
            tokio::time::sleep(Duration::from_millis(2500)).await;
            Ok::<_, Infallible>(tonic::Status::not_found("").into_http())
        });
        let spent = Arc::new(RetryBudget(AtomicU32::new(0)));
        let slow = Retry { budget: spent, ..Retry::new(inner, 3, |_| true, |_| Class::Write) };
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(Call::start(Duration::from_secs(10)));
        let response = slow.oneshot(request).await.expect("infallible");
        assert_eq!(outcome::code_in(response.headers()), Some(Code::NotFound));
        let told = async |class: fn(&str) -> Class, first: Problem, second: Code| {
            let (attempts, first) = (Arc::new(AtomicU32::new(0)), tonic::Status::from(first));
            let inner = tower::service_fn(move |_: Request<Body>| {
                let answer = if attempts.fetch_add(1, Ordering::Relaxed) == 0 { first.clone() } else { tonic::Status::new(second, "") };
                std::future::ready(Ok::<_, Infallible>(answer.into_http()))
            });
            let response = Retry::new(inner, 3, |_| true, class).oneshot(Request::new(Body::empty())).await;
            response.map(|response| outcome::code_in(response.headers()).expect("a status")).expect("infallible")
        };
        let lost = || Problem::new(&UNAVAILABLE, "the connection was cut");
        assert_eq!(told(|_| Class::Write, lost(), Code::Unauthenticated).await, Code::Unavailable);
        assert_eq!(told(|_| Class::Write, lost(), Code::NotFound).await, Code::Unavailable);
        assert_eq!(told(|_| Class::Write, lost(), Code::Ok).await, Code::Ok);
        assert_eq!(told(|_| Class::Write, lost(), Code::InvalidArgument).await, Code::InvalidArgument);
        assert_eq!(told(|_| Class::Read, lost(), Code::Unauthenticated).await, Code::Unauthenticated);
        assert_eq!(told(|_| Class::Write, Problem::crowded("busy"), Code::Unauthenticated).await, Code::Unauthenticated, "it was not done");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_without_an_answer_is_given_up() {
        assert_eq!(retried(false, RetryBudget::new(), &[Some(1900)]).await, (1900, Code::Ok));
        assert_eq!(retried(false, RetryBudget::new(), &[None, Some(500)]).await, (2500, Code::Ok));
        assert_eq!(retried(false, RetryBudget::new(), &[None, None]).await, (2950, Code::Unavailable), "before its deadline it learns what is known");
        let spent = || RetryBudget(AtomicU32::new(0));
        assert_eq!(retried(false, spent(), &[None]).await, (2950, Code::Unavailable), "also where no other attempt may be made");
        assert_eq!(retried(false, spent(), &[Some(2500)]).await, (2500, Code::Ok));
        assert_eq!(retried(true, RetryBudget::new(), &[Some(2900)]).await, (2900, Code::Ok), "who waits has patience");
    }
}
