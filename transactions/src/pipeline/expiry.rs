//! Holds that have run out: what they hold is released. A hold is dead exactly at its expiry, since whoever captures or voids it looks at the clock; that
//! its release is written, so that the money is free, follows within a second, or before somebody is refused for lacking it.

use std::time::Duration;

use lastro_database::Error;
use lastro_mesh::clock;
use metrics::counter;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Settler;
use super::attempt::{Subject, changed, marks};
use super::decision::{self, Origin, Resolved, Table};
use crate::EVENTS;
use crate::store::ledger::{Among, ClaimedOperation, ExpiredHolds, Ledger, Lock, OperationChange, Writes};

const SWEEP_EVERY: Duration = Duration::from_millis(250);
/// Holds to a transaction.
const AT_ONCE: u32 = 200;
/// Transactions of one sweep: what is left is for the next one. Others wait for whoever releases before it decides, so that is one.
const SWEEP_ROUNDS: usize = 50;

/// Releases until told to stop.
pub async fn run(settler: &Settler, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
        if let Err(error) = settler.release(Among::All, SWEEP_ROUNDS).await {
            tracing::warn!(%error, "holds that have run out cannot be released now");
            tokio::time::sleep(SWEEP_EVERY).await;
        }
    }
}

/// Releases the holds on some accounts that have run out. False where there was none, or none could be released: somebody who lacks funds lacks them.
pub async fn release_on(settler: &Settler, accounts: &[Uuid]) -> bool {
    match settler.release(Among::OnAccounts(accounts), 1).await {
        Ok(released) => released > 0,
        Err(error) => {
            tracing::warn!(%error, "holds that have run out cannot be released now");
            false
        }
    }
}

impl Settler {
    /// Releases holds that have run out, until there are none left, or in so many transactions; how many. One that cannot be released does not keep the others.
    async fn release(&self, among: Among<'_>, rounds: usize) -> Result<usize, Error> {
        let mut released = 0;
        for _ in 0..rounds {
            match self.release_some(among, AT_ONCE).await {
                Ok(ended) => {
                    released += ended;
                    if ended < AT_ONCE as usize {
                        break;
                    }
                }
                Err((error, _)) if error.is_transient() => return Err(error),
                Err((_, tried)) => return Ok(released + self.release_one_by_one(&tried).await?),
            }
        }
        Ok(released)
    }

    async fn release_one_by_one(&self, ids: &[Uuid]) -> Result<usize, Error> {
        let mut released = 0;
        for id in ids {
            match self.release_some(Among::These(&[*id]), 1).await {
                Ok(ended) => released += ended,
                Err((error, _)) if error.is_transient() => return Err(error),
                Err((error, _)) => {
                    counter!("lastro_holds_stuck_total").increment(1);
                    tracing::error!(%error, operation = %id, "a hold that has run out cannot be released");
                }
            }
        }
        Ok(released)
    }

    /// In one transaction; how many, or which were tried.
    async fn release_some(&self, among: Among<'_>, limit: u32) -> Result<usize, (Error, Vec<Uuid>)> {
        let none = |error: Error| (error, Vec::new());
        let mut ledger = Ledger::begin(&self.database).await.map_err(none)?;
        let which = ExpiredHolds { now_us: clock::now_us(), limit, among };
        let expired = ledger.lock_expired(which).await.map_err(none)?;
        for (operation_id, error) in &expired.unreadable {
            tracing::error!(%error, operation = %operation_id, "a hold does not read");
        }
        if expired.read.is_empty() {
            ledger.rollback().await.map_err(none)?;
            return Ok(0);
        }
        let ids: Vec<Uuid> = expired.read.iter().map(|one| one.operation.id).collect();
        self.release_locked(ledger, expired.read).await.map_err(|error| (error, ids))
    }

    async fn release_locked(&self, mut ledger: Ledger, expired: Vec<ClaimedOperation>) -> Result<usize, Error> {
        let legs = expired.iter().flat_map(|one| decision::legs(&one.operation.movement, one.operation.id, &self.stripes));
        let balances = ledger.lock(&decision::accounts(legs), Lock::Wait).await?;
        let before = marks(&balances);
        let mut table = Table::new(balances, &self.stripes, clock::now_us());
        let mut events = Vec::new();
        let mut holds: Vec<Subject> = expired.into_iter().map(|one| Subject::new(one).1).collect();
        for hold in &mut holds {
            let origin =
                Origin { correlation_id: hold.claimed.correlation_id.clone(), causation_id: hold.claimed.last_event_id, now_us: table.now_us };
            match decision::expire(&mut hold.claimed.operation, &origin, &mut table)? {
                Resolved::Ended(event, _) => events.push(event),
                Resolved::Refused(_) | Resolved::NotLocked | Resolved::ElsewhereFirst => {}
            }
        }
        let released = events.len();
        let updated: Vec<OperationChange<'_>> = holds.iter().filter_map(Subject::change).collect();
        let writes = Writes { updated, events, balances: changed(&before, &table.balances), ..Writes::default() };
        ledger.commit(&writes).await?;
        self.bus.wake(EVENTS.topic);
        self.settled.notify_waiters();
        Ok(released)
    }
}
