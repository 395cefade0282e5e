//! Receives the whole request of a method that takes one message before anything is done for it. Calls that stream, which are received as they go,
//! have places of their own until they end.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body_util::Full;
use tonic::body::Body;
use tower::Service;

use super::frame;
use crate::call::Call;
use crate::outcome;
use crate::serve::{NotReceived, Peer};
use crate::status::{BODY_TOO_LARGE, BODY_TOO_SLOW, MALFORMED_MESSAGE, Problem};

#[derive(Clone)]
pub(super) struct Receive<S> {
    inner: S,
    bytes_max: Arc<HashMap<&'static str, usize>>,
}

impl<S> Receive<S> {
    pub(super) fn new(inner: S, bytes_max: Arc<HashMap<&'static str, usize>>) -> Self {
        Self { inner, bytes_max }
    }
}

impl<S> Service<Request<Body>> for Receive<S>
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
        // A call of this process has no peer. It brings its message whole, and whoever made it has looked at its size.
        let Some(receiving) = request.extensions().get::<Peer>().map(|peer| peer.receiving.clone()) else {
            return Box::pin(self.inner.call(request));
        };
        // The clone that is ready is the one to call; the fresh one takes its place.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let address = request.extensions().get::<Call>().and_then(|call| call.address);
        let Some(bytes_max) = self.bytes_max.get(request.uri().path()).copied() else {
            let Some(place) = receiving.stream(address) else { return Box::pin(std::future::ready(Ok(refusal(NotReceived::NoRoom, 0)))) };
            let answer = inner.call(request);
            return Box::pin(async move { Ok(outcome::observe(answer.await?, move |_| drop(place))) });
        };
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            let mut received = match receiving.receive(body, bytes_max + frame::HEADER_BYTES, address).await {
                Ok(received) => received,
                Err(why) => return Ok(refusal(why, bytes_max)),
            };
            let message = match frame::plain(&mut head.headers, received.message.clone(), bytes_max) {
                Ok(message) => message,
                Err(problem) => {
                    let mut answer: Response<Body> = tonic::Status::from(problem).into_http();
                    let (name, value) = frame::ACCEPTED;
                    answer.headers_mut().insert(name, value);
                    return Ok(answer);
                }
            };
            // What was unpacked is what is held from here on.
            if let Err(why) = receiving.replace(&mut received, message, address) {
                return Ok(refusal(why, bytes_max));
            }
            let answer = inner.call(Request::from_parts(head, Body::new(Full::new(received.message)))).await;
            drop(received.held);
            answer
        })
    }
}

fn refusal(why: NotReceived, bytes_max: usize) -> Response<Body> {
    let problem = match why {
        NotReceived::TooLarge => {
            Problem::new(&BODY_TOO_LARGE, format!("a request of this method has at most {bytes_max} bytes")).with("limit", bytes_max.to_string())
        }
        NotReceived::EndedEarly => Problem::new(&MALFORMED_MESSAGE, "the message ended early"),
        NotReceived::Late(within) => Problem::new(&BODY_TOO_SLOW, format!("the message did not come within {} s", within.as_secs())),
        NotReceived::NoRoom => Problem::crowded("too many incomplete or large requests at once"),
    };
    tonic::Status::from(problem).into_http()
}
