//! A method that answers again and again: Server-Sent Events (WHATWG HTML, "Server-sent events"). Each message is an event with its id, by which a
//! client that was cut off goes on: browsers send it as `Last-Event-ID` by themselves. Nothing is read ahead: a client that reads slowly slows down
//! its own stream alone, and is ended when it does not read for half a minute.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream as _;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use http::uri::PathAndQuery;
use http::{HeaderValue, Response, StatusCode};
use http_body::Frame;
use lastro_mesh::call::CorrelationId;
use lastro_mesh::codec::ValidatingCodec;
use lastro_mesh::endable::{Ender, endable};
use lastro_mesh::outbound::Outbound;
use lastro_mesh::status::{INTERNAL, Problem, UNAVAILABLE};
use lastro_proto::rest_methods::RestMethod;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::client::Grpc;

use super::{MethodCall, TIMEOUT, request_to};
use crate::answer::{self, Body};
use crate::problem;

/// nginx passes the events on as they come: <https://nginx.org/en/docs/http/ngx_http_proxy_module.html#proxy_buffering>
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// Something is sent at least so often, so that whoever stands between knows that we live.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// And so often where a proxy tells its patience, which is seconds.
const SILENCE_BEFORE_A_PROXY: Duration = Duration::from_secs(1);
/// The first event is usually there at once: a stream that ends without one is told from one that has none yet.
const FIRST_WITHIN: Duration = Duration::from_millis(100);
/// How often it is looked whether a stream is read.
const SUPERVISE_EVERY: Duration = Duration::from_secs(1);
/// After so long a browser connects again.
const RECONNECT_AFTER: &str = "retry: 1000\n\n";

/// Makes the call, and answers what it brings as it comes.
pub async fn answer<M: RestMethod>(channel: Outbound, input: MethodCall) -> Result<Response<Body>, Problem> {
    let request: M::Request = input.read::<M>()?;
    let mut call = input.call(TIMEOUT);
    call.streams = true;
    let codec = ValidatingCodec::<M::Request, M::Answer>::default();
    let answered = Grpc::new(channel).server_streaming(request_to(&call, request), PathAndQuery::from_static(M::METHOD.path), codec).await;
    let mut messages = answered.map_err(|status| problem::from_status(&status))?.into_inner();
    // A stream is not load, it is patience.
    input.slot.release();
    let first = match timeout(FIRST_WITHIN, messages.message()).await {
        // What a client had last was the end: by this answer a browser knows that there is nothing to connect to again.
        Ok(Ok(None)) => return Ok(answer::empty(StatusCode::NO_CONTENT)),
        Ok(Ok(first)) => first,
        Ok(Err(status)) => return Err(problem::from_status(&status)),
        Err(_) => None,
    };
    let silence_max = if input.patience().is_some() { SILENCE_BEFORE_A_PROXY } else { SILENCE_MAX };
    let mut begin = RECONNECT_AFTER.to_owned();
    if let Some(first) = first {
        begin += &event::<M>(&first)?;
    }
    let correlation_id = input.context.correlation_id;
    let events = Events::<M> {
        begin: Some(begin.into()),
        messages: Some(messages),
        correlation_id: correlation_id.clone(),
        silence_max,
        silence: Box::pin(sleep(silence_max)),
    };
    let (body, ender) = endable(events, (), move |problem| Some(Ok(Frame::data(last_event(&problem, &correlation_id)))));
    tokio::spawn(supervise(ender, input.context.stop));
    let mut response = answer::stream(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

/// Ends a stream when the gateway stops, and when it is read too slowly.
async fn supervise<B>(ender: Ender<B>, stop: CancellationToken) {
    while ender.end_if_slow() {
        tokio::select! {
            () = stop.cancelled() => {
                return ender.end(Problem::new(&UNAVAILABLE, "this replica of the gateway stops; connect again, with the id of the last event"));
            }
            () = sleep(SUPERVISE_EVERY) => {}
        }
    }
}

/// The event that tells a client why its stream ends before the transaction does.
fn last_event(problem: &Problem, correlation_id: &CorrelationId) -> Bytes {
    format!("event: problem\ndata: {}\n\n", problem::json(problem, correlation_id)).into()
}

/// One event: its id and the message as JSON, which has no line breaks.
fn event<M: RestMethod>(message: &M::Answer) -> Result<String, Problem> {
    let json = serde_json::to_string(message).map_err(|error| {
        tracing::error!(%error, method = M::METHOD.path, "an answer cannot be written as JSON");
        Problem::new(&INTERNAL, "internal error")
    })?;
    Ok(format!("id: {}\ndata: {json}\n\n", M::event_id(message)))
}

/// The body of an answer that streams.
struct Events<M: RestMethod> {
    begin: Option<Bytes>,
    /// None once the stream has ended.
    messages: Option<Streaming<M::Answer>>,
    correlation_id: CorrelationId,
    silence_max: Duration,
    silence: Pin<Box<Sleep>>,
}

impl<M: RestMethod> Events<M> {
    /// The last event: why the stream ends before its time.
    fn end(&mut self, problem: &Problem) -> Bytes {
        self.messages = None;
        last_event(problem, &self.correlation_id)
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(begin) = self.begin.take() {
            return Poll::Ready(Some(begin));
        }
        let Some(messages) = &mut self.messages else { return Poll::Ready(None) };
        match Pin::new(messages).poll_next(cx) {
            Poll::Ready(Some(Ok(message))) => {
                let event = event::<M>(&message);
                return Poll::Ready(Some(event.map_or_else(|problem| self.end(&problem), Bytes::from)));
            }
            Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(self.end(&problem::from_status(&status)))),
            Poll::Ready(None) => {
                self.messages = None;
                return Poll::Ready(None);
            }
            Poll::Pending => {}
        }
        match self.silence.as_mut().poll(cx) {
            // A comment: clients read over it.
            Poll::Ready(()) => Poll::Ready(Some(Bytes::from_static(b":\n\n"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<M: RestMethod> http_body::Body for Events<M> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let next = std::task::ready!(self.poll_next(cx));
        let silent_until = Instant::now() + self.silence_max;
        self.silence.as_mut().reset(silent_until);
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }
}
