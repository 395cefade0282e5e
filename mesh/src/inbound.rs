//! The inbound stack: what every call passes before a handler sees it.

mod content;
mod correlation;
mod deadline;
mod frame;
mod heartbeat;
mod identity;
mod receive;
mod shed;
mod streaming;
mod telemetry;

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceBuilder};

pub use self::correlation::{ClientAddress, FORWARDED_FOR, client_address};
use crate::identity::{Access, TokenVerifier};
use crate::metrics::MethodMetrics;

/// Any gRPC service on the level of HTTP.
pub type GrpcService = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// What the stack needs to know of a service.
#[derive(Clone)]
pub struct Inbound {
    /// The service's name in logs and metrics.
    pub service: &'static str,
    /// What each method, by its path on the wire, asks of its caller. A path that is not listed is refused, but for health and reflection.
    pub access: Arc<HashMap<&'static str, Access>>,
    /// Verifies users' tokens.
    pub verifier: Arc<TokenVerifier>,
    /// Calls at once; what exceeds it is refused at once.
    pub concurrency_max: usize,
    /// The largest request message of each method, in bytes. What is not listed streams, and is not received beforehand.
    pub request_bytes_max: Arc<HashMap<&'static str, usize>>,
    /// The methods that answer again and again.
    pub streaming: Arc<HashSet<&'static str>>,
    /// Ends streams when the process is told to stop.
    pub stop: CancellationToken,
    /// The deadline of a caller that set none.
    pub timeout_default: Duration,
    /// The longest deadline that is kept.
    pub timeout_max: Duration,
    /// Metric handles, one set a method.
    pub metrics: Arc<MethodMetrics>,
}

impl Inbound {
    /// Puts the stack in front of a service.
    pub fn wrap<S>(&self, service: S) -> GrpcService
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send,
    {
        let stack = ServiceBuilder::new()
            // What is not gRPC is not answered in it.
            .layer_fn(|inner| content::Content { inner })
            // First of all that is gRPC, so that every answer and every log line below bears the ids.
            .layer_fn(|inner| correlation::Correlation { inner, service: self.service })
            // Outside of everything that may refuse, so that refusals are counted and timed as well.
            .layer_fn(|inner| telemetry::Telemetry { inner, metrics: self.metrics.clone() })
            // Outside of the deadline, which guards until the head of the answer, and inside of what judges its end.
            .layer_fn(|inner| heartbeat::Heartbeat { inner })
            // Before any waiting, so that waiting counts.
            .layer_fn(|inner| deadline::Deadline {
                inner,
                timeout_default: self.timeout_default,
                timeout_max: self.timeout_max,
                streaming: self.streaming.clone(),
            })
            // Outside of the slots: who sends a request by halves must not hold one.
            .layer_fn(|inner| receive::Receive::new(inner, self.request_bytes_max.clone()))
            // Before anything that costs, such as a signature.
            .layer_fn(|inner| shed::Shed::new(inner, self.concurrency_max))
            // Inside of the slots, which are for what ends soon.
            .layer_fn(|inner| streaming::Streaming::new(inner, self.streaming.clone(), self.stop.clone(), self.verifier.clone()))
            // Last: validation follows in the codec when the handler's request is decoded.
            .layer_fn(|inner| identity::Identity { inner, access: self.access.clone(), verifier: self.verifier.clone() })
            .service(service);
        BoxCloneSyncService::new(stack)
    }
}
