//! One settling batch: sorted and deduplicated by (owner, external id), locked in id order, decided in Rust, written in one transaction.
//! If it fails nevertheless, it is bisected and only the culprit is parked. After an unknown COMMIT it reads back by the ids that it
//! generated.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use lastro_database::{Error, Kind};
use lastro_mesh::clock;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::decision::{self, Origin};
use super::{Accepted, BATCH_MAX, Job, NewOperation, Refused, Settler};
use crate::domain::ledger::Balance;
use crate::store::ledger::{Ledger, Lock, Writes};
use crate::store::operations::{self, Operation};

/// How long a batch is tried against a database that is busy or away, before its callers are told.
const TRY_FOR: Duration = Duration::from_millis(1500);
/// How long the outcome of an unknown COMMIT is asked for.
const READ_BACK_FOR: Duration = Duration::from_secs(3);
const PAUSE_BASE: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(200);

type Reply = oneshot::Sender<Result<Accepted, Refused>>;

/// The callers that sent one key; the first one's request is what is stored.
struct Group {
    new: NewOperation,
    /// Each with the id that its call generated, and the hash of what it asked for.
    callers: Vec<(Uuid, [u8; 32], Reply)>,
}

/// Why an attempt came to nothing.
enum Failure {
    /// A key exists: what it belongs to must be looked up.
    KeyExists,
    /// The database failed.
    Database(Error),
}

/// At once on PostgreSQL: while one is flushed, the next is decided and a third is written (docs/PERFORMANCE.md has the figures).
const IN_FLIGHT: usize = 3;

/// Takes batches from the queue until nobody can send any more. A batch goes beside others only if it shares no account with them, and
/// only once it is worth a commit of its own: half of the largest in flight.
pub async fn run(settler: Arc<Settler>, mut jobs: mpsc::Receiver<Job>) {
    // SQLite has one writer: a second batch would only wait for it.
    let at_once = if settler.database.is_postgres() { IN_FLIGHT } else { 1 };
    let (mut waiting, mut arrived) = (Vec::new(), Vec::new());
    let (mut in_flight, mut running, mut open) = (JoinSet::new(), Vec::<InFlight>::new(), true);
    while open || !waiting.is_empty() || !in_flight.is_empty() {
        let worth = running.iter().map(|batch| batch.size).max().unwrap_or_default() / 2;
        if running.len() < at_once && !waiting.is_empty() && waiting.len() >= worth {
            let (batch, rest) = take_disjoint(waiting, &running);
            waiting = rest;
            if !batch.is_empty() {
                let accounts = decision::accounts(batch.iter().map(|job: &Job| &job.new.operation)).into_iter().collect();
                // Its own task: a defect in one batch must not end the pipeline. Its callers are told UNAVAILABLE then.
                let size = batch.len();
                let id = in_flight.spawn(settle_batch(settler.clone(), size, group(batch))).id();
                running.push(InFlight { id, size, accounts });
                continue;
            }
        }
        tokio::select! {
            received = jobs.recv_many(&mut arrived, BATCH_MAX), if open => {
                open = received > 0;
                waiting.append(&mut arrived);
            }
            Some(ended) = in_flight.join_next_with_id() => {
                let id = match ended {
                    Ok((id, ())) => id,
                    Err(error) => {
                        tracing::error!("a settling batch panicked");
                        error.id()
                    }
                };
                running.retain(|batch| batch.id != id);
            }
        }
    }
}

/// A batch that is being settled.
struct InFlight {
    id: tokio::task::Id,
    size: usize,
    accounts: HashSet<Uuid>,
}

/// The waiting jobs that share no account with what is in flight, and the rest.
fn take_disjoint(waiting: Vec<Job>, running: &[InFlight]) -> (Vec<Job>, Vec<Job>) {
    let mut taken = 0;
    waiting.into_iter().partition(|job| {
        let movement = decision::movement(&job.new.operation);
        let free = running.iter().all(|batch| !batch.accounts.contains(&movement.debit) && !batch.accounts.contains(&movement.credit));
        let takes = free && taken < BATCH_MAX;
        taken += usize::from(takes);
        takes
    })
}

async fn settle_batch(settler: Arc<Settler>, size: usize, groups: Vec<Group>) {
    let started = Instant::now();
    settler.batch_size.record(size as f64);
    settler.settle(groups).await;
    settler.batch_seconds.record(started.elapsed());
}

/// Sorted by key, so that two replicas insert in the same order and never wait for each other in a circle.
fn group(jobs: Vec<Job>) -> Vec<Group> {
    let mut groups: HashMap<(Uuid, String), Group> = HashMap::with_capacity(jobs.len());
    for Job { new, reply } in jobs {
        let caller = (new.operation.id, new.operation.request_hash, reply);
        let key = (new.operation.owner_id, new.operation.external_id.clone());
        groups.entry(key).or_insert_with(|| Group { new, callers: Vec::new() }).callers.push(caller);
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    groups.sort_by(|a, b| key_of(a).cmp(&key_of(b)));
    groups
}

fn key_of(group: &Group) -> (Uuid, &str) {
    (group.new.operation.owner_id, &group.new.operation.external_id)
}

impl Group {
    /// Answers every caller with the stored operation.
    fn accept(self, operation: &Operation) {
        for (id, hash, reply) in self.callers {
            let answer = if hash == operation.request_hash {
                // Replayed means that the stored id is not the one that this call generated.
                Ok(Accepted { operation: operation.clone(), replayed: id != operation.id })
            } else {
                Err(Refused::KeyReused)
            };
            let _ = reply.send(answer);
        }
    }

    fn refuse(self, refused: Refused) {
        for (.., reply) in self.callers {
            let _ = reply.send(Err(refused));
        }
    }
}

impl Settler {
    /// Stores and settles groups, and answers their callers.
    fn settle(&self, mut groups: Vec<Group>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let (give_up, mut pause) = (Instant::now() + TRY_FOR, PAUSE_BASE);
            while !groups.is_empty() {
                let error = match self.attempt(&groups, true).await {
                    Ok(stored) => return answer(groups, &stored),
                    Err(Failure::KeyExists) => match self.answer_existing(groups).await {
                        Ok(rest) => {
                            groups = rest;
                            continue;
                        }
                        Err((rest, error)) => {
                            groups = rest;
                            error
                        }
                    },
                    Err(Failure::Database(error)) => error,
                };
                if error.is_transient() && Instant::now() + pause < give_up {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                } else if error.is_transient() {
                    tracing::warn!(%error, operations = groups.len(), "a batch could not be settled");
                    groups.into_iter().for_each(|group| group.refuse(Refused::Unavailable));
                    return;
                } else if groups.len() > 1 {
                    let second = groups.split_off(groups.len() / 2);
                    self.settle(groups).await;
                    return self.settle(second).await;
                } else {
                    return self.park(groups, &error).await;
                }
            }
        })
    }

    /// One transaction for all groups; the operations as stored. With `decide` false they are stored unsettled, as failed once.
    async fn attempt(&self, groups: &[Group], decide: bool) -> Result<Vec<Operation>, Failure> {
        let now_us = clock::now_us();
        let mut stored: Vec<Operation> = groups.iter().map(|group| group.new.operation.clone()).collect();
        let mut ledger = Ledger::begin(&self.database).await?;
        let accounts = if decide { decision::accounts(stored.iter()) } else { Vec::new() };
        let mut balances = if decide { ledger.lock(&accounts, Lock::Skip).await? } else { HashMap::new() };
        let before = balances.clone();

        let mut writes = Writes::default();
        // In the order in which they came; ids are UUIDv7.
        let mut order: Vec<usize> = (0..groups.len()).collect();
        order.sort_unstable_by_key(|index| stored[*index].id);
        for index in order {
            let (new, operation) = (&groups[index].new, &mut stored[index]);
            let mut origin = Origin { correlation_id: new.correlation_id.clone(), causation_id: None, now_us };
            let submitted = decision::record(operation, &origin, "SUBMITTED", new.submitted.clone());
            origin.causation_id = Some(submitted.id);
            writes.events.push(submitted);
            if !decide {
                writes.events.extend(decision::wait_for_retry(operation, &origin));
            } else if let Some((event, postings)) = decision::settle(operation, &origin, &mut balances) {
                writes.events.push(event);
                writes.postings.extend(postings.into_iter().map(|posting| (operation.id, posting)));
            }
        }
        writes.balances = changed(&before, &balances);
        writes.inserted = stored.iter().collect();
        match ledger.commit(&writes).await {
            Err(error) if error.kind == Kind::Unavailable => self.read_back(&stored, error).await?,
            committed => committed?,
        }
        self.bus.wake();
        if stored.iter().any(|operation| !crate::domain::operation::is_terminal(operation.state)) {
            self.unsettled.notify_one();
        }
        Ok(stored)
    }

    /// After a COMMIT whose answer was lost, or never sent: a batch is stored whole or not at all, so that one of its ids tells.
    async fn read_back(&self, stored: &[Operation], commit_error: Error) -> Result<(), Failure> {
        let Some(first) = stored.first() else { return Ok(()) };
        let give_up = Instant::now() + READ_BACK_FOR;
        loop {
            match operations::get(self.database.writer(), first.id).await {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => return Err(commit_error.into()),
                Err(error) if Instant::now() > give_up => return Err(error.into()),
                Err(_) => tokio::time::sleep(PAUSE_MAX).await,
            }
        }
    }

    /// Answers the callers whose key exists already; the groups that are left.
    async fn answer_existing(&self, groups: Vec<Group>) -> Result<Vec<Group>, (Vec<Group>, Error)> {
        let mut rest = Vec::with_capacity(groups.len());
        let mut groups = groups.into_iter();
        while let Some(group) = groups.next() {
            let (owner_id, external_id) = key_of(&group);
            match operations::by_key(self.database.writer(), owner_id, external_id).await {
                Ok(Some(operation)) => group.accept(&operation),
                Ok(None) => rest.push(group),
                Err(error) => {
                    rest.push(group);
                    rest.extend(groups);
                    return Err((rest, error));
                }
            }
        }
        Ok(rest)
    }

    /// Stores the one operation that the database refuses to settle, so that it is not lost; the worker tries it again.
    async fn park(&self, groups: Vec<Group>, error: &Error) {
        tracing::error!(%error, operation = %groups[0].new.operation.id, "an operation cannot be settled; it is parked");
        match self.attempt(&groups, false).await {
            Ok(stored) => answer(groups, &stored),
            Err(Failure::KeyExists) => {
                let (Ok(rest) | Err((rest, _))) = self.answer_existing(groups).await;
                rest.into_iter().for_each(|group| group.refuse(Refused::Unavailable));
            }
            Err(Failure::Database(error)) => {
                let refused = if error.is_transient() { Refused::Unavailable } else { Refused::Broken };
                tracing::error!(%error, "nor can it be parked; its caller is told");
                groups.into_iter().for_each(|group| group.refuse(refused));
            }
        }
    }
}

fn answer(groups: Vec<Group>, stored: &[Operation]) {
    for (group, operation) in groups.into_iter().zip(stored) {
        group.accept(operation);
    }
}

/// The balances that are not what they were, sorted by account.
pub(super) fn changed(before: &HashMap<Uuid, Balance>, after: &HashMap<Uuid, Balance>) -> Vec<(Uuid, Balance)> {
    let mut changed: Vec<_> = after.iter().filter(|(id, balance)| before.get(id) != Some(balance)).map(|(id, balance)| (*id, *balance)).collect();
    changed.sort_unstable_by_key(|(id, _)| *id);
    changed
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // The primary key is ours alone, and unique: that it exists means that an earlier attempt of ours was committed after all.
        if error.kind == Kind::Unique { Self::KeyExists } else { Self::Database(error) }
    }
}
