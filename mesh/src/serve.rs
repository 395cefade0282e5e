//! A listener for HTTP/1.1 and HTTP/2, with a graceful end: no new connections, GOAWAY in two steps (hyper's graceful shutdown), what is
//! in flight ends, and only then it returns.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::inbound::GrpcService;

/// Who is at the other end of the connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// A client that does not finish its headers is not waited for.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// What is in flight may take so long after the stop: longer than the longest wait.
const DRAIN_MAX: Duration = Duration::from_secs(35);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const STREAMS_MAX: u32 = 4096;
const WINDOW_BYTES: u32 = 1 << 20;

/// Serves until told to stop, then until what is in flight has ended. `service` makes one for each connection.
pub async fn serve<F, S, B>(listener: TcpListener, stop: CancellationToken, service: F)
where
    F: Fn(Peer) -> S,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, perhaps: what is open may end.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service(Peer(peer))).into_owned());
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended badly");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_MAX, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were cut off at the end of the drain");
    }
}

/// Serves gRPC.
pub async fn serve_grpc(listener: TcpListener, stop: CancellationToken, grpc: GrpcService) {
    serve(listener, stop, |peer| {
        let grpc = grpc.clone();
        hyper::service::service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(tonic::body::Body::new);
            request.extensions_mut().insert(peer);
            grpc.clone().oneshot(request)
        })
    })
    .await;
}
