//! The REST listener.

use std::convert::Infallible;
use std::time::Duration;

use http_body_util::Full;
use hyper::service::service_fn;
use lastro_mesh::serve::Listener;
use tokio_util::sync::CancellationToken;

use crate::Gateway;

const FORGET_EVERY: Duration = Duration::from_secs(60);

/// Serves until told to stop, then until what is in flight has ended.
pub async fn serve(gateway: Gateway, listener: Listener, stop: CancellationToken) {
    let edge = gateway.0.clone();
    let forget = tokio::spawn(async move {
        loop {
            tokio::time::sleep(FORGET_EVERY).await;
            edge.forget_quiet();
        }
    });
    lastro_mesh::serve::serve(listener, stop, move |peer| {
        let gateway = gateway.clone();
        service_fn(move |request| {
            let (gateway, peer) = (gateway.clone(), peer.clone());
            async move { Ok::<_, Infallible>(gateway.0.handle(request, &peer).await.map(Full::new)) }
        })
    })
    .await;
    forget.abort();
}
