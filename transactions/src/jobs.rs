//! Background work of transactions: asks customers every second which tokens are dead, should the bus have lost it; and fills in what replicas of an
//! older version leave out.

use std::time::Duration;

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::Revocation;
use lastro_proto::internal::customers::v1::{self as wire, ListRevocationsRequest};
use metrics::gauge;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::Error;
use crate::app::App;
use crate::store::{operations, users};

const ASK_EVERY: Duration = Duration::from_secs(1);
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// In ticks of ASK_EVERY.
const FORGET_EVERY: u32 = 600;
/// So often operations of an older version get their owners; less often where looking for them takes long, as in a store where many have none: at most
/// one part in fifty of the time.
const FILL_IN_EVERY: Duration = Duration::from_secs(2);
const FILL_IN_SHARE: u32 = 50;
/// What is left is for the next time.
const FILL_IN_BATCHES: u32 = 4;

/// Fills in owners until told to stop.
pub async fn keep_filling_in(app: &App, stop: CancellationToken) {
    let mut pause = FILL_IN_EVERY;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let started = Instant::now();
        if let Err(error) = fill_in_owners(app).await {
            tracing::warn!(%error, "operations of an older version could not get their owners");
        }
        pause = FILL_IN_EVERY.max(started.elapsed() * FILL_IN_SHARE);
    }
}

/// Learns which tokens are dead until told to stop.
pub async fn keep_learning(app: &App, stop: CancellationToken) {
    let staleness = gauge!("lastro_revocations_stale_seconds");
    let (mut learned, mut asked) = (Learned::default(), Instant::now());
    let mut ticks = interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for tick in 1_u32.. {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match ask(app, &mut learned).await {
            Ok(()) => asked = Instant::now(),
            Err(error) => tracing::warn!(%error, "customers does not say which tokens are dead"),
        }
        staleness.set(asked.elapsed().as_secs_f64());
        if tick.is_multiple_of(FORGET_EVERY)
            && let Err(error) = forget(app).await
        {
            tracing::warn!(%error, "revocations that no longer matter could not be deleted");
        }
    }
}

/// What customers has told so far.
#[derive(Default)]
struct Learned {
    cursor: String,
    /// What is known in memory, and could not be stored yet.
    unstored: Vec<Revocation>,
}

/// Learns what was revoked since a cursor, page by page to the end. What was learned is kept, and the cursor moved, also where a later page fails.
async fn ask(app: &App, learned: &mut Learned) -> Result<(), Error> {
    loop {
        let request = Call::start(ASK_TIMEOUT).request(ListRevocationsRequest { cursor: learned.cursor.clone() });
        let answer = app.customers.clone().list_revocations(request).await.map_err(|status| Error::Customers(Box::new(status)))?.into_inner();
        let told = answer.revocations.iter().map(read).collect::<Option<Vec<_>>>();
        let told = told.ok_or_else(|| Error::Customers(Box::new(tonic::Status::internal("a revocation that does not read"))))?;
        // In memory first: who is dead is refused at once, also where the database is away. And all of it is stored: what is in memory may have come
        // there by another service of the same process.
        app.revoked.insert(told.iter().copied());
        learned.unstored.extend(told);
        learned.cursor = answer.cursor;
        if !learned.unstored.is_empty() {
            let tx = app.database.begin().await?;
            users::add_revocations(&tx, &learned.unstored).await?;
            tx.commit().await.map_err(lastro_database::Error::from)?;
            learned.unstored.clear();
        }
        if !answer.more {
            return Ok(());
        }
    }
}

fn read(told: &wire::Revocation) -> Option<Revocation> {
    let forget_after_s = told.forget_after_s;
    if told.user_id.is_empty() {
        Some(Revocation::Session { session_id: Uuid::parse_str(&told.session_id).ok()?, forget_after_s })
    } else {
        Some(Revocation::User { user_id: Uuid::parse_str(&told.user_id).ok()?, token_version: told.token_version, forget_after_s })
    }
}

async fn fill_in_owners(app: &App) -> Result<(), Error> {
    if !app.database.is_postgres() {
        // One process, of one version.
        return Ok(());
    }
    for _ in 0..FILL_IN_BATCHES {
        let tx = app.database.begin().await?;
        let filled_in = operations::fill_in_owners(&tx).await?;
        tx.commit().await.map_err(lastro_database::Error::from)?;
        if filled_in == 0 {
            break;
        }
    }
    Ok(())
}

async fn forget(app: &App) -> Result<(), Error> {
    let now_s = clock::now_s();
    let tx = app.database.begin().await?;
    users::forget_revoked(&tx, now_s).await?;
    tx.commit().await.map_err(lastro_database::Error::from)?;
    app.revoked.forget_before(now_s);
    Ok(())
}
