//! The circuit breaker: stops calls to a service that fails, and probes it until it answers again. Settings and semantics are those of
//! resilience4j's count-based breaker: <https://resilience4j.readme.io/docs/circuitbreaker>. The outcome is read at the END of a
//! stream, where gRPC puts its status.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use metrics::{Gauge, gauge};
use tokio::time::Instant;
use tonic::Code;
use tonic::body::Body;
use tower::Service;

use crate::call::Call;
use crate::outcome;
use crate::status::{DEPENDENCY_HEADER, NOT_ASKED_HEADER, Problem, UNAVAILABLE};

/// Methods that have something in common, judged together and apart from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// They change nothing.
    Read,
    /// They change something.
    Write,
    /// They hash a password, which takes long.
    Login,
}

impl Class {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Login];

    /// In metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Login => "login",
        }
    }
}

/// When calls stop, and for how long.
#[derive(Debug, Clone)]
pub struct BreakerSettings {
    /// How many of the last calls are judged.
    pub window: usize,
    /// Fewer calls than this are not judged.
    pub calls_min: usize,
    /// Per cent of failures, or of slow calls, at which it opens.
    pub threshold_percent: usize,
    /// A call that takes longer is slow.
    pub slow_after: Duration,
    /// How long it stays open.
    pub open_for: Duration,
    /// Probes that are let through at once when half-open.
    pub probes: usize,
    /// A half-open breaker whose probes do not end goes back to open after so long.
    pub half_open_max: Duration,
}

impl Default for BreakerSettings {
    /// 10 / 5 / 50% / 5 s, as the source documents name them.
    fn default() -> Self {
        Self {
            window: 10,
            calls_min: 5,
            threshold_percent: 50,
            slow_after: Duration::from_secs(4),
            open_for: Duration::from_secs(5),
            probes: 3,
            half_open_max: Duration::from_secs(10),
        }
    }
}

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Calls pass and are judged.
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls pass as probes.
    HalfOpen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Good,
    Failed,
    Slow,
}

#[derive(Debug)]
struct Inner {
    state: State,
    since: Instant,
    /// Raised at every change of state: what a call began under another state says nothing about this one.
    epoch: u64,
    window: VecDeque<Outcome>,
    probes_out: usize,
}

/// The state machine, apart from its wiring.
#[derive(Debug, Clone)]
pub struct Breaker {
    settings: BreakerSettings,
    inner: Arc<Mutex<Inner>>,
    gauge: GaugeHandle,
}

#[derive(Clone)]
struct GaugeHandle(Gauge);

impl std::fmt::Debug for GaugeHandle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Gauge")
    }
}

/// Leave to make one call; its outcome must be reported, and a dropped permit reports nothing but frees a probe.
#[derive(Debug)]
pub struct Permit {
    breaker: Breaker,
    epoch: u64,
    started: Instant,
    waits: bool,
    reported: bool,
}

impl Breaker {
    /// A closed breaker for calls to `target`.
    pub fn new(target: &'static str, class: &'static str, settings: BreakerSettings) -> Self {
        let inner = Inner { state: State::Closed, since: Instant::now(), epoch: 0, window: VecDeque::new(), probes_out: 0 };
        let breaker = Self {
            settings,
            inner: Arc::new(Mutex::new(inner)),
            gauge: GaugeHandle(gauge!("lastro_breaker_state", "target" => target, "class" => class)),
        };
        breaker.gauge.0.set(0.0);
        breaker
    }

    /// Where it stands now.
    pub fn state(&self) -> State {
        let mut inner = self.lock();
        self.tick(&mut inner);
        inner.state
    }

    /// Asks to make a call; None while it is open or all probes are out.
    pub fn acquire(&self, waits: bool) -> Option<Permit> {
        let mut inner = self.lock();
        self.tick(&mut inner);
        match inner.state {
            State::Closed => {}
            State::Open => return None,
            State::HalfOpen if inner.probes_out + inner.window.len() >= self.settings.probes => return None,
            State::HalfOpen => inner.probes_out += 1,
        }
        Some(Permit { breaker: self.clone(), epoch: inner.epoch, started: Instant::now(), waits, reported: false })
    }

    /// How long it stays open, from now.
    fn open_for_now(&self) -> Duration {
        let elapsed = self.lock().since.elapsed();
        self.settings.open_for.saturating_sub(elapsed).max(Duration::from_millis(100))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What time alone changes.
    fn tick(&self, inner: &mut Inner) {
        match inner.state {
            State::Open if inner.since.elapsed() >= self.settings.open_for => self.change(inner, State::HalfOpen),
            // Few calls come: what those that came say counts. Where none has ended, and some are out, they are stuck; where none came, nothing is known.
            State::HalfOpen if inner.since.elapsed() >= self.settings.half_open_max => match (inner.window.is_empty(), inner.probes_out) {
                (false, _) if self.is_bad(inner) => self.change(inner, State::Open),
                (false, _) => self.change(inner, State::Closed),
                (true, 0) => {}
                (true, _) => self.change(inner, State::Open),
            },
            _ => {}
        }
    }

    fn change(&self, inner: &mut Inner, state: State) {
        *inner = Inner { state, since: Instant::now(), epoch: inner.epoch + 1, window: VecDeque::new(), probes_out: 0 };
        self.gauge.0.set(match state {
            State::Closed => 0.0,
            State::HalfOpen => 0.5,
            State::Open => 1.0,
        });
    }

    fn record(&self, inner: &mut Inner, outcome: Outcome) {
        inner.window.push_back(outcome);
        let (needed, size) = match inner.state {
            State::Closed => (self.settings.calls_min, self.settings.window),
            State::HalfOpen => (self.settings.probes, self.settings.probes),
            State::Open => return,
        };
        while inner.window.len() > size {
            inner.window.pop_front();
        }
        let calls = inner.window.len();
        if calls < needed.min(size) {
            return;
        }
        if self.is_bad(inner) {
            self.change(inner, State::Open);
        } else if inner.state == State::HalfOpen {
            self.change(inner, State::Closed);
        }
    }
}

impl Breaker {
    /// Whether too many of the calls that are judged failed, or were slow.
    fn is_bad(&self, inner: &Inner) -> bool {
        let calls = inner.window.len();
        let share_reached = |what: Outcome| inner.window.iter().filter(|one| **one == what).count() * 100 >= self.settings.threshold_percent * calls;
        share_reached(Outcome::Failed) || share_reached(Outcome::Slow)
    }
}

impl Permit {
    /// Tells how the call ended.
    pub fn report(mut self, code: Code) {
        let elapsed = self.started.elapsed();
        let slow = !self.waits && elapsed >= self.breaker.settings.slow_after;
        let outcome = match code {
            // It is away, too slow, or says what is no answer. Any other no is one to this request alone, also RESOURCE_EXHAUSTED and
            // INTERNAL: whoever makes a service say it over and over must not take it away from everybody else.
            Code::DeadlineExceeded if elapsed < PATIENCE => None,
            // Whoever waits for an outcome waits as long as it likes.
            Code::DeadlineExceeded if self.waits => None,
            Code::Unavailable | Code::DeadlineExceeded | Code::Unknown => Some(Outcome::Failed),
            // The caller went away: that says nothing about the service.
            Code::Cancelled => None,
            _ if slow => Some(Outcome::Slow),
            _ => Some(Outcome::Good),
        };
        self.settle(outcome);
    }

    fn settle(&mut self, outcome: Option<Outcome>) {
        if std::mem::replace(&mut self.reported, true) {
            return;
        }
        let mut inner = self.breaker.lock();
        if inner.epoch != self.epoch {
            return;
        }
        if inner.state == State::HalfOpen {
            inner.probes_out = inner.probes_out.saturating_sub(1);
        }
        if let Some(outcome) = outcome {
            self.breaker.record(&mut inner, outcome);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.settle(None);
    }
}

/// A deadline that is shorter says nothing about the service: anybody may set one of a millisecond.
const PATIENCE: Duration = Duration::from_millis(500);

/// Marks an answer that an open breaker gave: its time is for the caller to wait, and further attempts are of no use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refused;

/// One breaker for each class of methods: what is wrong with the logins says nothing about payments.
#[derive(Debug, Clone)]
pub(super) struct Breakers(Arc<[Breaker; Class::ALL.len()]>);

impl Breakers {
    pub(super) fn new(target: &'static str, settings: &BreakerSettings) -> Self {
        Self(Arc::new(Class::ALL.map(|class| Breaker::new(target, class.name(), settings.clone()))))
    }

    fn of(&self, class: Class) -> &Breaker {
        &self.0[class as usize]
    }
}

#[derive(Clone)]
pub(super) struct Guard<S> {
    pub inner: S,
    pub breakers: Breakers,
    pub class: fn(&str) -> Class,
}

impl<S> Service<Request<Body>> for Guard<S>
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
        let call = request.extensions().get::<Call>();
        let (waits, streams) = call.map_or((false, false), |call| (call.waits, call.streams));
        let breaker = self.breakers.of((self.class)(request.uri().path()));
        let Some(permit) = breaker.acquire(waits) else {
            let problem = Problem::new(&UNAVAILABLE, "the service is away; calls to it pause").retry_after(breaker.open_for_now());
            let mut refusal: Response<Body> = tonic::Status::from(problem).into_http();
            refusal.headers_mut().insert(NOT_ASKED_HEADER, HeaderValue::from_static("1"));
            refusal.extensions_mut().insert(Refused);
            return Box::pin(std::future::ready(Ok(refusal)));
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            // Another service is away, or there are too many callers: that says nothing about this one, however long it took to say so.
            let of_others = response.headers().contains_key(DEPENDENCY_HEADER);
            let report = move |code| permit.report(if of_others { Code::Cancelled } else { code });
            Ok(if streams { outcome::observe_head(response, report) } else { outcome::observe(response, report) })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> Breaker {
        Breaker::new("test", "write", BreakerSettings::default())
    }

    fn call(breaker: &Breaker, code: Code) -> bool {
        breaker.acquire(false).map(|permit| permit.report(code)).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn opens_at_half_of_at_least_five() {
        let breaker = breaker();
        for code in [Code::Ok, Code::Ok, Code::Unavailable, Code::Unavailable] {
            assert!(call(&breaker, code));
            assert_eq!(breaker.state(), State::Closed);
        }
        assert!(call(&breaker, Code::Unavailable));
        assert_eq!(breaker.state(), State::Open);
        assert!(!call(&breaker, Code::Ok));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_opens_it_only_if_there_was_time() {
        for (patience, state) in [(Duration::from_millis(1), State::Closed), (Duration::from_secs(1), State::Open)] {
            let breaker = breaker();
            for _ in 0..5 {
                let permit = breaker.acquire(false).expect("closed until the fifth");
                tokio::time::advance(patience).await;
                permit.report(Code::DeadlineExceeded);
            }
            assert_eq!(breaker.state(), state, "{patience:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_are_the_callers_fault_do_not_open_it() {
        let breaker = breaker();
        for code in [Code::ResourceExhausted, Code::Internal, Code::DataLoss].repeat(5) {
            assert!(call(&breaker, code), "nobody takes a service away by making it say no");
        }
        for code in [Code::NotFound, Code::InvalidArgument, Code::Unauthenticated, Code::Cancelled, Code::AlreadyExists].repeat(5) {
            assert!(call(&breaker, code));
        }
        assert_eq!(breaker.state(), State::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn half_open_lets_a_few_probes_through_and_closes_when_they_succeed() {
        let breaker = breaker();
        (0..5).for_each(|_| assert!(call(&breaker, Code::Unavailable)));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(breaker.state(), State::HalfOpen);
        let probes: Vec<_> = (0..4).map(|_| breaker.acquire(false)).collect();
        assert_eq!(probes.iter().flatten().count(), 3);
        probes.into_iter().flatten().for_each(|probe| probe.report(Code::Ok));
        assert_eq!(breaker.state(), State::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_probe_opens_it_again_and_a_lost_one_frees_its_place() {
        let breaker = breaker();
        (0..5).for_each(|_| assert!(call(&breaker, Code::Unavailable)));
        tokio::time::advance(Duration::from_secs(5)).await;
        drop((0..3).map(|_| breaker.acquire(false)).collect::<Vec<_>>());
        assert!(call(&breaker, Code::Ok));
        assert!(call(&breaker, Code::Unavailable));
        assert!(call(&breaker, Code::Unavailable));
        assert_eq!(breaker.state(), State::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn probes_that_never_end_do_not_hold_it_half_open() {
        let breaker = breaker();
        (0..5).for_each(|_| assert!(call(&breaker, Code::Unavailable)));
        tokio::time::advance(Duration::from_secs(5)).await;
        let _stuck: Vec<_> = (0..3).map(|_| breaker.acquire(false)).collect();
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(breaker.state(), State::Open);
    }

    /// One call each six seconds to a service that is well again: the first good ones close it.
    #[tokio::test(start_paused = true)]
    async fn few_calls_close_it_as_well() {
        let breaker = breaker();
        (0..5).for_each(|_| assert!(call(&breaker, Code::Unavailable)));
        let mut refused = 0;
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(6)).await;
            refused += usize::from(!call(&breaker, Code::Ok));
        }
        assert_eq!((refused, breaker.state()), (0, State::Closed));
        // Nobody calls for long: nothing is known, and the next call is a probe.
        (0..5).for_each(|_| assert!(call(&breaker, Code::Unavailable)));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(call(&breaker, Code::Ok));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(breaker.state(), State::Closed);
        // A probe that fails opens it again, also where only one comes.
        (0..10).for_each(|_| {
            call(&breaker, Code::Unavailable);
        });
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(call(&breaker, Code::Unavailable));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(breaker.state(), State::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn classes_are_judged_apart() {
        let breakers = Breakers::new("test", &BreakerSettings::default());
        (0..5).for_each(|_| assert!(call(breakers.of(Class::Login), Code::Unavailable)));
        assert_eq!(Class::ALL.map(|class| breakers.of(class).state()), [State::Closed, State::Closed, State::Open]);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_calls_open_it_unless_they_wait_for_an_outcome() {
        let breaker = breaker();
        for waits in [true, false] {
            let permits: Vec<_> = (0..5).filter_map(|_| breaker.acquire(waits)).collect();
            tokio::time::advance(Duration::from_secs(4)).await;
            permits.into_iter().for_each(|permit| permit.report(Code::Ok));
            assert_eq!(breaker.state(), if waits { State::Closed } else { State::Open });
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }
    /// Streams that last, and that end because their replica stops or their caller leaves, say nothing of how the service answers.
    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_stream_is_no_outcome_and_a_refused_one_is() {
        use http_body_util::StreamBody;
        let ended = |code: Code| {
            let trailers = tonic::Status::new(code, "").into_http::<Body>().headers().clone();
            let frames = futures_util::stream::once(async move {
                tokio::time::sleep(Duration::from_secs(60)).await;
                Ok::<_, tonic::Status>(http_body::Frame::trailers(trailers))
            });
            Response::new(Body::new(StreamBody::new(Box::pin(frames))))
        };
        let settings = BreakerSettings::default();
        let breakers = Breakers::new("test", &settings);
        let streams = |answer: Response<Body>| {
            let answer = std::sync::Mutex::new(Some(answer));
            let inner = tower::service_fn(move |_: Request<Body>| {
                std::future::ready(Ok::<_, Infallible>(answer.lock().expect("not poisoned").take().expect("one call")))
            });
            let mut request = Request::new(Body::empty());
            request.extensions_mut().insert(Call { streams: true, ..Call::start(Duration::from_secs(5)) });
            tower::ServiceExt::oneshot(Guard { inner, breakers: breakers.clone(), class: |_| Class::Read }, request)
        };
        for code in [Code::Unavailable, Code::Ok, Code::Unauthenticated].into_iter().cycle().take(12) {
            let answer = streams(ended(code)).await.expect("infallible");
            http_body_util::BodyExt::collect(answer.into_body()).await.expect("the end");
        }
        assert_eq!(breakers.of(Class::Read).state(), State::Closed);
        for _ in 0..10 {
            let _ = streams(tonic::Status::unavailable("").into_http()).await;
        }
        assert_eq!(breakers.of(Class::Read).state(), State::Open);
    }
}
