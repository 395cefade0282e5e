//! A service in the same process that is made after those that call it: two services may call each other. Until it is there it is away.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

use super::near;
use crate::identity::policy::{Caller, not_allowed};
use crate::inbound::GrpcService;
use crate::status::{Problem, UNAVAILABLE};

/// A place for such a service. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Late(Arc<OnceLock<GrpcService>>);

impl Late {
    /// The service is there from now on. Only the first one counts.
    pub fn set(&self, service: GrpcService) {
        let _ = self.0.set(service);
    }

    /// The way to the service, for one of those who call it, by its name and with what the policy lets it call.
    pub fn called_by(&self, caller: &'static str, policy: Arc<Caller>) -> LateNear {
        LateNear { service: self.0.clone(), caller, policy }
    }
}

/// See [`Late::called_by`].
#[derive(Clone)]
pub struct LateNear {
    service: Arc<OnceLock<GrpcService>>,
    caller: &'static str,
    policy: Arc<Caller>,
}

impl Service<Request<Body>> for LateNear {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (service, caller) = (self.service.get().cloned(), self.caller);
        let may_call = self.policy.may_call(request.uri().path());
        Box::pin(async move {
            match service {
                _ if !may_call => Ok(tonic::Status::from(not_allowed(caller)).into_http()),
                Some(service) => near(service, caller).oneshot(request).await,
                None => Ok(tonic::Status::from(Problem::new(&UNAVAILABLE, "the service is not there")).into_http()),
            }
        })
    }
}
