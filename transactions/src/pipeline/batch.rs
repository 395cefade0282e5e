//! One settling batch: sorted and deduplicated by (owner, external id), locked in id order, decided in Rust, written in one transaction.
//! If it fails nevertheless, it is bisected and only the culprit is parked. After an unknown COMMIT it reads back by the ids that it
//! generated.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use lastro_database::{Error, Kind};
use lastro_mesh::clock;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::decision::{self, Origin, Settled};
use super::stripes::Stripes;
use super::{Accepted, BATCH_MAX, Job, NewOperation, Refused, Settler};
use crate::EVENTS;
use crate::domain::ledger::{Balance, Balances};
use crate::domain::operation::{Operation, is_to_be_settled};
use crate::store::ledger::{BalanceChange, Ledger, Lock, Writes};
use crate::store::operations;

/// Ids are our own, so that nobody chooses them for their hashes.
type Accounts = foldhash::HashSet<Uuid>;

/// How long a batch is tried against a database that is busy or away, before its callers are told.
const TRY_FOR: Duration = Duration::from_millis(1500);
/// How long the outcome of an unknown COMMIT is asked for.
const READ_BACK_FOR: Duration = Duration::from_secs(3);
/// Between attempts of a batch.
const PAUSES: ExponentialBuilder =
    ExponentialBuilder::new().with_min_delay(Duration::from_millis(5)).with_max_delay(READ_BACK_EVERY).with_factor(2.0).without_max_times();
const READ_BACK_EVERY: Duration = Duration::from_millis(200);

type Reply = oneshot::Sender<Result<Accepted, Refused>>;

/// The callers that sent one key; the first one's request is what is stored.
struct Group {
    new: NewOperation,
    /// Each with the id that its call generated, and the hash of what it asked for.
    callers: Vec<(Uuid, [u8; 32], Reply)>,
}

/// Why an attempt came to nothing.
enum Failure {
    /// A key exists, it seems: what it belongs to must be looked up.
    KeyExists(Error),
    /// A clearing account was full: the next attempt uses another one.
    ElsewhereFirst,
    /// The database failed.
    Database(Error),
}

/// At once on PostgreSQL: while one is flushed, the next is decided and a third is written (docs/PERFORMANCE.md has the figures).
const IN_FLIGHT: usize = 3;

/// What callers have given up is dropped so often while nothing can be settled, and makes room for others.
const DROP_EVERY: Duration = Duration::from_millis(250);
/// Jobs that are looked at for one batch. Those behind them wait for a later one.
const LOOK_AT_MAX: usize = 4 * BATCH_MAX;

/// Takes batches from the queue until nobody can send any more. A batch goes beside others only if it shares no account with them, and
/// only once it is worth a commit of its own: as large as the largest in flight. Told to stop, it ends once what it has taken is settled.
pub async fn run(settler: Arc<Settler>, jobs: &mut mpsc::UnboundedReceiver<Box<Job>>, stop: CancellationToken) {
    // SQLite has one writer: a second batch would only wait for it.
    let at_once = if settler.database.is_postgres() { IN_FLIGHT } else { 1 };
    let (mut waiting, mut arrived) = (VecDeque::new(), Vec::new());
    let (mut in_flight, mut running, mut open) = (JoinSet::new(), Vec::<InFlight>::new(), true);
    let mut busy = Accounts::default();
    // Where an earlier run panicked, its batches have ended with it.
    settler.settling.store(0, Ordering::Relaxed);
    let mut drop_abandoned = interval(DROP_EVERY);
    drop_abandoned.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while open || !waiting.is_empty() || !in_flight.is_empty() {
        let worth = running.iter().map(|batch| batch.size).max().unwrap_or_default();
        if running.len() < at_once && !waiting.is_empty() && waiting.len() >= worth {
            let batch = take_disjoint(&mut waiting, &busy, &settler.stripes);
            if !batch.is_empty() {
                let accounts = decision::accounts(batch.iter().map(|job| &job.new.operation), &settler.stripes);
                busy.extend(&accounts);
                // Its own task: a defect in one batch must not end the pipeline. Its callers are told UNAVAILABLE then.
                let size = batch.len();
                let id = in_flight.spawn(settle_batch(settler.clone(), size, group(batch))).id();
                settler.settling.store(running.len() + 1, Ordering::Relaxed);
                running.push(InFlight { id, size, accounts });
                continue;
            }
        }
        tokio::select! {
            () = stop.cancelled(), if open => open = false,
            received = jobs.recv_many(&mut arrived, BATCH_MAX), if open => {
                open = received > 0;
                waiting.extend(arrived.drain(..));
            }
            Some(ended) = in_flight.join_next_with_id() => {
                let id = match ended {
                    Ok((id, ())) => id,
                    Err(error) => {
                        tracing::error!("a settling batch panicked");
                        error.id()
                    }
                };
                for ended in running.extract_if(.., |batch| batch.id == id) {
                    for account in ended.accounts {
                        busy.remove(&account);
                    }
                }
                settler.settling.store(running.len(), Ordering::Relaxed);
                settler.batch_ended.notify_waiters();
            }
            _ = drop_abandoned.tick(), if !waiting.is_empty() => waiting.retain(|job| !job.reply.is_closed()),
        }
    }
}

/// A batch that is being settled.
struct InFlight {
    id: tokio::task::Id,
    size: usize,
    accounts: Vec<Uuid>,
}

/// Takes the jobs that share no account with those that are busy in a batch in flight, nor with a job that waits before them: who is passed over keeps its accounts, so
/// that those behind it cannot pass it again and again. Jobs that their callers have given up are dropped: none of them was ever tried.
#[allow(clippy::vec_box, reason = "what waits is moved again and again: a pointer, not some hundred bytes")]
fn take_disjoint(waiting: &mut VecDeque<Box<Job>>, busy: &Accounts, stripes: &Stripes) -> Vec<Box<Job>> {
    let (mut taken, mut passed, mut kept) = (Vec::with_capacity(waiting.len().min(BATCH_MAX)), VecDeque::new(), Accounts::default());
    for _ in 0..LOOK_AT_MAX {
        if taken.len() >= BATCH_MAX {
            break;
        }
        let Some(job) = waiting.pop_front() else { break };
        if job.reply.is_closed() {
            continue;
        }
        let legs = decision::legs(&job.new.operation, stripes);
        let is_free = |account: &Uuid| !busy.contains(account) && !kept.contains(account);
        if legs.iter().all(|leg| is_free(&leg.debit) && is_free(&leg.credit)) {
            taken.push(job);
        } else {
            kept.extend(legs.iter().flat_map(|leg| [leg.debit, leg.credit]));
            passed.push_back(job);
        }
    }
    // In the order in which they came.
    passed.append(waiting);
    *waiting = passed;
    taken
}

async fn settle_batch(settler: Arc<Settler>, size: usize, groups: Vec<Group>) {
    let started = Instant::now();
    settler.batch_size.record(size as f64);
    settler.settle(groups).await;
    settler.batch_seconds.record(started.elapsed());
}

/// Sorted by key, so that two replicas insert in the same order and never wait for each other in a circle.
#[allow(clippy::vec_box, reason = "as they were taken")]
fn group(mut jobs: Vec<Box<Job>>) -> Vec<Group> {
    // Of equals the one that came first stays the first.
    jobs.sort_by(|a, b| key_of(&a.new).cmp(&key_of(&b.new)));
    let mut groups: Vec<Group> = Vec::with_capacity(jobs.len());
    for job in jobs {
        let Job { new, reply, place } = *job;
        drop(place);
        let caller = (new.operation.id, new.operation.request_hash, reply);
        match groups.last_mut().filter(|group| key_of(&group.new) == key_of(&new)) {
            Some(group) => group.callers.push(caller),
            None => groups.push(Group { new, callers: vec![caller] }),
        }
    }
    groups
}

fn key_of(new: &NewOperation) -> (Uuid, &str) {
    (new.operation.owner_id, &new.operation.external_id)
}

impl Group {
    /// Answers every caller with the stored operation.
    fn accept(self, operation: &Operation) {
        for (id, hash, reply) in self.callers {
            let _ = reply.send(answer_of(operation, id, &hash));
        }
    }

    fn refuse(self, refused: Refused) {
        for (.., reply) in self.callers {
            let _ = reply.send(Err(refused));
        }
    }
}

/// What a caller is answered whose key belongs to a stored operation: `id` is the one that its call generated, `hash` of what it asked for.
pub(super) fn answer_of(stored: &Operation, id: Uuid, hash: &[u8; 32]) -> Result<Accepted, Refused> {
    if *hash != stored.request_hash {
        return Err(Refused::KeyReused);
    }
    // Replayed means that the stored id is not the one that this call generated.
    Ok(Accepted { operation: stored.clone(), replayed: id != stored.id })
}

impl Settler {
    /// Stores and settles groups, and answers their callers.
    fn settle(&self, mut groups: Vec<Group>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let (give_up, mut pauses) = (Instant::now() + TRY_FOR, PAUSES.build());
            while !groups.is_empty() {
                let error = match self.attempt(&groups, true).await {
                    Ok(stored) => return self.answer(groups, &stored),
                    // At most once a stripe.
                    Err(Failure::ElsewhereFirst) => continue,
                    Err(Failure::KeyExists(violation)) => {
                        let before = groups.len();
                        match self.answer_existing(&mut groups).await {
                            Ok(()) if groups.len() < before => continue,
                            // Something else is unique as well, and the same attempt would find it again.
                            Ok(()) => violation.not_transient(),
                            Err(error) => error,
                        }
                    }
                    Err(Failure::Database(error)) => error,
                };
                let pause = pauses.next().unwrap_or(READ_BACK_EVERY);
                if error.is_transient() && Instant::now() + pause < give_up {
                    tokio::time::sleep(pause).await;
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
        let accounts = if decide { decision::accounts(stored.iter(), &self.stripes) } else { Vec::new() };
        let mut balances = if decide { ledger.lock(&accounts, Lock::Skip).await? } else { Balances::default() };
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
                continue;
            }
            match decision::settle(operation, &origin, &mut balances, &self.stripes)? {
                Settled::Ended(event, postings) => {
                    writes.events.push(event);
                    writes.postings.extend(postings.into_iter().map(|posting| (operation.id, posting)));
                }
                Settled::Open => {}
                Settled::ElsewhereFirst => {
                    ledger.rollback().await?;
                    return Err(Failure::ElsewhereFirst);
                }
            }
        }
        writes.balances = changed(&before, &balances);
        writes.inserted = stored.iter().collect();
        match ledger.commit(&writes).await {
            Err(error) if error.kind == Kind::Unavailable => self.read_back(&stored, error).await?,
            committed => committed?,
        }
        self.bus.wake(EVENTS.topic);
        if stored.iter().any(|operation| is_to_be_settled(operation.state)) {
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
                Err(_) => tokio::time::sleep(READ_BACK_EVERY).await,
            }
        }
    }

    /// Answers the callers whose key exists already, and leaves the other groups.
    async fn answer_existing(&self, groups: &mut Vec<Group>) -> Result<(), Error> {
        let keys: Vec<(Uuid, &str)> = groups.iter().map(|group| key_of(&group.new)).collect();
        let existing = operations::by_keys(self.database.writer(), &keys).await?;
        let mut existing: HashMap<(Uuid, String), Operation> =
            existing.into_iter().map(|operation| ((operation.owner_id, operation.external_id.clone()), operation)).collect();
        for group in std::mem::take(groups) {
            let (owner_id, external_id) = key_of(&group.new);
            match existing.remove(&(owner_id, external_id.to_owned())) {
                Some(operation) => {
                    self.known.note_repetition(owner_id, external_id);
                    group.accept(&operation);
                }
                None => groups.push(group),
            }
        }
        Ok(())
    }

    /// Stores the one operation that the database refuses to settle, so that it is not lost; the worker tries it again.
    async fn park(&self, mut groups: Vec<Group>, error: &Error) {
        tracing::error!(%error, operation = %groups[0].new.operation.id, "an operation cannot be settled; it is parked");
        match self.attempt(&groups, false).await {
            Ok(stored) => self.answer(groups, &stored),
            Err(Failure::ElsewhereFirst) => groups.into_iter().for_each(|group| group.refuse(Refused::Unavailable)),
            Err(Failure::KeyExists(error)) => {
                let looked_up = self.answer_existing(&mut groups).await;
                tracing::error!(%error, looked_up = looked_up.is_ok(), "nor can it be parked");
                groups.into_iter().for_each(|group| group.refuse(Refused::Unavailable));
            }
            Err(Failure::Database(error)) => {
                let refused = if error.is_transient() { Refused::Unavailable } else { Refused::Broken };
                tracing::error!(%error, "nor can it be parked; its caller is told");
                groups.into_iter().for_each(|group| group.refuse(refused));
            }
        }
    }

    fn answer(&self, groups: Vec<Group>, stored: &[Operation]) {
        for (group, operation) in groups.into_iter().zip(stored) {
            self.known.note(operation.owner_id, &operation.external_id);
            group.accept(operation);
        }
    }
}

/// The balances that are not what they were, sorted by account.
pub(super) fn changed(before: &Balances, after: &Balances) -> Vec<BalanceChange> {
    let change = |(id, after): (&Uuid, &Balance)| {
        let before = before.get(id).filter(|before| *before != after)?;
        Some(BalanceChange { account_id: *id, from_version: before.version, after: *after })
    };
    let mut changed: Vec<_> = after.iter().filter_map(change).collect();
    changed.sort_unstable_by_key(|change| change.account_id);
    changed
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // The primary key is ours alone, and unique: that it exists means that an earlier attempt of ours was committed after all.
        if error.kind == Kind::Unique { Self::KeyExists(error) } else { Self::Database(error) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lastro_money::{Amount, Currency, Minor};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::domain::operation::{State, Type};

    /// A transfer between two accounts, and the end at which its caller waits.
    async fn transfer(number: u128, source: u128, destination: u128) -> (Box<Job>, oneshot::Receiver<Result<Accepted, Refused>>) {
        let operation = Operation {
            id: Uuid::from_u128(number),
            owner_id: Uuid::nil(),
            external_id: number.to_string(),
            request_hash: [0; 32],
            kind: Type::Transfer,
            state: State::Pending,
            reason: None,
            amount: Amount::new(Minor::new(1), Currency::from_code("BRL").expect("a currency")),
            source: Some(Uuid::from_u128(source)),
            destination: Some(Uuid::from_u128(destination)),
            source_owner: None,
            destination_owner: None,
            description: String::new(),
            metadata: BTreeMap::new(),
            effective_time_us: 0,
            create_time_us: 0,
            update_time_us: 0,
            head: None,
            attempts: 0,
        };
        let new = NewOperation { operation, submitted: Vec::new(), correlation_id: String::new() };
        let (reply, answer) = oneshot::channel();
        let place = Arc::new(Semaphore::new(1)).acquire_owned().await.expect("a place");
        (Box::new(Job { new, reply, place }), answer)
    }

    fn busy(accounts: &[u128]) -> Accounts {
        accounts.iter().map(|id| Uuid::from_u128(*id)).collect()
    }

    fn numbers<'a>(jobs: impl IntoIterator<Item = &'a Box<Job>>) -> Vec<u128> {
        jobs.into_iter().map(|job| job.new.operation.id.as_u128()).collect()
    }

    #[tokio::test]
    async fn who_is_passed_over_keeps_its_accounts() {
        let (mut waiting, mut answers) = (VecDeque::new(), Vec::new());
        // The first wants two busy accounts, of which one is in use. Those behind it that want either of them must not pass it.
        for (number, source, destination) in [(1, 10, 20), (2, 20, 30), (3, 40, 50), (4, 30, 60), (5, 50, 70)] {
            let (job, answer) = transfer(number, source, destination).await;
            waiting.push_back(job);
            answers.push(answer);
        }
        let stripes = Stripes::default();
        let batch = take_disjoint(&mut waiting, &busy(&[10]), &stripes);
        assert_eq!(numbers(&batch), [3, 5], "4 wants what 2 waits for");
        assert_eq!(numbers(&waiting), [1, 2, 4]);
        // The account is free, and another one that others use all the time is not.
        let batch = take_disjoint(&mut waiting, &busy(&[40, 50]), &stripes);
        assert_eq!(numbers(&batch), [1, 2, 4]);
    }

    #[tokio::test]
    async fn what_its_caller_gave_up_never_gets_into_a_batch() {
        let ((kept, _waits), (given_up, gone)) = (transfer(1, 1, 2).await, transfer(2, 3, 4).await);
        drop(gone);
        let mut waiting = VecDeque::from([given_up, kept]);
        let batch = take_disjoint(&mut waiting, &Accounts::default(), &Stripes::default());
        assert_eq!((numbers(&batch), waiting.len()), (vec![1], 0));
    }

    #[tokio::test]
    async fn a_batch_has_a_size_and_the_rest_keeps_its_order() {
        let (mut waiting, mut answers) = (VecDeque::new(), Vec::new());
        for number in 0..BATCH_MAX as u128 + 3 {
            let (job, answer) = transfer(number, 2 * number, 2 * number + 1).await;
            waiting.push_back(job);
            answers.push(answer);
        }
        let batch = take_disjoint(&mut waiting, &Accounts::default(), &Stripes::default());
        assert_eq!(batch.len(), BATCH_MAX);
        assert_eq!(numbers(&waiting), (BATCH_MAX as u128..BATCH_MAX as u128 + 3).collect::<Vec<_>>());
    }
}
