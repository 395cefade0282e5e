//! Background work that a panic does not end.

use std::future::Future;
use std::time::Duration;

use metrics::counter;
use tokio_util::sync::CancellationToken;

/// Between a panic and the next start.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs `work` in a task of its own until it returns, which it does when it is told to stop. Where it panics, that is logged and counted, and it
/// begins anew after a second: a defect that one row or one message sets off must not end for good what everybody counts on.
pub async fn keep_running<F>(name: &'static str, stop: &CancellationToken, work: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    while let Err(error) = tokio::spawn(work()).await {
        if !error.is_panic() {
            return;
        }
        tracing::error!(work = name, "background work panicked; it begins anew");
        counter!("lastro_background_panics_total", "work" => name).increment(1);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_that_panics_begins_anew_until_it_is_told_to_stop() {
        let (begun, stop) = (Arc::new(AtomicU32::new(0)), CancellationToken::new());
        let work = || {
            let (begun, stop) = (begun.clone(), stop.clone());
            async move {
                assert!(begun.fetch_add(1, Ordering::Relaxed) >= 2, "twice in vain");
                stop.cancelled().await;
            }
        };
        let stopped = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            stop.cancel();
        };
        tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(keep_running("test", &stop, work), stopped) }).await.expect("it ends");
        assert_eq!(begun.load(Ordering::Relaxed), 3);
    }
}
