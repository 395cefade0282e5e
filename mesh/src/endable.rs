//! A streaming body that can be ended from outside: HTTP/2 does not poll a body whose reader gives no window, so a body cannot end itself then. Its
//! supervisor can: it frees what the stream holds, and the reason is sent as soon as the reader reads again.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::time::Instant;

use crate::status::{Problem, SLOW_READER};

/// A stream is ended when its reader reads nothing for so long although something was sent.
pub const SLOW_AFTER: Duration = Duration::from_secs(30);

/// The body. Dropping it drops what it wraps, whether or not there is a supervisor.
pub struct Endable<B: Body> {
    state: Arc<Mutex<State<B>>>,
    last: Last<B::Error>,
}

/// Makes the last frame, which tells the reader why the stream ends; or the error with which it is broken off.
type Last<E> = Box<dyn Fn(Problem) -> Option<Result<Frame<Bytes>, E>> + Send>;

struct State<B> {
    /// None once it has ended.
    body: Option<B>,
    /// Freed together with the body: permits, for example.
    held: Option<Box<dyn Send>>,
    /// Since when a frame, or the head of the answer, waits for the connection to ask for the next frame.
    waiting_since: Option<Instant>,
    /// Why it was ended, until the reader was told.
    problem: Option<Problem>,
    waker: Option<Waker>,
}

/// Ends a body.
pub struct Ender<B>(Weak<Mutex<State<B>>>);

/// Wraps a body. `held` is freed when the body ends; `last` makes the frame that tells the reader why it was ended, or the error with which it is broken off.
pub fn endable<B: Body>(
    body: B,
    held: impl Send + 'static,
    last: impl Fn(Problem) -> Option<Result<Frame<Bytes>, B::Error>> + Send + 'static,
) -> (Endable<B>, Ender<B>) {
    let held: Option<Box<dyn Send>> = Some(Box::new(held));
    let state = Arc::new(Mutex::new(State { body: Some(body), held, waiting_since: Some(Instant::now()), problem: None, waker: None }));
    let ender = Ender(Arc::downgrade(&state));
    (Endable { state, last: Box::new(last) }, ender)
}

fn lock<B>(state: &Mutex<State<B>>) -> MutexGuard<'_, State<B>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B> Ender<B> {
    /// Ends the body for this reason, unless it has ended.
    pub fn end(&self, problem: Problem) {
        let Some(state) = self.0.upgrade() else { return };
        let mut state = lock(&state);
        if state.body.take().is_some() {
            state.held = None;
            state.problem = Some(problem);
            state.waker.take().into_iter().for_each(Waker::wake);
        }
    }

    /// Ends the body if its reader is too slow. False when there is nothing to supervise any more.
    pub fn end_if_slow(&self) -> bool {
        let Some(state) = self.0.upgrade() else { return false };
        let (is_open, is_slow) = {
            let state = lock(&state);
            (state.body.is_some(), state.waiting_since.is_some_and(|since| since.elapsed() > SLOW_AFTER))
        };
        if is_open && is_slow {
            let told = format!("nothing was read for {} s; call again, with the id of the last event", SLOW_AFTER.as_secs());
            self.end(Problem::new(&SLOW_READER, told));
        }
        is_open && !is_slow
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Endable<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut state = lock(&self.state);
        state.waiting_since = None;
        if let Some(problem) = state.problem.take() {
            return Poll::Ready((self.last)(problem));
        }
        let Some(body) = &mut state.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        match &polled {
            Poll::Pending => state.waker = Some(cx.waker().clone()),
            Poll::Ready(Some(_)) => state.waiting_since = Some(Instant::now()),
            Poll::Ready(None) => (state.body, state.held) = (None, None),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let state = lock(&self.state);
        state.problem.is_none() && state.body.as_ref().is_none_or(B::is_end_stream)
    }
}
