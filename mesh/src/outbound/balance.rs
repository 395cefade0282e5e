//! Chooses one of a service's endpoints for each call: of two at random the one that would answer sooner, by its calls in flight and the
//! peak of its latency (P2C with peak EWMA, as in Finagle and linkerd2: <https://twitter.github.io/finagle/guide/Clients.html#load-balancing>).
//! Two random choices are nearly as good as knowing all, and do not send everybody to the same one. An endpoint that keeps failing is left
//! out for a while, but never all of them. What never left this process goes to another endpoint at once.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use metrics::{Gauge, gauge};
use tokio::time::Instant;
use tonic::Code;
use tonic::body::Body;
use tower::Service;

use super::connect::{Connections, Failure};
use crate::call::Call;
use crate::outcome;
use crate::status::{Problem, UNAVAILABLE};
use crate::tls::Tls;

/// How fast an old latency is forgotten.
const DECAY: Duration = Duration::from_secs(10);
/// Failures in a row until an endpoint is left out.
const FAILURES_MAX: u32 = 5;
/// For how long, the first time; twice as long each time until it answers again.
const EJECTED_FOR: Duration = Duration::from_secs(5);
const EJECTED_MAX: Duration = Duration::from_secs(40);
/// A call that is given up after so long without an answer counts against the endpoint; before that, its caller just left, or had no time.
const PATIENCE: Duration = Duration::from_millis(500);

/// The endpoints of one service.
#[derive(Clone)]
pub(super) struct Balance(Arc<Inner>);

struct Inner {
    target: &'static str,
    tls: Option<Arc<Tls>>,
    authority: Authority,
    endpoints: RwLock<Arc<[Arc<Endpoint>]>>,
    known: Gauge,
    ejected: Gauge,
}

struct Endpoint {
    address: SocketAddr,
    connections: Connections,
    in_flight: AtomicUsize,
    health: Mutex<Health>,
}

/// What is known of an endpoint, apart from its wiring.
#[derive(Debug, Clone, Copy, Default)]
struct Health {
    /// Peak EWMA of the latency, and when it was last changed.
    latency: Option<(Duration, Instant)>,
    failures: u32,
    ejections: u32,
    ejected_until: Option<Instant>,
}

impl Health {
    fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_until.is_some_and(|until| now < until)
    }

    /// A latency above the average replaces it at once, one below it draws it down slowly.
    #[allow(clippy::float_arithmetic, reason = "an average of latencies is no money")]
    fn answered(&mut self, latency: Duration, now: Instant) {
        let average = match self.latency {
            Some((average, at)) if latency < average => {
                let weight = (-now.saturating_duration_since(at).as_secs_f64() / DECAY.as_secs_f64()).exp();
                average.mul_f64(weight) + latency.mul_f64(1.0 - weight)
            }
            _ => latency,
        };
        self.latency = Some((average, now));
    }

    /// The latency to expect: what is long ago counts for less, so that an endpoint that was slow is tried again when nobody was sent there.
    #[allow(clippy::float_arithmetic, reason = "an average of latencies is no money")]
    fn expected(&self, now: Instant) -> Duration {
        self.latency
            .map_or(Duration::ZERO, |(average, at)| average.mul_f64((-now.saturating_duration_since(at).as_secs_f64() / DECAY.as_secs_f64()).exp()))
    }

    /// A caller lost its patience: a failure, and at least so slow.
    fn kept_waiting(&mut self, waited: Duration, now: Instant) {
        self.answered(waited, now);
        self.failed(now);
    }

    fn succeeded(&mut self) {
        (self.failures, self.ejections, self.ejected_until) = (0, 0, None);
    }

    fn failed(&mut self, now: Instant) {
        self.failures += 1;
        if self.failures >= FAILURES_MAX && !self.is_ejected(now) {
            let long = EJECTED_FOR.saturating_mul(1 << self.ejections.min(10)).min(EJECTED_MAX);
            (self.failures, self.ejections, self.ejected_until) = (0, self.ejections + 1, Some(now + long));
        }
    }
}

impl Balance {
    pub(super) fn new(target: &'static str, tls: Option<Arc<Tls>>) -> Self {
        let inner = Inner {
            authority: Authority::from_static(target),
            endpoints: RwLock::new(Arc::from([])),
            known: gauge!("lastro_endpoints", "target" => target),
            ejected: gauge!("lastro_endpoints_ejected", "target" => target),
            target,
            tls,
        };
        Self(Arc::new(inner))
    }

    /// Replaces the endpoints; those that stay keep their connections and what is known of them.
    pub(super) fn set(&self, addresses: &[SocketAddr]) {
        let known = self.endpoints();
        let endpoint = |address: &SocketAddr| {
            let old = known.iter().find(|endpoint| endpoint.address == *address).cloned();
            old.unwrap_or_else(|| Arc::new(Endpoint::new(self.0.target, *address, self.0.tls.clone())))
        };
        let endpoints: Arc<[Arc<Endpoint>]> = addresses.iter().map(endpoint).collect();
        self.0.known.set(endpoints.len() as f64);
        *self.0.endpoints.write().unwrap_or_else(PoisonError::into_inner) = endpoints;
    }

    fn endpoints(&self) -> Arc<[Arc<Endpoint>]> {
        self.0.endpoints.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One that was not tried yet: of two at random the better one.
    fn pick(&self, tried: &[SocketAddr]) -> Option<Arc<Endpoint>> {
        let (all, now) = (self.endpoints(), Instant::now());
        let in_use: Vec<&Arc<Endpoint>> = all.iter().filter(|endpoint| !endpoint.health().is_ejected(now)).collect();
        self.0.ejected.set((all.len() - in_use.len()) as f64);
        // Never all of them: with none left, each is as good as any.
        let candidates: Vec<&Arc<Endpoint>> = if in_use.is_empty() { all.iter().collect() } else { in_use };
        let fresh: Vec<&Arc<Endpoint>> = candidates.into_iter().filter(|endpoint| !tried.contains(&endpoint.address)).collect();
        let chosen = match fresh.len() {
            0 => return None,
            1 => fresh[0],
            count => {
                let first = rand::random_range(0..count);
                let second = (first + rand::random_range(1..count)) % count;
                if fresh[first].cost() <= fresh[second].cost() { fresh[first] } else { fresh[second] }
            }
        };
        Some(chosen.clone())
    }

    async fn call_one(&self, mut request: Request<Body>) -> Response<Body> {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(if self.0.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP });
        parts.authority = Some(self.0.authority.clone());
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        let call = request.extensions().get::<Call>();
        let (waits, streams) = call.map_or((false, false), |call| (call.waits, call.streams));
        let mut tried = Vec::new();
        while let Some(endpoint) = self.pick(&tried) {
            tried.push(endpoint.address);
            let flight = Flight::start(endpoint.clone(), waits);
            match endpoint.connections.send(request).await {
                Ok(response) if streams => return outcome::observe_head(response, |code| flight.end(code)),
                Ok(response) => return outcome::observe_target(response, move |code| flight.end(code)),
                Err(Failure::NotSent(unsent, error)) => {
                    tracing::info!(target_service = self.0.target, error, "an endpoint cannot be reached");
                    flight.end(Code::Unavailable);
                    request = *unsent;
                }
                Err(Failure::Lost(error)) => {
                    tracing::warn!(target_service = self.0.target, address = %endpoint.address, error, "a call was lost with its connection");
                    flight.end(Code::Unavailable);
                    return refuse("the connection to the service was lost; whether the call was done is not known");
                }
            }
        }
        let mut refusal = refuse("the service cannot be reached");
        refusal.extensions_mut().insert(NotSent);
        refusal
    }
}

fn refuse(why: &str) -> Response<Body> {
    // Soon: another endpoint, or a new connection, may do.
    tonic::Status::from(Problem::new(&UNAVAILABLE, why).retry_after(Duration::from_millis(100))).into_http()
}

impl Endpoint {
    fn new(target: &'static str, address: SocketAddr, tls: Option<Arc<Tls>>) -> Self {
        Self { address, connections: Connections::new(target, address, tls), in_flight: AtomicUsize::new(0), health: Mutex::default() }
    }

    fn health(&self) -> Health {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Health)) {
        change(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Nanoseconds until a further call would be answered, about.
    fn cost(&self) -> u128 {
        let latency = self.health().expected(Instant::now()).max(Duration::from_micros(1));
        latency.as_nanos() * (self.in_flight.load(Ordering::Relaxed) as u128 + 1)
    }
}

/// A call on its way; what becomes of it is told to its endpoint when it ends, or is dropped.
struct Flight {
    endpoint: Arc<Endpoint>,
    started: Instant,
    waits: bool,
    ended: bool,
}

impl Flight {
    fn start(endpoint: Arc<Endpoint>, waits: bool) -> Self {
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        Self { endpoint, started: Instant::now(), waits, ended: false }
    }

    fn end(mut self, code: Code) {
        self.ended = true;
        let (now, latency) = (Instant::now(), self.started.elapsed());
        self.endpoint.change(|health| match code {
            Code::Unavailable => health.failed(now),
            Code::Cancelled if self.waits => {}
            Code::Cancelled | Code::DeadlineExceeded if latency < PATIENCE => {}
            Code::Cancelled | Code::DeadlineExceeded if self.waits => health.failed(now),
            Code::Cancelled | Code::DeadlineExceeded => health.kept_waiting(latency, now),
            _ => {
                health.succeeded();
                // Patience is not latency.
                if !self.waits {
                    health.answered(latency, now);
                }
            }
        });
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
        let (now, waited) = (Instant::now(), self.started.elapsed());
        if !self.ended && !self.waits && waited >= PATIENCE {
            self.endpoint.change(|health| health.kept_waiting(waited, now));
        }
    }
}

impl Service<Request<Body>> for Balance {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let balance = self.clone();
        Box::pin(async move { Ok(balance.call_one(request).await) })
    }
}

/// On a refusal: nothing of the call went out, so that it was not done.
#[derive(Clone)]
pub(super) struct NotSent;

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(count: u16) -> Vec<SocketAddr> {
        (1..=count).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_latency_rises_at_once_and_falls_slowly() {
        let (mut health, start) = (Health::default(), Instant::now());
        health.answered(Duration::from_millis(10), start);
        health.answered(Duration::from_millis(100), start);
        assert_eq!(health.latency, Some((Duration::from_millis(100), start)));
        health.answered(Duration::from_millis(10), start + DECAY);
        let (average, _) = health.latency.expect("measured");
        // One time constant: 10 + 90 / e.
        assert!((Duration::from_millis(43)..Duration::from_millis(44)).contains(&average), "{average:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_keeps_failing_is_left_out_longer_each_time() {
        let (mut health, start) = (Health::default(), Instant::now());
        (0..FAILURES_MAX - 1).for_each(|_| health.failed(start));
        assert!(!health.is_ejected(start));
        health.failed(start);
        assert!(health.is_ejected(start) && !health.is_ejected(start + EJECTED_FOR));
        let later = start + EJECTED_FOR;
        (0..FAILURES_MAX).for_each(|_| health.failed(later));
        assert!(health.is_ejected(later + EJECTED_FOR) && !health.is_ejected(later + 2 * EJECTED_FOR));
        health.succeeded();
        assert!(!health.is_ejected(later));
    }

    #[tokio::test(start_paused = true)]
    async fn the_better_of_two_is_taken_and_never_are_all_left_out() {
        let balance = Balance::new("test", None);
        assert!(balance.pick(&[]).is_none());
        balance.set(&addresses(2));
        let slow = balance.endpoints()[0].clone();
        slow.change(|health| health.answered(Duration::from_secs(1), Instant::now()));
        assert!((0..50).all(|_| balance.pick(&[]).is_some_and(|picked| picked.address != slow.address)));
        let quick = balance.endpoints()[1].clone();
        let answered = |endpoint: &Endpoint, ms| endpoint.change(|health| health.answered(Duration::from_millis(ms), Instant::now()));
        answered(&quick, 2);
        assert!(balance.pick(&[]).is_some_and(|picked| picked.address == quick.address));
        // Nobody was sent to the slow one since; in the end it is tried again.
        tokio::time::advance(8 * DECAY).await;
        answered(&quick, 2);
        assert!(balance.pick(&[]).is_some_and(|picked| picked.address == slow.address));
        // Who waited in vain tells the next one.
        slow.change(|health| health.kept_waiting(Duration::from_secs(2), Instant::now()));
        assert!(balance.pick(&[]).is_some_and(|picked| picked.address == quick.address));
        assert!(balance.pick(&addresses(2)).is_none(), "both were tried");
        for endpoint in balance.endpoints().iter() {
            (0..FAILURES_MAX).for_each(|_| endpoint.change(|health| health.failed(Instant::now())));
        }
        assert!(balance.pick(&[]).is_some());
        // An endpoint that stays keeps what is known of it.
        balance.set(&addresses(3));
        assert!(balance.endpoints()[0].health().is_ejected(Instant::now()));
        assert!((0..50).all(|_| balance.pick(&[]).is_some_and(|picked| picked.address == addresses(3)[2])));
    }
}
