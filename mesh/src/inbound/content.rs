//! Takes gRPC, and grpc-web as browsers speak it, and says a clear word to everything else: JSON, HTTP/1.1, a browser that came to the wrong port.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::Full;
use tonic::body::Body;
use tonic_web::GrpcWebLayer;
use tower::{Layer as _, Service};

use crate::serve::Peer;

const WORDS: &str = "this port speaks gRPC over HTTP/2 (content-type: application/grpc) and grpc-web (application/grpc-web); REST is served on another port, see --rest\n";

#[derive(Clone)]
pub(super) struct Content<S> {
    pub inner: S,
}

impl<S> Service<Request<Body>> for Content<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // What has no other end was made in this process.
        if request.extensions().get::<Peer>().is_none() || is_grpc(&request) {
            return Box::pin(self.inner.call(request));
        }
        if is_grpc_web(&request) {
            // The clone that is ready is the one to call; the fresh one takes its place.
            let fresh = self.inner.clone();
            return Box::pin(GrpcWebLayer::new().layer(std::mem::replace(&mut self.inner, fresh)).call(request));
        }
        let mut answer = Response::new(Body::new(Full::new(Bytes::from_static(WORDS.as_bytes()))));
        *answer.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        Box::pin(std::future::ready(Ok(answer)))
    }
}

/// `application/grpc`, alone or with an encoding; not grpc-web, whose frames are others.
fn is_grpc<B>(request: &Request<B>) -> bool {
    let told = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let rest = told.strip_prefix(b"application/grpc");
    request.version() == Version::HTTP_2 && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+") || rest.starts_with(b";"))
}

/// Of either version of HTTP: its status comes at the end of the body.
fn is_grpc_web<B>(request: &Request<B>) -> bool {
    let told = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let known = [&b"application/grpc-web"[..], b"application/grpc-web+proto", b"application/grpc-web-text", b"application/grpc-web-text+proto"];
    request.method() == Method::POST && known.contains(&told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grpc_over_http_2_is_grpc() {
        let request = |version, told: Option<&str>| {
            let request = Request::builder().version(version);
            told.into_iter().fold(request, |request, told| request.header("content-type", told)).body(()).expect("a request")
        };
        for good in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
            assert!(is_grpc(&request(Version::HTTP_2, Some(good))), "{good}");
        }
        assert!(!is_grpc(&request(Version::HTTP_11, Some("application/grpc"))));
        for bad in [Some("application/json"), Some("application/grpc-web"), Some("application/grpcx"), Some(""), None] {
            assert!(!is_grpc(&request(Version::HTTP_2, bad)), "{bad:?}");
        }
    }
}
