//! The worker: settles operations that were stored unsettled, because somebody else held their accounts or because settling failed. It
//! is woken in process; a sweep claims what another replica left. What fails is tried again with growing pauses, then parked as a dead
//! letter for an operator, and the rest goes on.

use std::time::Duration;

use lastro_database::Error;
use lastro_mesh::clock;
use metrics::{counter, gauge};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Settler;
use super::batch::changed;
use super::decision::{self, Origin};
use crate::store::ledger::{Claim, DeadLetter, Ledger, Lock, Writes};
use crate::store::operations::Operation;

const SWEEP_EVERY: Duration = Duration::from_millis(250);
const CLAIM_MAX: u32 = 200;
/// Attempts in all until an operation becomes a dead letter.
const ATTEMPTS_MAX: i64 = 5;
const PAUSE_AFTER_FAILURE_US: i64 = 250_000;

/// Settles until told to stop.
pub async fn run(settler: &Settler, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = settler.unsettled.notified() => {}
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
        if let Err(error) = settler.sweep().await {
            tracing::warn!(%error, "waiting operations cannot be settled now");
            tokio::time::sleep(SWEEP_EVERY).await;
        }
    }
}

impl Settler {
    /// Settles everything that waits: together, and one by one if that fails, so that one that is at fault is found.
    async fn sweep(&self) -> Result<(), Error> {
        let claim = Claim { limit: CLAIM_MAX, after: Uuid::nil(), failed_before_us: clock::now_us() - PAUSE_AFTER_FAILURE_US };
        loop {
            let settled = match self.settle_claimed(claim).await {
                Ok(settled) => settled.len(),
                Err((error, _)) if error.is_transient() => return Err(error),
                Err(_) => return self.sweep_one_by_one(claim).await,
            };
            gauge!("lastro_operations_waiting").set(settled as f64);
            if settled < CLAIM_MAX as usize {
                return Ok(());
            }
        }
    }

    async fn sweep_one_by_one(&self, claim: Claim) -> Result<(), Error> {
        let mut claim = Claim { limit: 1, ..claim };
        loop {
            match self.settle_claimed(claim).await {
                Ok(settled) => match settled.last() {
                    Some(last) => claim.after = last.id,
                    None => return Ok(()),
                },
                Err((error, _)) if error.is_transient() => return Err(error),
                Err((error, claimed)) => {
                    let Some(culprit) = claimed.into_iter().next() else { return Err(error) };
                    claim.after = culprit.id;
                    self.note_failure(culprit, &error).await?;
                }
            }
        }
    }

    /// Claims and settles in one transaction; what was claimed, also when settling it failed.
    async fn settle_claimed(&self, claim: Claim) -> Result<Vec<Operation>, (Error, Vec<Operation>)> {
        let none = |error: Error| (error, Vec::new());
        let mut ledger = Ledger::begin(&self.database).await.map_err(none)?;
        let mut claimed = ledger.claim(claim).await.map_err(none)?;
        if claimed.is_empty() {
            ledger.rollback().await.map_err(none)?;
            return Ok(claimed);
        }
        match self.settle_locked(ledger, &mut claimed).await {
            Ok(()) => Ok(claimed),
            Err(error) => Err((error, claimed)),
        }
    }

    async fn settle_locked(&self, mut ledger: Ledger, claimed: &mut [Operation]) -> Result<(), Error> {
        let mut balances = ledger.lock(&decision::accounts(claimed.iter()), Lock::Wait).await?;
        let before = balances.clone();
        let mut writes = Writes::default();
        for operation in claimed.iter_mut() {
            let origin = Origin { correlation_id: format!("worker-{}", operation.id.simple()), causation_id: None, now_us: clock::now_us() };
            if let Some((event, postings)) = decision::settle(operation, &origin, &mut balances) {
                writes.events.push(event);
                writes.postings.extend(postings.into_iter().map(|posting| (operation.id, posting)));
            }
        }
        writes.balances = changed(&before, &balances);
        writes.updated = claimed.iter().collect();
        ledger.commit(&writes).await?;
        self.bus.wake();
        self.settled.notify_waiters();
        Ok(())
    }

    async fn note_failure(&self, mut culprit: Operation, error: &Error) -> Result<(), Error> {
        // As it is stored, not as the failed attempt left it.
        let stored = crate::store::operations::get(self.database.writer(), culprit.id).await?;
        culprit = stored.ok_or_else(|| Error::corrupt("a claimed operation that is not there"))?;
        let now_us = clock::now_us();
        let origin = Origin { correlation_id: format!("worker-{}", culprit.id.simple()), causation_id: None, now_us };
        let event = decision::wait_for_retry(&mut culprit, &origin);
        let mut writes = Writes { updated: vec![&culprit], events: event.into_iter().collect(), ..Writes::default() };
        if culprit.attempts >= ATTEMPTS_MAX {
            tracing::error!(%error, operation = %culprit.id, attempts = culprit.attempts, "an operation becomes a dead letter");
            counter!("lastro_operations_dead_total").increment(1);
            let error = error.to_string();
            writes.dead_letters.push(DeadLetter { operation_id: culprit.id, error, attempts: culprit.attempts, create_time_us: now_us });
        }
        Ledger::begin(&self.database).await?.commit(&writes).await
    }
}
