//! One endpoint of a service: a few HTTP/2 connections to one address, opened when they are needed and again with growing pauses when
//! they fail. One connection alone is a bottleneck under load.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use http::{Request, Response};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tonic::body::Body;

use crate::tls::Tls;

const CONNECTIONS: usize = 2;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between attempts to connect: with its jitter, which adds up to as much again, 50 ms at first and 2 s at most.
const PAUSES: ExponentialBuilder =
    ExponentialBuilder::new().with_min_delay(Duration::from_millis(25)).with_max_delay(PAUSE_MAX).with_factor(2.0).without_max_times().with_jitter();
const PAUSE_MAX: Duration = Duration::from_secs(1);
const WINDOW_BYTES: u32 = 1 << 20;

/// How a call ended before there was an answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// It never left this process: another endpoint may have it.
    NotSent(Box<Request<Body>>, String),
    /// It may have been done.
    Lost(String),
}

/// The connections to one address.
pub(super) struct Connections {
    target: &'static str,
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
    slots: [Slot; CONNECTIONS],
    next: AtomicUsize,
}

#[derive(Default)]
struct Slot {
    /// Read on every call, so apart from the lock of whoever connects.
    live: SyncMutex<Option<SendRequest<Body>>>,
    connecting: Mutex<Backoff>,
}

#[derive(Default)]
struct Backoff {
    /// Those that are left since a connection was made last.
    pauses: Option<<ExponentialBuilder as BackoffBuilder>::Backoff>,
    until: Option<Instant>,
}

impl Connections {
    pub(super) fn new(target: &'static str, address: SocketAddr, tls: Option<Arc<Tls>>) -> Self {
        Self { target, address, tls, slots: <[Slot; CONNECTIONS]>::default(), next: AtomicUsize::new(0) }
    }

    /// Sends one call.
    pub(super) async fn send(&self, request: Request<Body>) -> Result<Response<Body>, Failure> {
        let slot = &self.slots[self.next.fetch_add(1, Ordering::Relaxed) % CONNECTIONS];
        let mut request = request;
        // A connection that ended while it was idle says so only when it is used: then once more, on a new one.
        for last in [false, true] {
            let mut sender = match self.sender(slot).await {
                Ok(sender) => sender,
                Err(error) => return Err(Failure::NotSent(Box::new(request), error)),
            };
            if let Err(error) = sender.ready().await {
                slot.forget();
                if last {
                    return Err(Failure::NotSent(Box::new(request), error.to_string()));
                }
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(response.map(Body::new)),
                Err(mut error) => {
                    slot.forget_if_closed();
                    match error.take_message() {
                        Some(unsent) if !last => request = unsent,
                        Some(unsent) => return Err(Failure::NotSent(Box::new(unsent), error.error().to_string())),
                        None => return Err(Failure::Lost(error.error().to_string())),
                    }
                }
            }
        }
        unreachable!("the second turn returns")
    }

    async fn sender(&self, slot: &Slot) -> Result<SendRequest<Body>, String> {
        if let Some(live) = slot.get() {
            return Ok(live);
        }
        let mut backoff = slot.connecting.lock().await;
        // Somebody else may have connected while we waited for the lock.
        if let Some(live) = slot.get() {
            return Ok(live);
        }
        if backoff.until.is_some_and(|until| Instant::now() < until) {
            return Err(format!("{} did not accept a connection just now", self.address));
        }
        let connected = timeout(CONNECT_TIMEOUT, self.connect()).await.unwrap_or_else(|_| Err("no connection within 3 s".to_owned()));
        match connected {
            Ok(sender) => {
                *backoff = Backoff::default();
                slot.set(sender.clone());
                Ok(sender)
            }
            Err(error) => {
                let pause = backoff.pauses.get_or_insert_with(|| PAUSES.build()).next();
                backoff.until = Some(Instant::now() + pause.unwrap_or(PAUSE_MAX));
                Err(format!("{}: {error}", self.address))
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<Body>, String> {
        let stream = TcpStream::connect(self.address).await.map_err(|error| error.to_string())?;
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => handshake(stream).await,
            Some(tls) => handshake(tls.connect(self.target, stream).await.map_err(|error| error.to_string())?).await,
        }
    }
}

async fn handshake<I>(io: I) -> Result<SendRequest<Body>, String>
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let (sender, connection) = builder.handshake(TokioIo::new(io)).await.map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended badly");
        }
    });
    Ok(sender)
}

impl Slot {
    fn get(&self) -> Option<SendRequest<Body>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|sender| !sender.is_closed())
    }

    fn set(&self, sender: SendRequest<Body>) {
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
    }

    fn forget(&self) {
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn forget_if_closed(&self) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if live.as_ref().is_some_and(SendRequest::is_closed) {
            *live = None;
        }
    }
}
