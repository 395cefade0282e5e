//! One attempt of a batch, in one transaction: locks the orders, decides in the order in which the callers came, writes everything, and commits.

use std::collections::HashMap;
use std::sync::Arc;

use lastro_database::group_commit::{Failure, Job, Lock, Work as _, read_back};
use lastro_database::{Error, Kind, Transaction};
use lastro_events::event::Event;
use sea_orm::{ConnectionTrait as _, DbBackend};
use uuid::Uuid;

use super::work::{Accepted, Asked, CallReport, NewChange, NewOrder, Outcome, Refused, Work};
use super::{Detour, Keeper};
use crate::domain::order::{Conflict, Placed, Progress, Status};
use crate::domain::saga::{Cause, Direction, Next, Now, Saga, State, Step, StepState};
use crate::store::order_events::{Fact, ORDER_EVENTS, record};
use crate::store::orders::{self, Change, Order};

impl Keeper {
    /// In the order of the jobs: what has become of each; None where it has to wait for its locks.
    pub(super) async fn attempt_all(&self, jobs: &[Job<Work>], lock: Lock) -> Result<Vec<Option<Outcome>>, Failure<Detour>> {
        let tx = self.database.begin().await?;
        let mut ids: Vec<Uuid> = jobs.iter().filter(|job| matches!(job.work, Work::Change { .. })).map(|job| job.work.order_id()).collect();
        ids.sort_unstable();
        ids.dedup();
        let locked = orders::lock(&tx, &ids, lock).await?;
        // The clock is read when the locks are held.
        let now_us = orders::now_us(&tx).await?;
        let mut decided = Decided {
            before: locked.iter().cloned().collect(),
            orders: locked.into_iter().collect(),
            events: Vec::new(),
            now_us,
            lease_us: i64::try_from(self.lease.as_micros()).unwrap_or(i64::MAX),
            is_complete: lock == Lock::Wait || tx.get_database_backend() == DbBackend::Sqlite,
        };
        let mut outcomes: Vec<Option<Outcome>> = Vec::new();
        outcomes.resize_with(jobs.len(), || None);
        // In the order in which they came.
        let mut order: Vec<usize> = (0..jobs.len()).collect();
        order.sort_unstable_by_key(|index| jobs[*index].work.id());
        for index in order {
            outcomes[index] = match &jobs[index].work {
                Work::Place { new, .. } => Some(Outcome::Placed(decided.place(new))),
                Work::Change { new, .. } => decided.change(new)?,
            };
        }
        let Some((id, version, event_id)) = decided.events.first().map(|event| (event.aggregate_id, event.version, event.id)) else {
            // What is told to nobody, such as an attempt that failed, is written all the same.
            if decided.changes().is_empty() {
                tx.rollback().await.map_err(Error::from)?;
            } else {
                orders::update(&tx, &decided.changes()).await?;
                tx.commit().await.map_err(Error::from)?;
            }
            return Ok(outcomes);
        };
        decided.write(&tx, &outcomes).await?;
        match tx.commit().await.map_err(Error::from) {
            Err(error) if error.kind == Kind::Unavailable => {
                read_back(|| orders::has_version(self.database.writer(), id, version, event_id), error).await?;
            }
            committed => committed?,
        }
        self.bus.wake(ORDER_EVENTS.topic);
        // Nobody waits for anything but that.
        let is_decided = |(_, progress): &(&Uuid, &Progress)| progress.status.is_decided();
        self.changes.note(decided.orders.iter().filter(is_decided).filter_map(|(id, progress)| Some((*id, progress.head?.version))));
        Ok(outcomes)
    }
}

/// Everything that is decided together.
struct Decided {
    /// Where locked orders stand.
    orders: HashMap<Uuid, Progress>,
    /// Where they stood when they were locked.
    before: HashMap<Uuid, Progress>,
    events: Vec<Event>,
    now_us: i64,
    lease_us: i64,
    /// Nothing was left out because somebody else has locked it: what is missing is not there.
    is_complete: bool,
}

impl Decided {
    fn place(&mut self, new: &NewOrder) -> Order {
        let now_us = self.now_us;
        let placed = Placed { create_time_us: now_us, deadline_us: now_us.saturating_add(new.timeout_us), ..new.placed.clone() };
        let saga = Saga::start(now_us);
        let due_us = now_us.saturating_add(self.lease_us);
        let mut progress = Progress { status: Status::Pending, saga, payment_id: None, epoch: 1, due_us, head: None, update_time_us: now_us };
        self.events.push(record(&placed, &mut progress, Fact::Created, &placed.correlation_id, now_us));
        Order { placed: Arc::new(placed), progress }
    }

    fn change(&mut self, new: &NewChange) -> Result<Option<Outcome>, Error> {
        let Some(before) = self.orders.get(&new.placed.id) else {
            return if self.is_complete { Err(Error::corrupt("an order that has gone")) } else { Ok(None) };
        };
        let refused = |refused| Ok(Some(Outcome::Refused(refused)));
        let mut progress = before.clone();
        let (mut facts, mut is_taken, mut replayed) = (Facts::of(&new.placed, &mut progress, self.now_us), true, false);
        match &new.asked {
            Asked::Report { epoch, .. } | Asked::TimeOut { epoch } if *epoch != facts.progress.epoch => return refused(Refused::LeaseLost),
            Asked::Report { report, .. } => facts.note_call(report, new.jitter_permille),
            Asked::TimeOut { .. } => facts.undo(|saga, now_us| {
                saga.time_out(now_us);
                true
            }),
            Asked::Cancel => match cancel(&mut facts) {
                Ok(is_new) => {
                    is_taken = is_new;
                    replayed = !is_new;
                }
                Err(error) => return refused(error),
            },
            Asked::Retry => {
                if !facts.progress.saga.retry() {
                    return refused(Refused::SagaFinished);
                }
                facts.take_over();
            }
            Asked::GiveUp => {
                if matches!(facts.progress.saga.state, State::Completed | State::Compensated) {
                    return refused(Refused::SagaFinished);
                }
                facts.take_over();
                facts.undo(Saga::give_up);
            }
            Asked::SetStatus(status) => {
                is_taken = false;
                match facts.progress.set_status(*status) {
                    Ok(Some((from, to))) => facts.tell(Fact::StatusUpdated { from, to }, &new.correlation_id),
                    Ok(None) => replayed = true,
                    Err(conflict) => return refused(Refused::Conflict(conflict)),
                }
            }
        }
        self.events.append(&mut facts.events);
        let next = is_taken.then(|| progress.saga.next(self.now_us, new.placed.deadline_us));
        if let Some(next) = next {
            progress.due_us = match next {
                Next::Wait(until_us) => until_us,
                // A lease that has half of its time left is not written again.
                Next::Call(..) | Next::TimeOut if is_half_left(&progress, before, self.now_us, self.lease_us) => before.due_us,
                Next::Call(..) | Next::TimeOut => self.now_us.saturating_add(self.lease_us),
                Next::Nothing => before.due_us,
            };
        }
        self.orders.insert(new.placed.id, progress.clone());
        Ok(Some(Outcome::Changed(Accepted { order: Order { placed: new.placed.clone(), progress }, replayed, next })))
    }

    /// The locked orders that are not what they were, sorted.
    fn changes(&self) -> Vec<Change<'_>> {
        let mut changes: Vec<Change<'_>> = Vec::new();
        for (id, progress) in &self.orders {
            let from = self.before.get(id).filter(|before| *before != progress);
            if let Some((before, head)) = from.and_then(|before| Some((before, before.head?))) {
                changes.push(Change { id: *id, from_epoch: before.epoch, from_version: head.version, progress });
            }
        }
        changes.sort_unstable_by_key(|change| change.id);
        changes
    }

    async fn write(&self, tx: &Transaction, outcomes: &[Option<Outcome>]) -> Result<(), Error> {
        let placed = outcomes.iter().flatten().filter_map(|outcome| if let Outcome::Placed(order) = outcome { Some(order) } else { None });
        let mut placed: Vec<&Order> = placed.collect();
        // In one order, so that two replicas that insert the same keys never wait for each other in a circle.
        placed.sort_unstable_by(|a, b| (a.placed.owner_id, &a.placed.external_id).cmp(&(b.placed.owner_id, &b.placed.external_id)));
        orders::insert(tx, &placed).await?;
        orders::update(tx, &self.changes()).await?;
        ORDER_EVENTS.insert(tx, &self.events).await
    }
}

fn is_half_left(progress: &Progress, before: &Progress, now_us: i64, lease_us: i64) -> bool {
    let left_us = before.due_us.saturating_sub(now_us);
    progress.epoch == before.epoch && left_us > lease_us / 2 && left_us <= lease_us
}

/// True where it begins to be undone now; false where it was cancelled before.
fn cancel(facts: &mut Facts<'_>) -> Result<bool, Refused> {
    let (status, saga) = (facts.progress.status, &facts.progress.saga);
    let conflict = |is_being_undone| Err(Refused::Conflict(Conflict { status, is_being_undone }));
    if matches!(status, Status::Shipped | Status::Delivered) {
        return conflict(false);
    }
    let is_cancelled = saga.cause == Some(Cause::Cancelled);
    match saga.state {
        State::Compensating | State::Compensated | State::Failed if is_cancelled => Ok(false),
        // It is being undone already, for another reason: whoever cancels it gets what it asks for.
        State::Compensating => Ok(false),
        State::Compensated | State::Failed => conflict(false),
        State::Started | State::InventoryReserved | State::PaymentProcessing | State::Completed => {
            facts.take_over();
            facts.undo(Saga::cancel);
            Ok(true)
        }
    }
}

/// What happens to an order in one change, and what is told of it.
struct Facts<'a> {
    placed: &'a Placed,
    progress: &'a mut Progress,
    events: Vec<Event>,
    now_us: i64,
}

impl<'a> Facts<'a> {
    fn of(placed: &'a Placed, progress: &'a mut Progress, now_us: i64) -> Self {
        Self { placed, progress, events: Vec::new(), now_us }
    }

    fn tell(&mut self, fact: Fact, correlation_id: &str) {
        self.events.push(record(self.placed, self.progress, fact, correlation_id, self.now_us));
    }

    /// Everything that the saga does goes under the request that placed the order.
    fn tell_of_saga(&mut self, fact: Fact) {
        let placed = self.placed;
        self.tell(fact, &placed.correlation_id);
    }

    /// Whoever had the saga has it no more.
    fn take_over(&mut self) {
        self.progress.epoch += 1;
    }

    fn note_call(&mut self, report: &CallReport, jitter_permille: i64) {
        let CallReport { step, direction, outcome, reserved, payment_id } = report;
        let before = self.progress.saga.clone();
        let now = Now { us: self.now_us, jitter_permille, is_taken_over: self.progress.epoch > 1 };
        self.progress.saga.note(*step, *direction, outcome.clone(), now);
        if let (Direction::Do, Step::Pay, Some(payment_id)) = (direction, step, payment_id) {
            self.progress.payment_id = Some(*payment_id);
        }
        let saga = &self.progress.saga;
        let record_of = |saga: &Saga| match direction {
            Direction::Do => Some(saga.step(*step).state),
            Direction::Undo => saga.undo(*step).map(|undo| undo.state),
        };
        let became = record_of(saga).filter(|state| record_of(&before) != Some(*state));
        let fact = match (step, direction, became) {
            (Step::Reserve, Direction::Do, Some(StepState::Done)) => Some(Fact::InventoryReserved(reserved.clone())),
            (Step::Pay, Direction::Do, Some(StepState::Done)) => {
                self.progress.payment_id.map(|transaction_id| Fact::PaymentProcessed { transaction_id })
            }
            (Step::Pay, _, Some(StepState::Failed)) => {
                let (reason, detail, transaction_id) = (saga.reason.clone(), saga.detail.clone(), self.progress.payment_id);
                Some(Fact::PaymentFailed { reason, detail, refund: *direction == Direction::Undo, transaction_id })
            }
            (Step::Pay, Direction::Undo, Some(StepState::Done)) if saga.is_done(Step::Pay) => {
                self.progress.payment_id.map(|transaction_id| Fact::PaymentRefunded { transaction_id })
            }
            (Step::Confirm, Direction::Undo, Some(StepState::Done)) if saga.is_done(Step::Confirm) => {
                Some(Fact::InventoryReleased { returned: true })
            }
            // What had left the stores has come back already.
            (Step::Reserve, Direction::Undo, Some(StepState::Done)) if saga.is_done(Step::Reserve) && !saga.is_done(Step::Confirm) => {
                Some(Fact::InventoryReleased { returned: false })
            }
            _ => None,
        };
        if let Some(fact) = fact {
            self.tell_of_saga(fact);
        }
        self.follow(&before);
    }

    /// What was done is undone from now on.
    fn undo(&mut self, begin: impl FnOnce(&mut Saga, i64) -> bool) {
        let before = self.progress.saga.clone();
        begin(&mut self.progress.saga, self.now_us);
        let is_given_up = before.step(Step::Pay).state == StepState::Running && self.progress.saga.step(Step::Pay).state == StepState::Failed;
        if is_given_up {
            let (saga, transaction_id) = (&self.progress.saga, self.progress.payment_id);
            let (reason, detail) = (saga.reason.clone(), saga.detail.clone());
            self.tell_of_saga(Fact::PaymentFailed { reason, detail, refund: false, transaction_id });
        }
        self.follow(&before);
    }

    /// What follows for the order from what became of its saga.
    fn follow(&mut self, before: &Saga) {
        let saga = &self.progress.saga;
        let (state, reason, detail, was_completed) = (saga.state, saga.reason.clone(), saga.detail.clone(), saga.was_completed());
        let status = self.progress.follow_saga();
        let fact = match (before.state == state, state, status) {
            (false, State::Completed, _) => Some(Fact::Completed),
            (false, State::Compensated, Some((_, Status::Cancelled))) => Some(Fact::Cancelled { was_completed, reason, detail }),
            (false, State::Compensated | State::Failed, Some((_, Status::Failed))) => Some(Fact::Failed { reason, detail }),
            _ => None,
        };
        if let Some(fact) = fact {
            self.tell_of_saga(fact);
        }
        if let Some((from, to)) = status {
            self.tell_of_saga(Fact::StatusUpdated { from, to });
        }
    }
}
