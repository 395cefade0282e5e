//! Supervision of background work: work that ends or panics is started again, counted, and told by readiness when it keeps failing.

use std::future::Future;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use metrics::counter;
use tokio_util::sync::CancellationToken;

use crate::health::Health;

/// Between the end of a piece of work and its next start: 1 s at first, then longer, so that what fails at once does not fill the log. Never so long
/// that what waits for the work notices much more than the failure itself.
const PAUSES: ExponentialBuilder =
    ExponentialBuilder::new().with_min_delay(Duration::from_secs(1)).with_max_delay(Duration::from_secs(5)).with_factor(2.0).without_max_times();
/// Work that has run for so long works: what failed before is forgotten.
const SOUND_AFTER: Duration = Duration::from_secs(60);
/// Work that has failed so often without having worked in between keeps failing.
const FAILURES_UNTIL_TOLD: u32 = 3;

/// A piece of background work.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// In logs and metrics.
    pub name: &'static str,
    /// In readiness.
    pub check: &'static str,
    /// Whether the process is not ready while the work keeps failing. Else readiness lists it as degraded and stays.
    pub is_essential: bool,
}

/// Runs work in a task of its own until it is told to stop. Work that ends before that, by itself or by a panic, is a defect: that is logged and
/// counted, and the work is started again after a pause, since what one row or one message sets off must not end for good what everybody counts on.
pub async fn keep_running<F>(work: Work, health: &Health, stop: &CancellationToken, begin: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let set = |works| if work.is_essential { health.set(work.check, works) } else { health.set_degraded(work.check, !works) };
    let (mut pauses, mut failures) = (PAUSES.build(), 0);
    loop {
        let mut running = tokio::spawn(begin());
        let ended = tokio::select! {
            ended = &mut running => ended,
            () = tokio::time::sleep(SOUND_AFTER) => {
                if failures >= FAILURES_UNTIL_TOLD {
                    set(true);
                }
                (pauses, failures) = (PAUSES.build(), 0);
                running.await
            }
        };
        if stop.is_cancelled() {
            return;
        }
        let how = if ended.is_err_and(|error| error.is_panic()) { "panicked" } else { "ended" };
        tracing::error!(work = work.name, "background work {how}; it is started again");
        counter!("lastro_background_failures_total", "work" => work.name, "how" => how).increment(1);
        failures += 1;
        if failures == FAILURES_UNTIL_TOLD {
            set(false);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pauses.next().unwrap_or(SOUND_AFTER)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::sleep;

    use super::*;

    /// Work that fails so often, by a panic or by ending, and then works until it is told to stop.
    fn failing(
        times: u32,
        panics: bool,
        stop: &CancellationToken,
    ) -> (Arc<AtomicU32>, impl Fn() -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) {
        let (begun, stop) = (Arc::new(AtomicU32::new(0)), stop.clone());
        let counted = begun.clone();
        let work = move || -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
            let (begun, stop) = (begun.clone(), stop.clone());
            Box::pin(async move {
                if begun.fetch_add(1, Ordering::Relaxed) < times {
                    assert!(!panics, "in vain");
                    return;
                }
                stop.cancelled().await;
            })
        };
        (counted, work)
    }

    fn work(is_essential: bool) -> Work {
        Work { name: "test", check: "test work", is_essential }
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_panics_or_ends_is_started_again_until_it_is_told_to_stop() {
        for panics in [true, false] {
            let (stop, health) = (CancellationToken::new(), Health::new());
            let (begun, begin) = failing(2, panics, &stop);
            let stopped = async {
                sleep(Duration::from_secs(5)).await;
                stop.cancel();
            };
            let both = async { tokio::join!(keep_running(work(true), &health, &stop, begin), stopped) };
            tokio::time::timeout(Duration::from_secs(10), both).await.expect("it ends");
            assert_eq!(begun.load(Ordering::Relaxed), 3);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn readiness_tells_of_work_that_keeps_failing_until_it_works_again() {
        for is_essential in [true, false] {
            let (stop, health) = (CancellationToken::new(), Health::new());
            health.set("something else", true);
            let (_, begin) = failing(3, true, &stop);
            let watched = async {
                sleep(Duration::from_secs(2)).await;
                assert!(health.is_ready(), "twice is not yet often");
                // It failed at 0, 1 and 3 seconds.
                sleep(Duration::from_secs(2)).await;
                assert_eq!(health.is_ready(), !is_essential);
                assert_eq!(health.degraded(), if is_essential { Vec::new() } else { vec!["test work"] });
                // It is started again at 7 seconds, and works.
                sleep(Duration::from_secs(70)).await;
                assert!(health.is_ready() && health.degraded().is_empty());
                stop.cancel();
            };
            tokio::join!(keep_running(work(is_essential), &health, &stop, begin), watched);
        }
    }
}
