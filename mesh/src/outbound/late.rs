//! A service in the same process that is made after those that call it: two services may call each other. Until it is there it is away.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

use super::{Near, near};
use crate::inbound::GrpcService;
use crate::status::{Problem, UNAVAILABLE};

/// Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Late(Arc<OnceLock<Near>>);

impl Late {
    /// The service is there from now on. Only the first one counts.
    pub fn set(&self, service: GrpcService, caller: &'static str) {
        let _ = self.0.set(near(service, caller));
    }
}

impl Service<Request<Body>> for Late {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let service = self.0.get().cloned();
        Box::pin(async move {
            match service {
                Some(service) => service.oneshot(request).await,
                None => Ok(tonic::Status::from(Problem::new(&UNAVAILABLE, "the service is not there")).into_http()),
            }
        })
    }
}
