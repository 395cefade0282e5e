//! A call never goes silent for long, where a proxy asks for it (`x-lastro-heartbeat`): after a second the head of the answer goes out, then
//! an empty DATA frame for each second without another. So the proxy can give up a frozen replica within seconds, as its callers' deadlines
//! want it, and still let a call wait for half a minute. HTTP/2 allows empty frames (RFC 9113, 6.1), and gRPC reads over them.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body as _, Frame};
use tokio::time::{Instant, Sleep};
use tonic::body::Body;
use tower::Service;
use tracing::Instrument as _;
use tracing::instrument::Instrumented;

use crate::outcome;
use crate::status::DEPENDENCY_HEADER;

/// Asks for it, whatever its value.
pub const HEARTBEAT_HEADER: &str = "x-lastro-heartbeat";
/// The longest silence. A proxy should wait for three of them.
const SILENCE_MAX: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(super) struct Heartbeat<S> {
    pub inner: S,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for Heartbeat<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let asked = request.headers().contains_key(HEARTBEAT_HEADER);
        let answer: Answer = Box::pin(self.inner.call(request));
        if !asked {
            return answer;
        }
        // The rest of the call may be polled where its span is not entered.
        let mut answer = answer.in_current_span();
        Box::pin(async move {
            match tokio::time::timeout(SILENCE_MAX, &mut answer).await {
                Ok(answered) => {
                    let (head, body) = answered?.into_parts();
                    // All of an answer without a body is in its head.
                    let body = if outcome::code_in(&head.headers).is_some() { body } else { Body::new(Beating::new(State::Answered(body))) };
                    Ok(Response::from_parts(head, body))
                }
                Err(_) => {
                    let mut early = Response::new(Body::new(Beating::new(State::Waiting(answer))));
                    early.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                    Ok(early)
                }
            }
        })
    }
}

/// A body that says something at least once in [`SILENCE_MAX`].
struct Beating {
    state: State,
    /// What the head would have said, had it not gone out before.
    late: HeaderMap,
    silence: Pin<Box<Sleep>>,
}

enum State {
    Waiting(Instrumented<Answer>),
    Answered(Body),
    Ended,
}

impl Beating {
    fn new(state: State) -> Self {
        Self { state, late: HeaderMap::new(), silence: Box::pin(tokio::time::sleep(SILENCE_MAX)) }
    }

    /// The next frame that there is something in.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        if let State::Waiting(answer) = &mut self.state {
            let Ok(response) = ready!(Pin::new(answer).poll(cx));
            let (head, body) = response.into_parts();
            self.late = head.headers;
            self.late.remove(CONTENT_TYPE);
            // For our own breakers alone, and a proxy removes it from a head only.
            self.late.remove(DEPENDENCY_HEADER);
            let only_head = outcome::code_in(&self.late).is_some();
            self.state = if only_head { State::Ended } else { State::Answered(body) };
            if only_head {
                return Poll::Ready(Some(Ok(Frame::trailers(std::mem::take(&mut self.late)))));
            }
        }
        let State::Answered(body) = &mut self.state else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| match frame.into_trailers() {
                Ok(mut trailers) => {
                    trailers.extend(std::mem::take(&mut self.late));
                    Frame::trailers(trailers)
                }
                Err(frame) => frame,
            })
        }))
    }
}

impl http_body::Body for Beating {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let next = match self.poll_next(cx) {
            Poll::Pending => {
                ready!(self.silence.as_mut().poll(cx));
                Some(Ok(Frame::data(Bytes::new())))
            }
            Poll::Ready(next) => next,
        };
        self.silence.as_mut().reset(Instant::now() + SILENCE_MAX);
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Waiting(_) => false,
            State::Answered(body) => body.is_end_stream(),
            State::Ended => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::time::sleep;
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    /// What came when, in milliseconds: `head`, `beat`, the data, or the trailers' status and what was told late.
    async fn watch(asks: bool, handler: impl Fn() -> Answer + Send) -> Vec<(u128, String)> {
        let mut request = Request::new(Body::empty());
        if asks {
            request.headers_mut().insert(HEARTBEAT_HEADER, HeaderValue::from_static("1"));
        }
        let started = Instant::now();
        let response = Heartbeat { inner: service_fn(|_: Request<Body>| handler()) }.oneshot(request).await.expect("infallible");
        let told = |headers: &HeaderMap| format!("{:?} {:?}", outcome::code_in(headers), headers.get("told"));
        let mut seen = vec![(started.elapsed().as_millis(), format!("head {}", told(response.headers())))];
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.expect("a frame");
            let what = match (frame.data_ref(), frame.trailers_ref()) {
                (Some(data), _) if data.is_empty() => "beat".to_owned(),
                (Some(data), _) => String::from_utf8_lossy(data).into_owned(),
                (None, trailers) => format!("trailers {}", told(trailers.expect("trailers"))),
            };
            seen.push((started.elapsed().as_millis(), what));
        }
        seen
    }

    fn answer_after(ms: u64, silent_ms: u64) -> Answer {
        Box::pin(async move {
            sleep(Duration::from_millis(ms)).await;
            let frames = futures_util::stream::unfold(0, move |step| async move {
                match step {
                    0 => Some((Ok::<_, tonic::Status>(Frame::data(Bytes::from_static(b"data"))), 1)),
                    1 => {
                        sleep(Duration::from_millis(silent_ms)).await;
                        Some((Ok(Frame::trailers(HeaderMap::from_iter([("grpc-status".parse().ok()?, HeaderValue::from_static("0"))]))), 2))
                    }
                    _ => None,
                }
            });
            let mut response = Response::new(Body::new(http_body_util::StreamBody::new(Box::pin(frames))));
            response.headers_mut().insert("told", HeaderValue::from_static("yes"));
            Ok(response)
        })
    }

    fn refuse_after(ms: u64) -> Answer {
        Box::pin(async move {
            sleep(Duration::from_millis(ms)).await;
            Ok(tonic::Status::unavailable("away").into_http())
        })
    }

    fn seen(expected: &[(u128, &str)]) -> Vec<(u128, String)> {
        expected.iter().map(|(at, what)| (*at, (*what).to_owned())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_quick_answer_passes_as_it_is() {
        let quick = [(10, "head None Some(\"yes\")"), (10, "data"), (10, "trailers Some(Ok) None")];
        assert_eq!(watch(true, || answer_after(10, 0)).await, seen(&quick));
        assert_eq!(watch(true, || refuse_after(10)).await, seen(&[(10, "head Some(Unavailable) None")]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_answer_shows_that_it_lives() {
        let slow = [(1000, "head None None"), (2000, "beat"), (2500, "data"), (2500, "trailers Some(Ok) Some(\"yes\")")];
        assert_eq!(watch(true, || answer_after(2500, 0)).await, seen(&slow));
        let refused = [(1000, "head None None"), (2000, "beat"), (2500, "trailers Some(Unavailable) None")];
        assert_eq!(watch(true, || refuse_after(2500)).await, seen(&refused));
        let silent = [(10, "head None Some(\"yes\")"), (10, "data"), (1010, "beat"), (1510, "trailers Some(Ok) None")];
        assert_eq!(watch(true, || answer_after(10, 1500)).await, seen(&silent));
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_ask_sees_nothing_of_it() {
        let slow = [(2500, "head None Some(\"yes\")"), (2500, "data"), (2500, "trailers Some(Ok) None")];
        assert_eq!(watch(false, || answer_after(2500, 0)).await, seen(&slow));
    }
}
