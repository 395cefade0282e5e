//! The queue: takes batches from what waits. A batch goes beside others only if it shares no account with them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::job::{Job, Work};
use super::settle::group;
use super::stripes::Stripes;
use super::{BATCH_LEGS_MAX, BATCH_MAX, Settler};

/// Ids are our own, so that nobody chooses them for their hashes.
type Accounts = foldhash::HashSet<Uuid>;

use super::decision;

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
                let accounts = decision::accounts(batch.iter().flat_map(|job| job.work.legs(&settler.stripes)));
                busy.extend(&accounts);
                // Its own task: a defect in one batch must not end the pipeline. Its callers are told UNAVAILABLE then.
                let size = batch.len();
                let id = in_flight.spawn(settle_batch(settler.clone(), batch)).id();
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
            _ = drop_abandoned.tick(), if !waiting.is_empty() => waiting.retain(|job| !job.work.is_abandoned()),
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
    let mut legs_taken = 0;
    for _ in 0..LOOK_AT_MAX {
        if taken.len() >= BATCH_MAX || legs_taken >= BATCH_LEGS_MAX {
            break;
        }
        let Some(job) = waiting.pop_front() else { break };
        if job.work.is_abandoned() {
            continue;
        }
        let legs = job.work.legs(stripes);
        let is_free = |account: &Uuid| !busy.contains(account) && !kept.contains(account);
        let is_free = legs.iter().all(|leg| is_free(&leg.debit) && is_free(&leg.credit));
        // What goes together has a batch of its own: that it is refused must not undo what others asked for.
        if matches!(job.work, Work::Together { .. }) && is_free && taken.is_empty() {
            taken.push(job);
            break;
        }
        if !matches!(job.work, Work::Together { .. }) && is_free {
            legs_taken += legs.len();
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

#[allow(clippy::vec_box, reason = "as they were taken")]
async fn settle_batch(settler: Arc<Settler>, batch: Vec<Box<Job>>) {
    let started = Instant::now();
    settler.batch_size.record(batch.len() as f64);
    settler.settle(group(batch)).await;
    settler.batch_seconds.record(started.elapsed());
}

#[cfg(test)]
mod tests {
    use lastro_money::{Amount, Currency, Minor};
    use tokio::sync::{Semaphore, oneshot};

    use super::*;
    use crate::domain::operation::{Movement, Operation, OperationLeg, Party, Type};
    use crate::pipeline::job::{Accepted, NewOperation, Purpose, Refused};

    /// A transfer between two accounts, and the end at which its caller waits.
    async fn transfer(number: u128, source: u128, destination: u128) -> (Box<Job>, oneshot::Receiver<Result<Accepted, Refused>>) {
        let (reply, answer) = oneshot::channel();
        (job(Work::create(new_transfer(number, source, destination), reply)).await, answer)
    }

    fn new_transfer(number: u128, source: u128, destination: u128) -> NewOperation {
        let party = |id| Some(Party { account_id: Uuid::from_u128(id), owner_id: Uuid::nil() });
        let movement = Movement::Single(OperationLeg {
            source: party(source),
            destination: party(destination),
            amount: Amount::new(Minor::new(1), Currency::from_code("BRL").expect("a currency")),
            description: String::new(),
        });
        let operation = Operation::new(Uuid::from_u128(number), (Uuid::nil(), number.to_string()), Type::Transfer, movement, 0);
        NewOperation { operation, submitted: Vec::new(), correlation_id: String::new(), purpose: Purpose::Plain }
    }

    async fn job(work: Work) -> Box<Job> {
        let place = Arc::new(Semaphore::new(1)).acquire_owned().await.expect("a place");
        Box::new(Job { work, locked_by: Instant::now(), _place: Some(place) })
    }

    fn busy(accounts: &[u128]) -> Accounts {
        accounts.iter().map(|id| Uuid::from_u128(*id)).collect()
    }

    fn numbers<'a>(jobs: impl IntoIterator<Item = &'a Box<Job>>) -> Vec<u128> {
        let number = |job: &Job| match &job.work {
            Work::Create { new, .. } => new.operation.id.as_u128(),
            Work::Together { new, .. } => new[0].operation.id.as_u128(),
            Work::Resolve { new, .. } => new.id.as_u128(),
        };
        jobs.into_iter().map(|job| number(job)).collect()
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

    #[tokio::test]
    async fn what_goes_together_goes_alone() {
        let (reply, _waits) = oneshot::channel();
        let together = job(Work::Together { new: vec![new_transfer(2, 3, 4), new_transfer(3, 4, 5)], reply }).await;
        let ((first, _a), (last, _b), (same, _c)) = (transfer(1, 1, 2).await, transfer(4, 8, 9).await, transfer(5, 5, 6).await);
        let mut waiting = VecDeque::from([first, together, last, same]);
        let (nothing, stripes) = (Accounts::default(), Stripes::default());
        assert_eq!(numbers(&take_disjoint(&mut waiting, &nothing, &stripes)), [1, 4], "5 wants an account of 2");
        assert_eq!(numbers(&take_disjoint(&mut waiting, &nothing, &stripes)), [2]);
        assert_eq!(numbers(&take_disjoint(&mut waiting, &nothing, &stripes)), [5]);
    }
}
