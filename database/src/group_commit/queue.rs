//! The queue: takes batches from what waits. A batch goes beside others only if it locks nothing that they have locked.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Committer, Inner, Job, Work, settle};

/// What batches have locked. Ids are our own, so that nobody chooses them for their hashes.
type Locked = foldhash::HashSet<Uuid>;

/// What callers have given up is dropped so often while nothing can be committed, and makes room for others.
const DROP_EVERY: Duration = Duration::from_millis(250);
/// Batches that wait for locks at once: each has a connection meanwhile. What else waits for locks then goes with the next of them.
const WAITING_AT_ONCE: usize = 2;
/// Jobs that are looked at for one batch, as a multiple of its jobs. Those behind them wait for a later one.
const LOOK_AT: usize = 4;

/// Takes batches from the queue until nobody can send any more. A batch goes beside others only if it locks nothing that they have locked, and only once
/// it is worth a commit of its own: as large as the largest in flight. Told to stop, it ends once what it has taken is committed.
pub(super) async fn run<C: Committer>(
    inner: Arc<Inner<C>>,
    jobs: &mut mpsc::UnboundedReceiver<Box<Job<C::Work>>>,
    at_once: usize,
    stop: CancellationToken,
) {
    let (mut waiting, mut arrived) = (VecDeque::new(), Vec::new());
    let (mut in_flight, mut running, mut open) = (JoinSet::new(), Vec::<InFlight>::new(), true);
    let mut locked = Locked::default();
    let mut parked: VecDeque<Parked<C::Work>> = VecDeque::new();
    // Where an earlier run panicked, its batches have ended with it.
    inner.in_flight.store(0, Ordering::Relaxed);
    let mut drop_abandoned = interval(DROP_EVERY);
    drop_abandoned.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while open || !waiting.is_empty() || !in_flight.is_empty() || !parked.is_empty() {
        if running.iter().filter(|batch| batch.waits).count() < WAITING_AT_ONCE
            && let Some(Parked { jobs: left, locks }) = parked.pop_front()
        {
            let jobs = left.len();
            let id = in_flight.spawn(settle::wait(inner.clone(), left)).id();
            running.push(InFlight { id, jobs, locks, waits: true });
        }
        let committing = || running.iter().filter(|batch| !batch.waits);
        let worth = committing().map(|batch| batch.jobs).max().unwrap_or_default();
        // Those that only wait for locks are no load.
        if committing().count() < at_once && !waiting.is_empty() && waiting.len() >= worth {
            let batch = take_disjoint(&*inner.committer, &inner.limits, &mut waiting, &locked);
            if !batch.is_empty() {
                let locks = locks_of(&*inner.committer, batch.iter().map(|job| &job.work));
                locked.extend(&locks);
                let jobs = batch.len();
                // Its own task: a defect in one batch must not end the queue. Its callers are told UNAVAILABLE then.
                let id = in_flight.spawn(settle::run(inner.clone(), batch)).id();
                inner.in_flight.store(running.len() + 1, Ordering::Relaxed);
                running.push(InFlight { id, jobs, locks, waits: false });
                continue;
            }
        }
        tokio::select! {
            () = stop.cancelled(), if open => open = false,
            received = jobs.recv_many(&mut arrived, inner.limits.batch_max), if open => {
                open = received > 0;
                waiting.extend(arrived.drain(..));
            }
            Some(ended) = in_flight.join_next_with_id() => {
                let (id, left) = match ended {
                    Ok(ended) => ended,
                    Err(error) => {
                        tracing::error!("a batch panicked");
                        (error.id(), Vec::new())
                    }
                };
                for ended in running.extract_if(.., |batch| batch.id == id) {
                    for lock in ended.locks {
                        locked.remove(&lock);
                    }
                }
                if !left.is_empty() {
                    // They keep what they lock, so that nobody passes them.
                    let locks = locks_of(&*inner.committer, left.iter().map(|job| &job.work));
                    locked.extend(&locks);
                    park(&mut parked, Parked { jobs: left, locks }, inner.limits.batch_max);
                }
                inner.in_flight.store(running.len(), Ordering::Relaxed);
                inner.batch_ended.notify_waiters();
            }
            _ = drop_abandoned.tick(), if !waiting.is_empty() => waiting.retain(|job| !job.work.is_abandoned()),
        }
    }
}

/// Jobs whose locks somebody else has, until a batch of them begins to wait, and what they lock.
struct Parked<W> {
    jobs: Vec<Job<W>>,
    locks: Vec<Uuid>,
}

/// Adds jobs that wait for their locks to the last batch that will, or makes another one. What must have a batch of its own has one here, too.
fn park<W: Work>(parked: &mut VecDeque<Parked<W>>, more: Parked<W>, batch_max: usize) {
    let goes_alone = |batch: &Parked<W>| batch.jobs.iter().any(|job| job.work.goes_alone());
    match parked.back_mut() {
        Some(last) if !goes_alone(last) && !goes_alone(&more) && last.jobs.len() + more.jobs.len() <= batch_max => {
            last.jobs.extend(more.jobs);
            last.locks.extend(more.locks);
        }
        _ => parked.push_back(more),
    }
}

/// A batch that is being committed.
struct InFlight {
    id: tokio::task::Id,
    jobs: usize,
    locks: Vec<Uuid>,
    /// Whether it waits for locks that somebody else has.
    waits: bool,
}

/// What some work locks, each once.
fn locks_of<'a, C: Committer>(committer: &C, work: impl Iterator<Item = &'a C::Work>) -> Vec<Uuid> {
    let mut locks: Vec<Uuid> = work.flat_map(|work| committer.locks(work)).collect();
    locks.sort_unstable();
    locks.dedup();
    locks
}

/// Takes the jobs that lock nothing that a batch in flight has locked, nor what a job locks that waits before them: a job that is passed over keeps its
/// locks, so that those behind it cannot pass it again and again. Jobs that their callers have given up are dropped: none of them was ever tried.
#[allow(clippy::vec_box, reason = "what waits is moved again and again: a pointer, not some hundred bytes")]
fn take_disjoint<C: Committer>(
    committer: &C,
    limits: &super::Limits,
    waiting: &mut VecDeque<Box<Job<C::Work>>>,
    locked: &Locked,
) -> Vec<Box<Job<C::Work>>> {
    let (mut taken, mut passed, mut kept) = (Vec::with_capacity(waiting.len().min(limits.batch_max)), VecDeque::new(), Locked::default());
    let mut size_taken = 0;
    for _ in 0..LOOK_AT * limits.batch_max {
        if taken.len() >= limits.batch_max || size_taken >= limits.batch_size_max {
            break;
        }
        let Some(job) = waiting.pop_front() else { break };
        if job.work.is_abandoned() {
            continue;
        }
        let locks = committer.locks(&job.work);
        let is_free = locks.iter().all(|lock| !locked.contains(lock) && !kept.contains(lock));
        if job.work.goes_alone() && is_free && taken.is_empty() {
            taken.push(job);
            break;
        }
        if !job.work.goes_alone() && is_free {
            size_taken += committer.size(&job.work);
            taken.push(job);
        } else {
            kept.extend(locks);
            passed.push_back(job);
        }
    }
    // In the order in which they came.
    passed.append(waiting);
    *waiting = passed;
    taken
}

#[cfg(test)]
mod tests;
