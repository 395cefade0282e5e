//! Holds that have run out: what they hold is released. A hold is dead exactly at its expiry, since whoever captures or voids it looks at the clock; that
//! its release is written, so that the money is free, follows within a second, or before somebody is refused for lacking it.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lastro_database::Error;
use lastro_mesh::clock;
use metrics::counter;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Settler;
use super::attempt::{Subject, changed, marks};
use super::decision::{self, Origin, Resolved, Table};
use crate::store::ledger::{Among, ClaimedOperation, ExpiredHolds, Ledger, Lock, OperationChange, Writes};

const SWEEP_EVERY: Duration = Duration::from_millis(250);
/// Holds to a transaction.
const AT_ONCE: u32 = 200;
/// Transactions of one sweep: what is left is for the next one. Others wait for whoever releases before it decides, so that is one.
const SWEEP_ROUNDS: usize = 50;

/// A hold that cannot be released is left alone for so long.
const STUCK_FOR: Duration = Duration::from_secs(60);
/// So many are remembered.
const STUCK_MAX: usize = 10_000;

/// Holds that have run out and could not be released: they keep nobody else, and the log has each of them once a minute.
#[derive(Default)]
pub struct StuckHolds(Mutex<HashMap<Uuid, Instant>>);

impl StuckHolds {
    /// Those of the last minute.
    pub fn ids(&self) -> Vec<Uuid> {
        let mut stuck = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stuck.retain(|_, since| since.elapsed() < STUCK_FOR);
        stuck.keys().copied().collect()
    }

    fn note(&self, id: Uuid, why: &dyn Display) {
        counter!("lastro_holds_stuck_total").increment(1);
        tracing::error!(error = %why, operation = %id, "a hold that has run out cannot be released");
        let mut stuck = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if stuck.len() < STUCK_MAX {
            stuck.insert(id, Instant::now());
        }
    }
}

/// Releases until told to stop.
pub async fn run(settler: &Settler, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
        if let Err(error) = settler.release(Among::All, clock::now_us(), SWEEP_ROUNDS).await {
            tracing::warn!(%error, "holds that have run out cannot be released now");
            tokio::time::sleep(SWEEP_EVERY).await;
        }
    }
}

/// Releases holds on some accounts that had run out by a time. False where there was none, or none could be released.
pub async fn release_on(settler: &Settler, accounts: &[Uuid], expired_by_us: i64) -> bool {
    match settler.release(Among::OnAccounts(accounts), expired_by_us, 1).await {
        Ok(released) => released > 0,
        Err(error) => {
            tracing::warn!(%error, "holds that have run out cannot be released now");
            false
        }
    }
}

/// Releases these holds, which have run out. False where none could be released, as when another replica is releasing them.
pub async fn release_these(settler: &Settler, holds: &[Uuid]) -> bool {
    match settler.release(Among::These(holds), clock::now_us(), 1).await {
        Ok(released) => released > 0,
        Err(error) => {
            tracing::warn!(%error, "holds that have run out cannot be released now");
            false
        }
    }
}

/// What became of those that were looked at in one transaction.
struct Round {
    looked_at: usize,
    released: usize,
}

/// Why a round was not committed: because of one of the holds that were looked at, if any were.
struct Failed {
    error: Error,
    looked_at: Vec<Uuid>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, looked_at: Vec::new() }
    }
}

impl Settler {
    /// Releases holds that had run out by a time, until there are none left, or in so many rounds; how many. Those that cannot be released are noted, and
    /// left out from then on: each round gets on.
    async fn release(&self, among: Among<'_>, expired_by_us: i64, rounds: usize) -> Result<usize, Error> {
        let mut released = 0;
        for _ in 0..rounds {
            match self.release_round(among, expired_by_us, AT_ONCE).await {
                Ok(round) => {
                    released += round.released;
                    if round.looked_at < AT_ONCE as usize {
                        break;
                    }
                }
                Err(Failed { error, looked_at }) if error.is_transient() || looked_at.is_empty() => return Err(error),
                Err(Failed { looked_at, .. }) => released += self.release_one_by_one(&looked_at, expired_by_us).await?,
            }
        }
        Ok(released)
    }

    async fn release_one_by_one(&self, ids: &[Uuid], expired_by_us: i64) -> Result<usize, Error> {
        let mut released = 0;
        for id in ids {
            match self.release_round(Among::These(&[*id]), expired_by_us, 1).await {
                Ok(round) => released += round.released,
                Err(Failed { error, looked_at }) if error.is_transient() || looked_at.is_empty() => return Err(error),
                Err(Failed { error, .. }) => self.stuck_holds.note(*id, &error),
            }
        }
        Ok(released)
    }

    /// In one transaction.
    async fn release_round(&self, among: Among<'_>, expired_by_us: i64, limit: u32) -> Result<Round, Failed> {
        let mut ledger = Ledger::begin(&self.database).await?;
        let except = self.stuck_holds.ids();
        let expired = ledger.lock_expired(ExpiredHolds { now_us: expired_by_us, limit, among, except: &except }).await?;
        expired.unreadable.iter().for_each(|(id, error)| self.stuck_holds.note(*id, error));
        let looked_at = expired.read.len() + expired.unreadable.len();
        if expired.read.is_empty() {
            ledger.rollback().await?;
            return Ok(Round { looked_at, released: 0 });
        }
        let ids: Vec<Uuid> = expired.read.iter().map(|one| one.operation.id).collect();
        match self.release_locked(ledger, expired.read).await {
            Ok(released) => Ok(Round { looked_at, released }),
            Err(error) => Err(Failed { error, looked_at: ids }),
        }
    }

    async fn release_locked(&self, mut ledger: Ledger, expired: Vec<ClaimedOperation>) -> Result<usize, Error> {
        let legs = expired.iter().flat_map(|one| decision::legs(&one.operation.movement, one.operation.id, &self.stripes));
        let balances = ledger.lock(&decision::accounts(legs), Lock::Wait).await?;
        let before = marks(&balances);
        let mut table = Table::new(balances, &self.stripes, clock::now_us());
        let mut events = Vec::new();
        let mut holds: Vec<Subject> = expired.into_iter().map(|one| Subject::new(one).1).collect();
        for hold in &mut holds {
            let operation = &mut hold.claimed.operation;
            let origin =
                Origin { correlation_id: hold.claimed.correlation_id.clone(), causation_id: hold.claimed.last_event_id, now_us: table.now_us };
            match decision::expire(operation, &origin, &mut table)? {
                Resolved::Ended(event, _) => events.push(event),
                // A clock that was set back since it was read: later.
                Resolved::Refused(_) => {}
                Resolved::NotLocked | Resolved::ElsewhereFirst => self.stuck_holds.note(operation.id, &"an account of it has no balance"),
            }
        }
        let released = events.len();
        let updated: Vec<OperationChange<'_>> = holds.iter().filter_map(Subject::change).collect();
        let writes = Writes { updated, events, balances: changed(&before, &table.balances), ..Writes::default() };
        ledger.commit(&writes).await?;
        self.committed(&writes);
        Ok(released)
    }
}
