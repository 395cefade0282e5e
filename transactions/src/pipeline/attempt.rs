//! One attempt of a batch, in one transaction: locks what it needs, decides in the order in which the callers came, writes everything, and commits.

use std::collections::HashMap;

use lastro_database::group_commit::{Failure, Job, Work as _, read_back};
use lastro_database::{Error, Kind};
use lastro_events::Event;
use lastro_mesh::clock;
use lastro_money::Minor;
use uuid::Uuid;

use super::Settler;
use super::decision::{self, Origin, Resolved, Settled, Table};
use super::job::{Culprit, NewOperation, NewResolution, Purpose, Refused, Work};
use super::settle::{self, Detour, Heed};
use crate::contract;
use crate::domain::ledger::Balances;
use crate::domain::operation::{Operation, State, Type, is_terminal, is_to_be_settled};
use crate::domain::payment::{self, TooMuch};
use crate::domain::rejection::Reason;
use crate::provider;
use crate::store::ledger::{
    Among, BalanceChange, ClaimedOperation, ExpiredHolds, Ledger, Lock, OperationChange, RefundChange, ReversalChange, Writes,
};
use crate::store::operations;
use crate::store::provider_calls::{CallKind, NewCall};
use crate::store::sagas::{Saga, SagaEpoch};

/// How operations are attempted.
pub(super) struct Plan<'a> {
    /// Else operations are stored unsettled, as failed once.
    pub decide: bool,
    pub lock: Lock,
    pub heed: &'a Heed,
}

/// What became of what one job asked for. Nothing of it is told before the commit.
#[allow(clippy::large_enum_variant, reason = "almost always the largest; a box for each would cost more than the room")]
pub enum Outcome {
    Created(Operation),
    Together(Vec<Operation>),
    Resolved(Box<Operation>),
    Refused(Refused),
    /// Somebody else has what it needs, and without that it is not stored.
    NotLocked,
}

/// An operation that was stored before, as it was locked and as it is now.
pub(super) struct Subject {
    pub claimed: ClaimedOperation,
    was: Operation,
}

impl Subject {
    pub fn new(claimed: ClaimedOperation) -> (Uuid, Self) {
        (claimed.operation.id, Self { was: claimed.operation.clone(), claimed })
    }

    /// What is to be written of what is refunded of it, if that has changed.
    pub fn refund_change(&self) -> Option<RefundChange> {
        let (was, now) = (&self.was.refunded, &self.claimed.operation.refunded);
        (was != now).then(|| RefundChange { payment_id: self.was.id, from: was.clone(), to: now.clone() })
    }

    /// What is to be written of it, if something happened to it.
    pub fn change(&self) -> Option<OperationChange<'_>> {
        let operation = &self.claimed.operation;
        (operation.head != self.was.head).then_some(OperationChange { operation, from: self.was.head, from_state: self.was.state })
    }
}

/// Everything that is decided together.
pub(super) struct Decided<'a> {
    pub table: Table<'a>,
    /// Holds that are resolved, and originals that are reversed.
    pub subjects: HashMap<Uuid, Subject>,
    /// The sagas that ask for something, as far as they are locked.
    sagas: HashMap<Uuid, Saga>,
    pub events: Vec<Event>,
    pub postings: Vec<(Uuid, crate::domain::ledger::Posting)>,
    pub reversals: Vec<ReversalChange>,
    pub calls: Vec<NewCall>,
    /// Somebody lacked funds where holds that have run out could not be released.
    is_unsure: bool,
}

/// Why deciding cannot go on as it is.
pub(super) enum Stop {
    ElsewhereFirst,
    Error(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Settler {
    /// One transaction for all jobs.
    pub(super) async fn attempt_as(&self, jobs: &[Job<Work>], plan: Plan<'_>) -> Result<Vec<Option<Outcome>>, Failure<Detour>> {
        // That some are refused together undoes the whole batch: alone, or not at all.
        if jobs.len() > 1 && jobs.iter().any(|job| job.work.goes_alone()) {
            return Err(Error::corrupt("operations that go together, in a batch with others").into());
        }
        let mut ledger = Ledger::begin(&self.database).await?;
        let mut subjects: Vec<Uuid> = jobs.iter().flat_map(|job| job.work.subjects()).collect();
        subjects.sort_unstable();
        subjects.dedup();
        // Sagas before operations before balances, as everybody does.
        let sagas = ledger.raise_sagas(&sagas_of(jobs), plan.lock).await?.into_iter().map(|saga| (saga.id, saga)).collect();
        let subjects = ledger.lock_operations(&subjects, plan.lock).await?.into_iter().map(Subject::new).collect();
        let balances = if plan.decide { ledger.lock(&settle::accounts(self, jobs), plan.lock).await? } else { Balances::default() };
        let before = marks(&balances);
        // The clock is read when the locks are held: a hold that has run out by then is dead.
        let mut decided = Decided::new(Table { unsure: &plan.heed.unsure, ..Table::new(balances, &self.stripes, clock::now_us()) }, subjects, sagas);
        let mut outcomes: Vec<Outcome> = Vec::new();
        outcomes.resize_with(jobs.len(), || Outcome::NotLocked);
        // In the order in which they came.
        let mut order: Vec<usize> = (0..jobs.len()).collect();
        order.sort_unstable_by_key(|index| jobs[*index].work.id());
        for index in order {
            let outcome = match &jobs[index].work {
                Work::Create { new, .. } if !plan.decide => decided.store_unsettled(new),
                Work::Create { new, .. } => decided.create(new),
                Work::Together { new, .. } => decided.create_together(new),
                Work::Resolve { new, .. } => decided.resolve(new),
            };
            outcomes[index] = match outcome {
                Ok(outcome) => outcome,
                Err(Stop::Error(error)) => return Err(error.into()),
                Err(Stop::ElsewhereFirst) => {
                    ledger.rollback().await?;
                    return Err(Failure::Detour(Detour::Elsewhere));
                }
            };
        }
        let expired_by_us = plan.heed.expired_by_us.unwrap_or(decided.table.now_us);
        if self.must_release_first(&mut ledger, &decided.table.short, expired_by_us).await? {
            ledger.rollback().await?;
            return Err(Failure::Detour(Detour::ReleaseExpired { accounts: std::mem::take(&mut decided.table.short), expired_by_us }));
        }
        let writes = decided.writes(&outcomes, &before);
        let Some(first) = writes.events.first().map(|event| (event.aggregate_id, event.id)) else {
            ledger.rollback().await?;
            return Ok(told(outcomes));
        };
        match ledger.commit(&writes).await {
            Err(error) if error.kind == Kind::Unavailable => {
                read_back(|| operations::has_event(self.database.writer(), first.0, first.1), error).await?;
            }
            committed => committed?,
        }
        self.committed(&writes);
        if writes.inserted.iter().any(|operation| is_to_be_settled(operation.state)) {
            self.unsettled.notify_one();
        }
        Ok(told(outcomes))
    }

    /// Whether somebody was refused for what a hold has that has run out. It is read without locks, so that a hold is seen that somebody else has.
    pub(super) async fn must_release_first(&self, ledger: &mut Ledger, short: &[Uuid], expired_by_us: i64) -> Result<bool, Error> {
        if short.is_empty() {
            return Ok(false);
        }
        let except = self.stuck_holds.ids();
        ledger.any_expired(ExpiredHolds { now_us: expired_by_us, limit: 1, among: Among::OnAccounts(short), except: &except }).await
    }
}

/// The sagas that ask for something, each once with the highest epoch, sorted.
fn sagas_of(jobs: &[Job<Work>]) -> Vec<SagaEpoch> {
    let mut sagas: Vec<SagaEpoch> = jobs.iter().flat_map(|job| job.work.sagas()).collect();
    sagas.sort_unstable_by_key(|saga| (saga.id, std::cmp::Reverse(saga.epoch)));
    sagas.dedup_by_key(|saga| saga.id);
    sagas
}

/// Of each job, what its callers are told; None where it has to wait for its locks.
fn told(outcomes: Vec<Outcome>) -> Vec<Option<Outcome>> {
    outcomes.into_iter().map(|outcome| (!matches!(outcome, Outcome::NotLocked)).then_some(outcome)).collect()
}

impl<'a> Decided<'a> {
    pub fn new(table: Table<'a>, subjects: HashMap<Uuid, Subject>, sagas: HashMap<Uuid, Saga>) -> Self {
        Self { table, subjects, sagas, events: Vec::new(), postings: Vec::new(), reversals: Vec::new(), calls: Vec::new(), is_unsure: false }
    }

    /// A new operation, settled if its accounts are locked.
    pub fn create(&mut self, new: &NewOperation) -> Result<Outcome, Stop> {
        if let Some(refused) = self.check_saga(new) {
            return Ok(refused);
        }
        if let Some(refused) = self.check_original(new)? {
            return Ok(refused);
        }
        let mut operation = new.operation.clone();
        if let Some(refused) = self.share_refund(&mut operation, &new.purpose)? {
            return Ok(refused);
        }
        let mut origin = self.submit(&mut operation, new);
        match decision::settle(&mut operation, &origin, &mut self.table)? {
            Settled::Ended(event, postings) => {
                origin.causation_id = Some(event.id);
                self.events.push(event);
                self.postings.extend(postings.into_iter().map(|posting| (operation.id, posting)));
            }
            // A reversal that waits to be settled would stand in the way of another one, and might be rejected after that was refused. And no card is
            // charged before it is known that the ledger would take the money.
            Settled::Open if operation.original_id.is_some() || matches!(new.purpose, Purpose::Charge { .. }) => {
                self.events.pop();
                return Ok(Outcome::NotLocked);
            }
            Settled::Unsure if operation.original_id.is_some() => {
                self.events.pop();
                return Ok(Outcome::Refused(Refused::Unavailable));
            }
            Settled::Unsure => self.is_unsure = true,
            Settled::Open => {}
            Settled::ElsewhereFirst => return Err(Stop::ElsewhereFirst),
        }
        self.note_reversal(&operation);
        self.note_refund(&operation)?;
        self.note_call(&operation, new);
        Ok(Outcome::Created(operation))
    }

    fn store_unsettled(&mut self, new: &NewOperation) -> Result<Outcome, Stop> {
        if let Some(refused) = self.check_saga(new) {
            return Ok(refused);
        }
        if let Some(refused) = self.check_original(new)? {
            return Ok(refused);
        }
        let mut operation = new.operation.clone();
        let origin = self.submit(&mut operation, new);
        self.events.extend(decision::wait_for_retry(&mut operation, &origin));
        self.note_reversal(&operation);
        self.note_call(&operation, new);
        Ok(Outcome::Created(operation))
    }

    /// Appends SUBMITTED; where what follows comes from.
    fn submit(&mut self, operation: &mut Operation, new: &NewOperation) -> Origin {
        let mut origin = Origin { correlation_id: new.correlation_id.clone(), causation_id: None, now_us: self.table.now_us };
        // What a refund moves is known only now.
        let payload = if new.submitted.is_empty() { contract::submitted_of(operation) } else { new.submitted.clone() };
        let submitted = decision::record(operation, &origin, "SUBMITTED", payload);
        origin.causation_id = Some(submitted.id);
        self.events.push(submitted);
        origin
    }

    /// Whoever has lost its lease on a saga does nothing for it any more, and what a saga has cancelled is not paid.
    fn check_saga(&self, new: &NewOperation) -> Option<Outcome> {
        let asked = new.saga?;
        match self.sagas.get(&asked.id) {
            None => Some(Outcome::NotLocked),
            Some(saga) if saga.epoch > asked.epoch => Some(Outcome::Refused(Refused::StaleEpoch)),
            Some(saga) if saga.cancelled && new.operation.kind == Type::Payment => Some(Outcome::Refused(Refused::SagaCancelled)),
            Some(_) => None,
        }
    }

    /// An operation is reversed once, and only after it was completed.
    fn check_original(&self, new: &NewOperation) -> Result<Option<Outcome>, Error> {
        let Some(original_id) = new.operation.original_id else { return Ok(None) };
        let Some(original) = self.subjects.get(&original_id) else { return Ok(Some(Outcome::NotLocked)) };
        if new.operation.kind != Type::Reversal {
            return Ok(None);
        }
        if original.claimed.operation.state != State::Completed {
            return Err(Error::corrupt("a reversal of an operation that is not completed"));
        }
        let is_reversed = original.claimed.operation.reversal_id.is_some();
        Ok(is_reversed.then_some(Outcome::Refused(Refused::AlreadyReversed)))
    }

    /// The original shows its reversal, unless that was rejected.
    fn note_reversal(&mut self, reversal: &Operation) {
        let Some(original) = reversal.original_id.and_then(|id| self.subjects.get_mut(&id)) else { return };
        if reversal.kind == Type::Reversal && reversal.state != State::Rejected {
            original.claimed.operation.reversal_id = Some(reversal.id);
            self.reversals.push(ReversalChange { original_id: original.was.id, from: None, to: Some(reversal.id) });
        }
    }

    /// What each leg of the payment gives of a refund; refused where that is more than is left.
    fn share_refund(&self, refund: &mut Operation, purpose: &Purpose) -> Result<Option<Outcome>, Error> {
        let Purpose::Refund { amount, .. } = purpose else { return Ok(None) };
        let payment = refund.original_id.and_then(|id| self.subjects.get(&id)).map(|subject| &subject.claimed.operation);
        let payment = payment.filter(|payment| payment.kind == Type::Payment && payment.state == State::Completed);
        let payment = payment.ok_or_else(|| Error::corrupt("a refund of what is no completed payment"))?;
        match payment::share(payment, *amount).ok_or_else(|| Error::corrupt("a payment of which more is refunded than it has"))? {
            Ok(parts) => {
                refund.movement = payment::refund_movement(payment, &parts);
                refund.refunded = Some(parts.into());
                Ok(None)
            }
            Err(TooMuch { left }) => Ok(Some(Outcome::Refused(Refused::RefundTooMuch { left }))),
        }
    }

    /// The payment shows what is refunded of it, or held to be.
    fn note_refund(&mut self, refund: &Operation) -> Result<(), Error> {
        let Some(parts) = refund.refunded.as_ref().filter(|_| matches!(refund.state, State::Completed | State::Authorized)) else { return Ok(()) };
        let payment = refund.original_id.and_then(|id| self.subjects.get_mut(&id)).ok_or_else(|| Error::corrupt("a refund of nothing"))?;
        let refunded = payment::changed_by(&payment.claimed.operation, parts, Minor::checked_add);
        payment.claimed.operation.refunded = Some(refunded.ok_or_else(|| Error::corrupt("a refund of more than was paid"))?);
        Ok(())
    }

    /// The payment provider is to be asked for it.
    fn note_call(&mut self, operation: &Operation, new: &NewOperation) {
        let is_refund = operation.kind == Type::Refund && operation.state == State::Authorized;
        let (kind, provider, card_token) = match &new.purpose {
            Purpose::Charge { card_token, provider } if !is_terminal(operation.state) => (CallKind::Charge, provider, Some(card_token.clone())),
            Purpose::Refund { provider: Some(provider), .. } if is_refund => (CallKind::Refund, provider, None),
            Purpose::Plain | Purpose::Charge { .. } | Purpose::Refund { .. } => return,
        };
        let payment = operation.original_id.and_then(|id| self.subjects.get(&id)).map(|subject| &subject.claimed.operation);
        let charge = payment.map(|payment| provider::key(CallKind::Charge, payment.owner_id, &payment.external_id, None));
        let key = provider::key(kind, operation.owner_id, &operation.external_id, charge);
        let (provider, correlation_id) = (provider.clone(), new.correlation_id.clone());
        self.calls.push(NewCall { operation_id: operation.id, kind, key, provider, owner_id: operation.owner_id, card_token, correlation_id });
    }

    /// New operations that are settled together. They are alone in their batch, so that nothing has to be undone where one of them is refused.
    pub fn create_together(&mut self, new: &[NewOperation]) -> Result<Outcome, Stop> {
        let mut operations = Vec::with_capacity(new.len());
        for (index, new) in new.iter().enumerate() {
            let operation = match self.create(new)? {
                Outcome::Created(operation) => operation,
                other => return self.nothing(other),
            };
            match &operation.reason {
                Some(Reason::Ledger(reason)) => {
                    let reason = *reason;
                    let culprit = Culprit::Rejected { reason, leg: operation.rejected_leg };
                    return self.nothing(Outcome::Refused(Refused::Together { index, culprit }));
                }
                // No provider has been asked yet.
                Some(Reason::Provider(_) | Reason::Cancelled) => return Err(Error::corrupt("a new operation that somebody else refused").into()),
                None if matches!(operation.state, State::Completed | State::Authorized) => operations.push(operation),
                // A hold whose time was over before it got its turn: that no waiting helps.
                None if operation.state == State::Expired => return self.nothing(Outcome::Refused(Refused::Unavailable)),
                None if self.is_unsure => return self.nothing(Outcome::Refused(Refused::Unavailable)),
                None => return self.nothing(Outcome::NotLocked),
            }
        }
        Ok(Outcome::Together(operations))
    }

    fn nothing(&mut self, outcome: Outcome) -> Result<Outcome, Stop> {
        self.events.clear();
        self.postings.clear();
        self.calls.clear();
        Ok(outcome)
    }

    /// A hold that is captured or voided.
    pub fn resolve(&mut self, new: &NewResolution) -> Result<Outcome, Stop> {
        let Some(subject) = self.subjects.get_mut(&new.hold_id) else { return Ok(Outcome::NotLocked) };
        let ClaimedOperation { operation: hold, last_event_id, .. } = &mut subject.claimed;
        let origin = Origin { correlation_id: new.correlation_id.clone(), causation_id: *last_event_id, now_us: self.table.now_us };
        match decision::resolve(hold, new, &origin, &mut self.table)? {
            Resolved::Ended(event, postings) => {
                *last_event_id = Some(event.id);
                self.events.push(event);
                self.postings.extend(postings.into_iter().map(|posting| (new.hold_id, posting)));
                Ok(Outcome::Resolved(Box::new(hold.clone())))
            }
            Resolved::Refused(refused) => Ok(Outcome::Refused(refused)),
            Resolved::NotLocked => Ok(Outcome::NotLocked),
            Resolved::ElsewhereFirst => Err(Stop::ElsewhereFirst),
        }
    }

    /// Everything that the batch writes.
    fn writes<'o>(&'o mut self, outcomes: &'o [Outcome], before: &[Mark]) -> Writes<'o> {
        let mut inserted: Vec<&Operation> = outcomes.iter().flat_map(Outcome::created).collect();
        inserted.sort_by(|a, b| (a.owner_id, &a.external_id).cmp(&(b.owner_id, &b.external_id)));
        let (events, postings) = (std::mem::take(&mut self.events), std::mem::take(&mut self.postings));
        let reversals = std::mem::take(&mut self.reversals);
        // What is refused after others were decided has changed no balance that is written.
        let balances = if events.is_empty() { Vec::new() } else { changed(before, &self.table.balances) };
        let calls = std::mem::take(&mut self.calls);
        let updated = self.subjects.values().filter_map(Subject::change);
        let refunds = if events.is_empty() { Vec::new() } else { self.subjects.values().filter_map(Subject::refund_change).collect() };
        Writes { inserted, updated: updated.collect(), events, postings, balances, reversals, refunds, calls, ..Writes::default() }
    }
}

impl Outcome {
    /// The operations that it stores.
    pub fn created(&self) -> &[Operation] {
        match self {
            Self::Created(operation) => std::slice::from_ref(operation),
            Self::Together(operations) => operations,
            Self::Resolved(_) | Self::Refused(_) | Self::NotLocked => &[],
        }
    }
}

/// Where a balance stood when it was locked. What is posted changes its version, and what is held stands here.
pub(super) struct Mark {
    account_id: Uuid,
    version: i64,
    held: Minor,
}

/// Where balances stand.
pub(super) fn marks(balances: &Balances) -> Vec<Mark> {
    balances.iter().map(|(account_id, balance)| Mark { account_id: *account_id, version: balance.version, held: balance.held }).collect()
}

/// The balances that are not what they were, sorted by account.
pub(super) fn changed(before: &[Mark], after: &Balances) -> Vec<BalanceChange> {
    let change = |mark: &Mark| {
        let after = after.get(&mark.account_id).filter(|after| after.version != mark.version || after.held != mark.held)?;
        Some(BalanceChange { account_id: mark.account_id, from_version: mark.version, from_held: mark.held, after: *after })
    };
    let mut changed: Vec<_> = before.iter().filter_map(change).collect();
    changed.sort_unstable_by_key(|change| change.account_id);
    changed
}
