//! Putting services behind their inbound stacks, and several of them on one listener.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Result;
use lastro_mesh::call::Call;
use lastro_mesh::health::Health;
use lastro_mesh::identity::{KeySource, PublicKey, TokenVerifier};
use lastro_mesh::inbound::{GrpcService, Inbound};
use lastro_mesh::metrics::MethodMetrics;
use lastro_mesh::outbound::{Outbound, OutboundSettings};
use lastro_proto::customers::v1::GetJwksRequest;
use lastro_proto::customers::v1::auth_service_client::AuthServiceClient;
use lastro_proto::methods::{self, METHODS, class_of, is_retry_safe};
use lastro_service::events::PACKAGE;
use lastro_service::{Job, Service};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::http::{HeaderName, HeaderValue, Method, Request, Response};
use tonic::service::Routes;
use tonic_health::pb::health_server::{Health as HealthRpc, HealthServer};
use tonic_health::server::HealthReporter;
use tower::Layer as _;
use tower::util::BoxCloneSyncService;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::process::Process;
use crate::services::methods_of;

/// The method of `grpc.health.v1` that takes one message, and how large that may be: what streams has places of its own, and probes need none of them.
const HEALTH_CHECK: (&str, usize) = ("/grpc.health.v1.Health/Check", 4096);

/// What calls may take of a service.
#[derive(Clone, Copy)]
pub struct CallLimits {
    /// Calls at once.
    pub concurrency_max: usize,
    /// The longest deadline that is kept, and the deadline of a gRPC caller that set none.
    pub deadline_max: Duration,
}

/// The inbound stack of one service.
pub fn inbound(service: &'static Service, verifier: &Arc<TokenVerifier>, limits: CallLimits, stop: &CancellationToken) -> Inbound {
    stack(service.name, methods_of(service), verifier, limits, stop)
}

/// The inbound stack of what every listener has beside its services: health and reflection.
pub fn inbound_common(verifier: &Arc<TokenVerifier>, limits: CallLimits, stop: &CancellationToken) -> Inbound {
    stack("lastro", std::iter::empty(), verifier, limits, stop)
}

fn stack(
    name: &'static str,
    methods: impl Iterator<Item = &'static methods::Method> + Clone,
    verifier: &Arc<TokenVerifier>,
    limits: CallLimits,
    stop: &CancellationToken,
) -> Inbound {
    let own = || methods.clone();
    Inbound {
        service: name,
        access: Arc::new(own().map(|method| (method.path, method.access)).collect()),
        verifier: verifier.clone(),
        concurrency_max: limits.concurrency_max,
        request_bytes_max: Arc::new(own().map(|method| (method.path, method.request_bytes_max)).chain([HEALTH_CHECK]).collect()),
        streaming: Arc::new(own().filter(|method| method.streams).map(|method| method.path).collect()),
        stop: stop.clone(),
        timeout_default: limits.deadline_max,
        timeout_max: limits.deadline_max,
        metrics: Arc::new(MethodMetrics::new(name, own().map(|method| method.path))),
    }
}

/// The way from one service to another one, below the outbound stack.
pub type Way = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// Puts something into the way from one service to another one.
pub type Between = fn(caller: &'static str, target: &'static str, way: Way) -> Way;

static BETWEEN: OnceLock<Between> = OnceLock::new();

/// From now on, in every way that is made.
pub fn put_between(between: Option<Between>) {
    if let Some(between) = between {
        let _ = BETWEEN.set(between);
    }
}

/// The outbound stack of one service to another one: in this process (`near`) or at its own places (`far`).
pub fn outbound<S>(caller: &'static str, target: &'static str, connection: S, concurrency_max: usize) -> Outbound
where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let metrics = Arc::new(MethodMetrics::outbound(caller, METHODS.iter().map(|method| method.path)));
    let settings = OutboundSettings { concurrency_max, ..OutboundSettings::new(target, is_retry_safe, class_of, metrics) };
    match BETWEEN.get() {
        Some(between) => settings.wrap(between(caller, target, BoxCloneSyncService::new(connection))),
        None => settings.wrap(connection),
    }
}

/// The keys of tokens, asked for at the service that has them.
pub fn keys_of(identity: Outbound) -> KeySource {
    let client = AuthServiceClient::new(identity);
    Box::new(move || {
        let mut client = client.clone();
        Box::pin(async move {
            let call = Call::start(Duration::from_secs(2));
            let jwks = client.get_jwks(call.request(GetJwksRequest {})).await.ok()?.into_inner();
            Some(jwks.keys.into_iter().map(|key| PublicKey { kid: key.kid, x: key.x }).collect())
        })
    })
}

/// Health and reflection, which every listener has.
pub struct Common {
    /// The service of `grpc.health.v1`.
    pub health: HealthServer<HealthService>,
    reporter: HealthReporter,
}

type HealthService = tonic_health::server::HealthService;

impl Common {
    pub fn new() -> Self {
        let reporter = HealthReporter::new();
        let health = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        Self { health, reporter }
    }

    /// Keeps telling `grpc.health.v1` what readiness is, for the whole process and for each service.
    pub fn keep_following(&self, process: &Process) {
        let followed = Arc::new((self.reporter.clone(), process.health.clone()));
        process.keep_working(
            "process",
            Job::essential("health", &followed, |followed, stop| async move { follow(&followed.0, &followed.1, stop).await }),
        );
    }

    /// Routes of health and, if wanted, of reflection of the whole public surface, in both of its versions.
    pub fn routes(&self, reflection: bool) -> Result<Routes> {
        let routes = Routes::new(self.health.clone());
        if !reflection {
            return Ok(routes);
        }
        let builder = || {
            let builder = tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(lastro_proto::PUBLIC_DESCRIPTORS);
            let builder = builder.register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
            // So that whoever reflects can read the details of errors.
            builder.register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        Ok(routes.add_service(builder().build_v1()?).add_service(builder().build_v1alpha()?))
    }
}

/// Until told to stop.
async fn follow(reporter: &HealthReporter, health: &Health, stop: CancellationToken) {
    let mut ready = health.watch();
    let services = || METHODS.iter().map(|method| method.service).filter(|service| !service.starts_with("lastro.internal."));
    loop {
        let status = if *ready.borrow_and_update() { tonic_health::ServingStatus::Serving } else { tonic_health::ServingStatus::NotServing };
        for service in services().chain([""]) {
            reporter.set_service_status(service, status).await;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = ready.changed() => if changed.is_err() { return },
        }
    }
}

/// Several services on one listener, told apart by the package in the path.
#[derive(Clone)]
pub struct Dispatch {
    /// What the path begins with, and who answers.
    pub services: Vec<(String, GrpcService)>,
    /// Who answers what has none of the prefixes.
    pub rest: GrpcService,
}

impl Dispatch {
    /// What everybody may call of a service.
    pub fn public_of(service: &Service, serving: &GrpcService) -> Vec<(String, GrpcService)> {
        service.packages.iter().map(|package| (format!("/{package}."), serving.clone())).collect()
    }

    /// As [`public_of`](Self::public_of), with what only services may call.
    pub fn all_of(service: &Service, serving: &GrpcService) -> Vec<(String, GrpcService)> {
        let internal = service.internal.iter().chain([&PACKAGE]).map(|package| (format!("/{package}."), serving.clone()));
        Self::public_of(service, serving).into_iter().chain(internal).collect()
    }

    pub fn boxed(self) -> GrpcService {
        BoxCloneSyncService::new(self)
    }

    /// The same, and scripts of these origins may call it by grpc-web; `*` is every origin.
    pub fn open_to(self, origins: &[String]) -> GrpcService {
        if origins.is_empty() {
            return self.boxed();
        }
        let listed = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
        let allowed = if origins.iter().any(|origin| origin == "*") { AllowOrigin::mirror_request() } else { AllowOrigin::list(listed) };
        let told = ["grpc-status", "grpc-message", "grpc-status-details-bin", "traceresponse", "x-correlation-id"].map(HeaderName::from_static);
        let cors = CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::POST])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(told)
            .max_age(Duration::from_mins(10));
        BoxCloneSyncService::new(cors.layer(self))
    }
}

impl tower::Service<Request<Body>> for Dispatch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = <GrpcService as tower::Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Routes and the stacks before them are always ready; what cannot be taken is refused by the shedding layer.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let found = self.services.iter_mut().find(|(prefix, _)| path.starts_with(prefix.as_str())).map(|(_, service)| service);
        found.unwrap_or(&mut self.rest).call(request)
    }
}

#[allow(dead_code, reason = "keeps the bound that tonic-health puts on the service")]
fn _is_health<T: HealthRpc>() {}
