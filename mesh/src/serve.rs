//! A listener for HTTP/1.1 and HTTP/2, in plain text or with mutual TLS, and its end, in which no call fails: at first everything goes on,
//! but connections are told to go elsewhere (GOAWAY in two steps for gRPC, `connection: close` with each answer for HTTP/1.1) and new ones
//! are still taken, since not everybody has noticed; then the listener closes, and what is in flight ends.

mod gather;
mod limits;
mod proxies;
mod receiving;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, Version};
use hyper::body::{Body, Incoming};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::identity::policy::{Caller, Policy};
use crate::inbound::GrpcService;
use crate::private_headers;
use crate::tls::{self, Tls};

use self::gather::Gather;
pub use self::limits::{ConnectionLimits, limited_address};
use self::limits::{Connections, PREFACE_BYTES, ReadCount};
pub use self::proxies::Proxies;
pub use self::receiving::{NotReceived, Received, Receiving, ReceivingLimits};

/// Who is at the other end of the connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The service that it proved to be, where callers have to prove that.
    pub caller: Option<Arc<Caller>>,
    /// Whose word on a client's address counts.
    pub proxies: Proxies,
    /// What its listener is receiving.
    pub receiving: Arc<Receiving>,
}

/// How a listener knows who calls.
#[derive(Clone)]
pub enum Security {
    /// It does not: everybody may connect, in plain text, and only tokens count.
    Open,
    /// By client certificates, and a policy of who may call what.
    Mutual(Arc<Tls>, Arc<Policy>),
    /// It trusts the machine: plain text between services, on loopback only.
    Loopback,
}

/// How a listener ends.
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    /// How long new connections and calls are still taken after the stop; longer than a proxy keeps an idle connection.
    pub linger: Duration,
    /// Whether connections that are open at the stop are told at once (gRPC), or at the end of that time: an HTTP/1.1 connection that is
    /// closed while it is idle may have a request on its way.
    pub at_once: bool,
}

/// A client that does not finish its handshake or its headers is not waited for.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// What is in flight may take so long after the stop: longer than the longest wait.
const DRAIN_MAX: Duration = Duration::from_secs(35);
/// A connection younger than this has its first request on the way, perhaps still behind the handshake, and is not told before: hyper
/// closes what has not said a word yet.
const FIRST_REQUEST: Duration = Duration::from_millis(500);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// What one HTTP/2 connection may send before it is read: of a part of Lastro, and of somebody else.
const WINDOW_BYTES: u32 = 1 << 20;
const WINDOW_OF_OTHERS_BYTES: u32 = 1 << 18;
/// Calls at once on one HTTP/2 connection of another part of Lastro, which has few connections and bounds its calls itself.
const STREAMS_OF_OURS: u32 = 20_000;
/// Headers of a request together: as HTTP/2 counts them, which is what gRPC takes by default, and as HTTP/1.1 sends them, with the request's line.
const HEADERS_BYTES_MAX: u32 = 8 * 1024;
const HTTP1_HEAD_BYTES_MAX: usize = 32 * 1024;

/// A listener that is not serving yet.
pub struct Listener {
    /// Where it listens.
    pub tcp: TcpListener,
    /// Who may connect.
    pub security: Security,
    /// How it ends.
    pub drain: Drain,
    /// How many connections it holds.
    pub limits: ConnectionLimits,
}

impl Listener {
    /// For everybody, and ending at once when told to.
    pub fn open(tcp: TcpListener) -> Self {
        Self { tcp, security: Security::Open, drain: Drain { linger: Duration::ZERO, at_once: true }, limits: ConnectionLimits::default() }
    }
}

/// Serves until told to stop, then until what is in flight has ended. `service` makes one for each connection.
pub async fn serve<F, S, B>(listener: Listener, stop: CancellationToken, service: F)
where
    F: Fn(Peer) -> S + Clone + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let Listener { tcp, security, drain, limits } = listener;
    // Behind other parts of the mesh, and behind a proxy that proves who it is, one address stands for many: only the limit in all counts.
    let per_address = if matches!(security, Security::Open) { limits.per_address } else { limits.in_all };
    let (streams, proxies, receiving) = (limits.streams, limits.proxies.clone(), Arc::new(Receiving::new(limits.receiving)));
    let (connections, counted) = (TaskTracker::new(), Connections::new(ConnectionLimits { per_address, ..limits }));
    let lingered = CancellationToken::new();
    let told_first = if drain.at_once { stop.clone() } else { lingered.clone() };
    let take = |stream: TcpStream, address: SocketAddr, told: CancellationToken| {
        let Some(place) = counted.take(address.ip()) else {
            // Nothing is said: whoever floods us reads nothing, and a word costs more than an end.
            return;
        };
        let _ = stream.set_nodelay(true);
        let connection = Connection { stop: stop.clone(), told, streams, proxies: proxies.clone(), receiving: receiving.clone() };
        let (security, service) = (security.clone(), service.clone());
        connections.spawn(async move {
            connection.run(stream, address, security, service).await;
            drop(place);
        });
    };
    let accept_until = async |end: &mut (dyn Future<Output = ()> + Send + Unpin), told: &CancellationToken| {
        loop {
            let accepted = tokio::select! {
                // The backlog first: who is in it thinks that it is connected.
                biased;
                accepted = tcp.accept() => accepted,
                () = &mut *end => return,
            };
            match accepted {
                Ok((stream, address)) => take(stream, address, told.clone()),
                Err(error) => {
                    // Out of file descriptors, perhaps: what is open may end.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    accept_until(&mut Box::pin(stop.cancelled()), &told_first).await;
    accept_until(&mut Box::pin(tokio::time::sleep(drain.linger)), &lingered).await;
    drop(tcp);
    lingered.cancel();
    connections.close();
    if tokio::time::timeout(DRAIN_MAX, connections.wait()).await.is_err() {
        tracing::warn!("requests were cut off at the end of the drain");
    }
}

/// Whether the other end is a part of Lastro, which speaks the headers that only parts of Lastro speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ours {
    Yes,
    No,
}

/// One connection: when the process stops, and when this connection is told so.
struct Connection {
    stop: CancellationToken,
    told: CancellationToken,
    streams: u32,
    proxies: Proxies,
    receiving: Arc<Receiving>,
}

impl Connection {
    async fn run<F, S, B>(self, stream: TcpStream, address: SocketAddr, security: Security, service: F)
    where
        F: Fn(Peer) -> S,
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let peer = |caller| Peer { address, caller, proxies: self.proxies.clone(), receiving: self.receiving.clone() };
        match security {
            Security::Open => {
                let service = service(peer(None));
                self.serve(stream, service, Ours::No).await;
            }
            Security::Loopback => {
                let service = service(peer(Some(Caller::on_loopback())));
                self.serve(stream, service, Ours::Yes).await;
            }
            Security::Mutual(tls, policy) => {
                let stream = match tokio::time::timeout(HEADER_TIMEOUT, tls.accept(stream)).await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => return tracing::info!(%address, %error, "a connection without a valid certificate was refused"),
                    Err(_) => return,
                };
                let name = tls::caller_name(&stream).unwrap_or_default();
                match policy.caller(&name) {
                    Some(caller) => {
                        let service = service(peer(Some(caller)));
                        self.serve(stream, service, Ours::Yes).await;
                    }
                    None => tracing::warn!(%address, name, "a connection of a caller that the policy does not list was refused"),
                }
            }
        }
    }

    async fn serve<I, S, B>(self, io: I, service: S, ours: Ours)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stop = self.stop;
        let closing = service_fn(move |mut request: Request<Incoming>| {
            if ours == Ours::No {
                private_headers::remove(request.headers_mut());
            }
            let (version, answer, stop) = (request.version(), service.call(request), stop.clone());
            async move {
                let mut response = answer.await?;
                if ours == Ours::No {
                    private_headers::remove(response.headers_mut());
                }
                if version < Version::HTTP_2 && stop.is_cancelled() {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        });
        let builder = builder(self.streams, ours);
        let (io, read) = ReadCount::new(io);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(Gather::new(io)), closing));
        // The library waits for the first bytes for ever, since it does not know yet which version of HTTP to speak.
        let silent = async {
            tokio::time::sleep(HEADER_TIMEOUT).await;
            if read.load(Ordering::Relaxed) >= PREFACE_BYTES {
                std::future::pending::<()>().await;
            }
        };
        let first_request = Instant::now() + FIRST_REQUEST;
        let told = async {
            self.told.cancelled().await;
            tokio::time::sleep_until(first_request).await;
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = silent => return,
            () = told => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error, "a connection ended badly");
        }
    }
}

fn builder(streams: u32, ours: Ours) -> auto::Builder<TokioExecutor> {
    let (window_bytes, streams) = match ours {
        Ours::Yes => (WINDOW_BYTES, streams.max(STREAMS_OF_OURS)),
        Ours::No => (WINDOW_OF_OTHERS_BYTES, streams),
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(HTTP1_HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(streams)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .initial_stream_window_size(window_bytes)
        .initial_connection_window_size(window_bytes);
    builder
}

/// Serves gRPC.
pub async fn serve_grpc(listener: Listener, stop: CancellationToken, grpc: GrpcService) {
    serve(listener, stop, move |peer| {
        let grpc = grpc.clone();
        service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(tonic::body::Body::new);
            request.extensions_mut().insert(peer.clone());
            grpc.clone().oneshot(request)
        })
    })
    .await;
}
