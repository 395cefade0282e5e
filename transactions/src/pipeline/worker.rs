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
use super::attempt::{changed, marks};
use super::decision::{self, Origin, Settled, Table};
use super::expiry;
use super::settle::RELEASES_MAX;
use crate::domain::operation::{Head, Operation, Settlement, State, is_to_be_settled};
use crate::store::ledger::{Claim, ClaimedOperation, DeadLetter, Ledger, Lock, OperationChange, ReversalChange, Writes};
use crate::store::provider_calls::{CallEnd, CallKind};

const SWEEP_EVERY: Duration = Duration::from_millis(250);
const CLAIM_MAX: u32 = 200;
/// Attempts in all until an operation becomes a dead letter.
const ATTEMPTS_MAX: i64 = 5;
const PAUSE_AFTER_FAILURE_US: i64 = 250_000;

/// An operation as it stood when it was claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claimed {
    id: Uuid,
    head: Option<Head>,
    state: State,
    attempts: i64,
}

impl Claimed {
    fn of(operation: &Operation) -> Self {
        Self { id: operation.id, head: operation.head, state: operation.state, attempts: operation.attempts }
    }
}

/// What was released before some operations could be decided, as [`Heed`](super::settle::Heed) has it.
#[derive(Default)]
struct Releases {
    count: u32,
    expired_by_us: Option<i64>,
    unsure: Vec<Uuid>,
}

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
        let mut claim = Claim { limit: CLAIM_MAX, after: Uuid::nil(), failed_before_us: clock::now_us() - PAUSE_AFTER_FAILURE_US };
        loop {
            let settled = match self.settle_claimed(claim).await {
                Ok(settled) => {
                    // What could not be decided now does not stand in the way of what comes behind it.
                    claim.after = settled.last().map_or(claim.after, |last| last.id);
                    settled.len()
                }
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
    async fn settle_claimed(&self, claim: Claim) -> Result<Vec<Claimed>, (Error, Vec<Claimed>)> {
        let none = |error: Error| (error, Vec::new());
        let mut releases = Releases::default();
        loop {
            let mut ledger = Ledger::begin(&self.database).await.map_err(none)?;
            let mut operations = ledger.claim(claim).await.map_err(none)?;
            if !operations.unreadable.is_empty() {
                give_up(ledger, operations.unreadable).await.map_err(none)?;
                continue;
            }
            if operations.read.is_empty() {
                ledger.rollback().await.map_err(none)?;
                return Ok(Vec::new());
            }
            let claimed: Vec<Claimed> = operations.read.iter().map(|one| Claimed::of(&one.operation)).collect();
            match self.settle_locked(ledger, &claimed, &mut operations.read, &mut releases).await {
                Ok(true) => return Ok(claimed),
                // A clearing account was full: again, with another one. At most once a stripe.
                Ok(false) => {}
                Err(error) => return Err((error, claimed)),
            }
        }
    }

    /// False when a clearing account was full, or holds that had run out were released first: then nothing was settled.
    async fn settle_locked(
        &self,
        mut ledger: Ledger,
        claimed: &[Claimed],
        operations: &mut [ClaimedOperation],
        releases: &mut Releases,
    ) -> Result<bool, Error> {
        // The originals of reversals are operations that somebody may have locked: before balances, as everybody does.
        let mut originals: Vec<Uuid> = operations.iter().filter_map(|one| one.operation.original_id).collect();
        originals.sort_unstable();
        ledger.lock_operations(&originals, Lock::Wait).await?;
        let legs = operations.iter().flat_map(|one| decision::legs(&one.operation.movement, one.operation.id, &self.stripes));
        let balances = ledger.lock(&decision::accounts(legs), Lock::Wait).await?;
        let before = marks(&balances);
        let unsure = releases.unsure.clone();
        let mut table = Table { unsure: &unsure, ..Table::new(balances, &self.stripes, clock::now_us()) };
        let mut writes = Writes::default();
        let mut settled = vec![false; operations.len()];
        for (one, settled) in operations.iter_mut().zip(&mut settled) {
            // As its caller's call would have recorded it, had it settled it.
            let origin = Origin { correlation_id: one.correlation_id.clone(), causation_id: one.last_event_id, now_us: table.now_us };
            let operation = &mut one.operation;
            match decision::settle(operation, &origin, &mut table)? {
                Settled::Ended(event, postings) => {
                    writes.events.push(event);
                    writes.postings.extend(postings.into_iter().map(|posting| (operation.id, posting)));
                    // That it was rejected does not use up the one reversal of its original.
                    let original_id = operation.original_id.filter(|_| operation.state == State::Rejected);
                    writes.reversals.extend(original_id.map(|original_id| ReversalChange { original_id, from: Some(operation.id), to: None }));
                    // Nobody is charged for what was rejected.
                    let is_over = operation.settlement == Settlement::External && operation.state == State::Rejected;
                    writes.ended_calls.extend(is_over.then_some((operation.id, CallKind::Charge, CallEnd::NotAsked)));
                    *settled = true;
                }
                Settled::Open | Settled::Unsure => {}
                Settled::ElsewhereFirst => {
                    ledger.rollback().await?;
                    return Ok(false);
                }
            }
        }
        let expired_by_us = releases.expired_by_us.unwrap_or(table.now_us);
        if self.must_release_first(&mut ledger, &table.short, expired_by_us).await? {
            let short = std::mem::take(&mut table.short);
            ledger.rollback().await?;
            releases.count += 1;
            releases.expired_by_us = Some(expired_by_us);
            let released = expiry::release_on(self, &short, expired_by_us).await;
            // Where there are many, or somebody else has them, whoever lacks their money is decided at a later sweep.
            if !released || releases.count >= RELEASES_MAX {
                releases.unsure.extend(short);
            }
            return Ok(false);
        }
        writes.balances = changed(&before, &table.balances);
        let all = claimed.iter().zip(operations.iter()).zip(settled);
        writes.updated = all.filter(|(_, settled)| *settled).map(|((claimed, one), _)| change(claimed, &one.operation)).collect();
        ledger.commit(&writes).await?;
        self.committed(&writes);
        Ok(true)
    }

    /// Notes that an operation could not be settled: it waits for another attempt, or becomes a dead letter. What another replica has done with it
    /// since stays: it is locked first, and left alone unless it stands where it was claimed.
    async fn note_failure(&self, claimed: Claimed, error: &Error) -> Result<(), Error> {
        let mut ledger = Ledger::begin(&self.database).await?;
        let stored = ledger.operation(claimed.id).await?.ok_or_else(|| Error::corrupt("a claimed operation that is not there"))?;
        let ClaimedOperation { operation: stored, correlation_id, last_event_id } = stored;
        if Claimed::of(&stored) != claimed || !is_to_be_settled(stored.state) {
            return ledger.rollback().await;
        }
        let (mut culprit, now_us) = (stored, clock::now_us());
        let origin = Origin { correlation_id, causation_id: last_event_id, now_us };
        let event = decision::wait_for_retry(&mut culprit, &origin);
        let mut writes = Writes { updated: vec![change(&claimed, &culprit)], events: event.into_iter().collect(), ..Writes::default() };
        if culprit.attempts >= ATTEMPTS_MAX {
            tracing::error!(%error, operation = %culprit.id, attempts = culprit.attempts, "an operation becomes a dead letter");
            counter!("lastro_operations_dead_total").increment(1);
            let error = error.to_string();
            writes.dead_letters.push(DeadLetter { operation_id: culprit.id, error, attempts: culprit.attempts, create_time_us: now_us });
        }
        ledger.commit(&writes).await
    }
}

/// Parks operations whose rows do not read, so that the others go on.
async fn give_up(ledger: Ledger, unreadable: Vec<(Uuid, Error)>) -> Result<(), Error> {
    let mut writes = Writes::default();
    for (operation_id, error) in unreadable {
        tracing::error!(%error, operation = %operation_id, "an operation that does not read becomes a dead letter");
        counter!("lastro_operations_dead_total").increment(1);
        writes.dead_letters.push(DeadLetter { operation_id, error: error.to_string(), attempts: 0, create_time_us: clock::now_us() });
    }
    ledger.commit(&writes).await
}

fn change<'a>(from: &Claimed, operation: &'a Operation) -> OperationChange<'a> {
    OperationChange { operation, from: from.head, from_state: from.state }
}
