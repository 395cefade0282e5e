//! Establishes the principal and checks it against the method's annotation, before the handler.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::AUTHORIZATION;
use http::{Request, Response};
use tonic::body::Body;
use tower::Service;

use crate::call::{Call, is_ambiguous};
use crate::identity::policy::not_allowed;
use crate::identity::token::Refusal;
use crate::identity::{Access, LocalPeer, Principal, TokenVerifier};
use crate::serve::Peer;
use crate::status::{PERMISSION_DENIED, Problem, UNAUTHENTICATED, UNAVAILABLE, UNIMPLEMENTED};

/// Open to everybody, as every gRPC tool expects.
const OPEN_PREFIXES: [&str; 2] = ["/grpc.health.v1.Health/", "/grpc.reflection."];

#[derive(Clone)]
pub(super) struct Identity<S> {
    pub inner: S,
    pub access: Arc<HashMap<&'static str, Access>>,
    pub verifier: Arc<TokenVerifier>,
}

impl<S> Service<Request<Body>> for Identity<S>
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // The clone that is ready is the one to call; the fresh one takes its place.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let access = self.access.get(request.uri().path()).copied().or_else(|| open(request.uri().path()));
        let verifier = self.verifier.clone();
        Box::pin(async move {
            match admit(&mut request, access, &verifier).await {
                Ok(()) => inner.call(request).await,
                Err(problem) => Ok(tonic::Status::from(problem).into_http()),
            }
        })
    }
}

fn open(path: &str) -> Option<Access> {
    OPEN_PREFIXES.iter().any(|prefix| path.starts_with(prefix)).then_some(Access::Public)
}

async fn admit(request: &mut Request<Body>, access: Option<Access>, verifier: &TokenVerifier) -> Result<(), Problem> {
    let service = calling_service(request)?;
    let permission = match access.ok_or_else(|| Problem::new(&UNIMPLEMENTED, "no such method"))? {
        Access::Public => return Ok(()),
        Access::Service => {
            let service = service.ok_or_else(|| Problem::new(&PERMISSION_DENIED, "only services may call this method"))?;
            return with_call(request, |call| call.principal = Some(Principal::Service(service)));
        }
        Access::Permission(permission) => permission,
    };
    if is_ambiguous(request.headers(), AUTHORIZATION) {
        return Err(Problem::field("authorization", "is given more than once, with different values; send it once"));
    }
    let header = request.headers().get(AUTHORIZATION).cloned();
    let token = header.as_ref().and_then(|value| value.to_str().ok()).and_then(bearer);
    let token = token.ok_or_else(|| Problem::new(&UNAUTHENTICATED, "send an access token as authorization: Bearer …"))?;
    let user = verifier.verify(token).await.map_err(|refusal| match refusal {
        Refusal::Invalid => Problem::new(&UNAUTHENTICATED, "the access token is not valid, or no longer; log in again"),
        Refusal::KeysUnknown => Problem::new(&UNAVAILABLE, "the access token cannot be verified right now"),
    })?;
    if !user.may(permission) {
        return Err(Problem::permission(permission, format!("the permission {permission} is missing")));
    }
    with_call(request, |call| {
        call.principal = Some(Principal::User(user));
        call.token = header;
    })
}

/// The service at the other end, if it is one: in this process, or by a certificate whose policy allows this method.
fn calling_service(request: &Request<Body>) -> Result<Option<Arc<str>>, Problem> {
    if let Some(LocalPeer(name)) = request.extensions().get() {
        return Ok(Some((*name).into()));
    }
    let Some(caller) = request.extensions().get::<Peer>().and_then(|peer| peer.caller.as_ref()) else { return Ok(None) };
    if caller.may_call(request.uri().path()) {
        return Ok(Some(caller.name.clone()));
    }
    Err(not_allowed(&caller.name))
}

/// The token of `Bearer <token>`; the scheme is compared without case (RFC 9110, 11.1).
pub(super) fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty()).then_some(token.trim())
}

fn with_call(request: &mut Request<Body>, change: impl FnOnce(&mut Call)) -> Result<(), Problem> {
    request.extensions_mut().get_mut::<Call>().map(change).ok_or_else(|| Problem::new(&crate::status::INTERNAL, "internal error"))
}
