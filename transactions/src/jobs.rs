//! Background work of transactions: asks customers every second which sessions are dead, should the bus have lost it.

use std::time::Duration;

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_proto::internal::customers::v1::ListRevocationsRequest;
use metrics::gauge;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::Error;
use crate::app::App;
use crate::store::users::{self, RevokedSession};

const ASK_EVERY: Duration = Duration::from_secs(1);
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// In ticks of ASK_EVERY.
const FORGET_EVERY: u32 = 600;

/// Runs until told to stop.
pub async fn run(app: &App, stop: CancellationToken) {
    let staleness = gauge!("lastro_revocations_stale_seconds");
    let (mut cursor, mut asked) = (0, Instant::now());
    let mut ticks = interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for tick in 1_u32.. {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match ask(app, cursor).await {
            Ok(next) => (cursor, asked) = (next, Instant::now()),
            Err(error) => tracing::warn!(%error, "customers does not say which sessions are dead"),
        }
        staleness.set(asked.elapsed().as_secs_f64());
        if tick.is_multiple_of(FORGET_EVERY)
            && let Err(error) = forget(app).await
        {
            tracing::warn!(%error, "dead sessions could not be deleted");
        }
    }
}

/// Learns what was revoked since a cursor; the next one.
async fn ask(app: &App, since: i64) -> Result<i64, Error> {
    let request = Call::start(ASK_TIMEOUT).request(ListRevocationsRequest { since });
    let answer = app.customers.clone().list_revocations(request).await.map_err(|status| Error::Customers(Box::new(status)))?.into_inner();
    let told = answer
        .revocations
        .iter()
        .filter_map(|one| Some(RevokedSession { session_id: Uuid::parse_str(&one.session_id).ok()?, forget_after_s: one.forget_after_s }));
    let new: Vec<RevokedSession> = told.filter(|one| !app.revoked.contains(one.session_id)).collect();
    if !new.is_empty() {
        app.revoked.insert(new.iter().map(|one| (one.session_id, one.forget_after_s)));
        let tx = app.database.begin().await?;
        for session in new {
            users::add_revoked(&tx, session).await?;
        }
        tx.commit().await.map_err(lastro_database::Error::from)?;
    }
    Ok(answer.cursor)
}

async fn forget(app: &App) -> Result<(), Error> {
    let now_s = clock::now_s();
    let tx = app.database.begin().await?;
    users::forget_revoked(&tx, now_s).await?;
    tx.commit().await.map_err(lastro_database::Error::from)?;
    app.revoked.forget_before(now_s);
    Ok(())
}
