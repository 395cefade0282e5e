//! The REST listener.

use std::convert::Infallible;
use std::time::Duration;

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
    lastro_mesh::serve::serve(listener, stop.clone(), move |peer| {
        let (gateway, stop) = (gateway.clone(), stop.clone());
        service_fn(move |request| {
            let (gateway, peer, stop) = (gateway.clone(), peer.clone(), stop.clone());
            async move { Ok::<_, Infallible>(gateway.0.handle(request, &peer, &stop).await) }
        })
    })
    .await;
    end.cancel();
}
