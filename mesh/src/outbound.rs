//! The outbound stack: what every call to another service passes between the caller and the wire.

mod balance;
mod breaker;
mod bulkhead;
mod connect;
mod deadline;
mod discover;
mod late;
mod retry;
mod telemetry;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceBuilder};

use self::balance::Balance;
use self::breaker::Breakers;
pub use self::breaker::{Breaker, BreakerSettings, Class, State as BreakerState};
pub use self::discover::check_place;
pub use self::late::{Late, LateNear};
pub use self::retry::RetryBudget;
use crate::health::Health;
use crate::identity::LocalPeer;
use crate::inbound::GrpcService;
use crate::metrics::MethodMetrics;
use crate::supervise::{Work, keep_running};
use crate::tls::Tls;

/// A client's channel with the whole stack; generated clients take it.
pub type Outbound = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// The settings of one client. Defaults are the documents'.
#[derive(Clone)]
pub struct OutboundSettings {
    /// The service that is called, in logs and metrics.
    pub target: &'static str,
    /// For a call whose caller set no deadline, or a longer one.
    pub timeout: Duration,
    /// Attempts in all.
    pub attempts_max: usize,
    /// Calls at once.
    pub concurrency_max: usize,
    /// Calls that wait for their turn.
    pub queue_max: usize,
    /// When calls stop for a while.
    pub breaker: BreakerSettings,
    /// Whether a method may be called again when nobody knows whether it was done.
    pub retry_safe: fn(&str) -> bool,
    /// With which other methods a method is judged.
    pub class: fn(&str) -> Class,
    /// Metric handles, one set a method.
    pub metrics: Arc<MethodMetrics>,
}

impl OutboundSettings {
    /// The defaults for a service: 5 s, 3 attempts, 256 at once, the breaker of `BreakerSettings::default`.
    pub fn new(target: &'static str, retry_safe: fn(&str) -> bool, class: fn(&str) -> Class, metrics: Arc<MethodMetrics>) -> Self {
        Self {
            target,
            timeout: Duration::from_secs(5),
            attempts_max: 3,
            concurrency_max: 256,
            queue_max: 4096,
            breaker: BreakerSettings::default(),
            retry_safe,
            class,
            metrics,
        }
    }

    /// Puts the stack in front of a connection.
    pub fn wrap<S>(&self, connection: S) -> Outbound
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send,
    {
        let stack = ServiceBuilder::new()
            // The caller's view of the call, whatever happens below.
            .layer_fn(|inner| telemetry::Telemetry { inner, target: self.target, metrics: self.metrics.clone() })
            // Absolute: attempts, waiting and the body all count, and what is left goes on the wire.
            .layer_fn(|inner| deadline::Deadline { inner, timeout: self.timeout })
            // Above the breaker, so that each attempt is judged and an open breaker ends the attempts.
            .layer_fn(|inner| retry::Retry::new(inner, self.attempts_max, self.retry_safe, self.class))
            // Above the bulkhead, so that an open breaker refuses without queueing.
            .layer_fn(|inner| breaker::Guard { inner, breakers: Breakers::new(self.target, &self.breaker), class: self.class })
            // Bounds what one slow service may hold.
            .layer_fn(|inner| bulkhead::Bulkhead::new(inner, self.concurrency_max, self.queue_max))
            // Balancing over several endpoints and outlier ejection stand below, next to the wire: see `far`.
            .service(connection);
        BoxCloneSyncService::new(stack)
    }
}

/// A service in the same process: the same bytes and the same inbound stack, without a socket.
pub fn near(service: GrpcService, caller: &'static str) -> Near {
    Near { service, caller }
}

/// See [`near`].
#[derive(Clone)]
pub struct Near {
    service: GrpcService,
    caller: &'static str,
}

impl Service<Request<Body>> for Near {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = <GrpcService as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        request.extensions_mut().insert(LocalPeer(self.caller));
        self.service.call(request)
    }
}

/// A service of its own: at places that are addresses or DNS names, over HTTP/2 with mutual TLS, or in plain text on loopback. They are
/// looked for until the last clone is dropped.
pub fn far(target: &'static str, places: Vec<String>, tls: Option<Arc<Tls>>) -> Far {
    let balance = Balance::new(target, tls);
    let (sender, found) = watch::channel(false);
    let (looks_up, sender, places, stop) = (balance.clone(), Arc::new(sender), Arc::new(places), CancellationToken::new());
    tokio::spawn(async move {
        let work = Work { name: "discovery", check: "discovery", is_essential: false };
        let begin = || {
            let (balance, places, sender, stop) = (looks_up.clone(), places.clone(), sender.clone(), stop.clone());
            async move {
                discover::follow(&balance, target, &places, &sender).await;
                // Nobody is interested any more.
                stop.cancel();
            }
        };
        // Readiness is not its business: what was found once stays known.
        keep_running(work, &Health::new(), &stop, begin).await;
    });
    Far { balance, found }
}

/// See [`far`].
#[derive(Clone)]
pub struct Far {
    balance: Balance,
    found: watch::Receiver<bool>,
}

impl Far {
    /// Becomes true when the first endpoint is found.
    pub fn found(&self) -> watch::Receiver<bool> {
        self.found.clone()
    }
}

impl Service<Request<Body>> for Far {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.balance.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.balance.call(request)
    }
}
