//! Takes up sagas that are due: whose next attempt has come, or whose replica has not gone on with them until its lease ended.

use std::sync::Arc;
use std::time::Duration;

use metrics::gauge;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::drive;
use crate::app::App;
use crate::store::orders;

const LOOK_EVERY: Duration = Duration::from_millis(100);
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// Sagas to a look.
const AT_ONCE: usize = 256;

/// Until told to stop.
pub async fn sweep(app: &Arc<App>, stop: CancellationToken) {
    let mut count_at = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        if count_at <= Instant::now() {
            count_at = Instant::now() + COUNT_EVERY;
            count(app).await;
        }
        if let Err(error) = take_up(app).await {
            tracing::warn!(%error, "sagas that are due cannot be taken up now");
        }
    }
}

async fn take_up(app: &Arc<App>) -> Result<(), lastro_database::Error> {
    let lease_us = i64::try_from(app.settings.lease.as_micros()).unwrap_or(i64::MAX);
    // Places first: whoever takes a saga up goes on with it.
    let places: Vec<_> = std::iter::from_fn(|| app.driving.clone().try_acquire_owned().ok()).take(AT_ONCE).collect();
    let Some(limit) = u32::try_from(places.len()).ok().filter(|limit| *limit > 0) else { return Ok(()) };
    for ((order, now_us), place) in orders::claim(&app.database, limit, lease_us).await?.into_iter().zip(places) {
        let app = app.clone();
        tokio::spawn(async move {
            let next = order.progress.saga.next(now_us, order.placed.deadline_us);
            drive(&app, order, next).await;
            drop(place);
        });
    }
    Ok(())
}

/// What operators are told.
async fn count(app: &App) {
    if let Ok((open, failed, oldest_us)) = orders::count_open(app.database.reader()).await {
        gauge!("lastro_sagas_open").set(open as f64);
        gauge!("lastro_sagas_failed").set(failed as f64);
        let age_us = oldest_us.map_or(0, |oldest_us| lastro_mesh::clock::now_us().saturating_sub(oldest_us));
        gauge!("lastro_sagas_oldest_open_seconds").set(Duration::from_micros(age_us.try_into().unwrap_or_default()).as_secs_f64());
    }
}
