//! The REST listener.

use std::convert::Infallible;
use std::time::Duration;

use http_body_util::Full;
use hyper::service::service_fn;
use lastro_mesh::serve::Listener;
use lastro_mesh::supervise::{Work, keep_running};
use tokio_util::sync::CancellationToken;

use crate::Gateway;

const FORGET_EVERY: Duration = Duration::from_secs(60);

/// Serves until told to stop, then until what is in flight has ended.
pub async fn serve(gateway: Gateway, listener: Listener, stop: CancellationToken) {
    let (edge, end) = (gateway.0.clone(), CancellationToken::new());
    let work = Work { name: "limits", check: "gateway: limits", is_essential: false };
    let forget = {
        let end = end.clone();
        async move {
            let begin = || {
                let (edge, end) = (edge.clone(), end.clone());
                async move {
                    loop {
                        tokio::select! {
                            () = end.cancelled() => return,
                            () = tokio::time::sleep(FORGET_EVERY) => edge.forget_quiet(),
                        }
                    }
                }
            };
            keep_running(work, edge.health(), &end, begin).await;
        }
    };
    tokio::spawn(forget);
    lastro_mesh::serve::serve(listener, stop, move |peer| {
        let gateway = gateway.clone();
        service_fn(move |request| {
            let (gateway, peer) = (gateway.clone(), peer.clone());
            async move { Ok::<_, Infallible>(gateway.0.handle(request, &peer).await.map(Full::new)) }
        })
    })
    .await;
    end.cancel();
}
