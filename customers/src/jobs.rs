//! Background work of customers.

use std::time::Duration;

use lastro_mesh::clock;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::app::App;
use crate::store::{failures, known_addresses, refresh_tokens, sessions};

/// What other replicas revoke is known here after so long.
const LEARN_EVERY: Duration = Duration::from_secs(1);
/// In ticks of LEARN_EVERY.
const FORGET_EVERY: u32 = 600;
const FAILURES_KEPT_US: i64 = 24 * 3600 * 1_000_000;
const ADDRESSES_KEPT_US: i64 = 90 * 24 * 3600 * 1_000_000;

/// Runs until told to stop.
pub async fn run(app: &App, stop: CancellationToken) {
    let mut ticks = interval(LEARN_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for tick in 1_u32.. {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = app.learn_revocations().await {
            tracing::warn!(%error, "revoked sessions could not be read");
        }
        if let Err(error) = app.learn_keys().await {
            tracing::warn!(%error, "the signing keys could not be read");
        }
        if tick.is_multiple_of(FORGET_EVERY)
            && let Err(error) = forget(app).await
        {
            tracing::warn!(%error, "expired sessions could not be deleted");
        }
    }
}

async fn forget(app: &App) -> Result<(), Error> {
    let now_us = clock::now_us();
    let tx = app.database.begin().await?;
    sessions::forget(&tx, now_us).await?;
    refresh_tokens::forget(&tx, now_us).await?;
    failures::forget(&tx, now_us - FAILURES_KEPT_US).await?;
    known_addresses::forget(&tx, now_us - ADDRESSES_KEPT_US).await?;
    tx.commit().await.map_err(lastro_database::Error::from)?;
    app.registrations.forget_quiet();
    app.revoked.forget_before(now_us / 1_000_000);
    Ok(())
}
