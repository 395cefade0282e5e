//! One batch, from its jobs to their answers: sorted and deduplicated by idempotency key, attempted in one transaction. If that fails, it is bisected, and
//! only the job that is at fault is parked.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Committer, Failure, How, Inner, Job, Lock, Refusal, Work};
use crate::Error;

/// How long a batch is tried against a database that is busy or away, before its callers are told.
const TRY_FOR: Duration = Duration::from_millis(1500);
/// Between attempts of a batch.
const PAUSES: ExponentialBuilder =
    ExponentialBuilder::new().with_min_delay(Duration::from_millis(5)).with_max_delay(PAUSE_MAX).with_factor(2.0).without_max_times();
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// Before what others have locked is tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// So often those that wait for locks are tried without waiting, each time those whose locks are free: what is waited for afterwards is locked for long, and
/// whoever waits for it holds the locks of all that goes along.
const SKIPS: u32 = 20;

/// Commits a batch and answers its callers. Gives back the jobs whose locks somebody else has: they wait apart, so that the others of the batch, and what
/// comes after those, do not wait along.
#[allow(clippy::vec_box, reason = "as they were taken from the queue")]
pub(super) async fn run<C: Committer>(inner: Arc<Inner<C>>, batch: Vec<Box<Job<C::Work>>>) -> Vec<Job<C::Work>> {
    let (started, jobs) = (Instant::now(), batch.len());
    let waiting = inner.settle(group(batch), Lock::Skip).await;
    inner.committer.note_batch(jobs, started.elapsed());
    waiting
}

/// Commits jobs that wait for their locks, as long as they may.
pub(super) async fn wait<C: Committer>(inner: Arc<Inner<C>>, jobs: Vec<Job<C::Work>>) -> Vec<Job<C::Work>> {
    inner.settle(jobs, Lock::Wait).await
}

/// Sorted by key, so that two replicas insert in the same order and never wait for each other in a circle; those with one key become one.
#[allow(clippy::vec_box, reason = "what is sorted is a pointer, not some hundred bytes")]
fn group<W: Work>(mut jobs: Vec<Box<Job<W>>>) -> Vec<Job<W>> {
    // Of equals the one that came first stays the first.
    jobs.sort_by(|a, b| a.work.key().cmp(&b.work.key()));
    let mut groups: Vec<Job<W>> = Vec::with_capacity(jobs.len());
    for job in jobs {
        let job = Job { _place: None, ..*job };
        match groups.last_mut() {
            // What it cannot take over goes by itself.
            Some(last) if last.work.key().is_some() && last.work.key() == job.work.key() => {
                let Job { work, locked_by, .. } = job;
                let left = last.work.absorb(work);
                groups.extend(left.map(|work| Job { work, locked_by, _place: None }));
            }
            _ => groups.push(job),
        }
    }
    groups
}

fn refuse_all<W: Work>(jobs: Vec<Job<W>>, refusal: Refusal) {
    jobs.into_iter().for_each(|job| job.work.refuse(refusal));
}

impl<C: Committer> Inner<C> {
    /// Begun without waiting for locks, it gives back the jobs that lack theirs; begun with waiting, it gives back none.
    fn settle(&self, mut jobs: Vec<Job<C::Work>>, begun: Lock) -> Pin<Box<dyn Future<Output = Vec<Job<C::Work>>> + Send + '_>> {
        Box::pin(async move {
            let (mut give_up, mut pauses) = (Instant::now() + TRY_FOR, PAUSES.build());
            let mut how = How { lock: Lock::Skip, heed: C::Heed::default() };
            let mut passes = 0;
            while !jobs.is_empty() {
                let error = match self.committer.attempt(&jobs, &how).await {
                    Ok(outcomes) => {
                        jobs = self.answer(jobs, outcomes);
                        if begun == Lock::Skip {
                            return jobs;
                        }
                        // What is left waits for locks that others have.
                        passes += 1;
                        how.lock = if passes < SKIPS { Lock::Skip } else { Lock::Wait };
                        give_up = jobs.iter().map(|job| job.locked_by).max().unwrap_or(give_up);
                        if Instant::now() < give_up {
                            if !jobs.is_empty() {
                                tokio::time::sleep(LOCK_PAUSE).await;
                            }
                            continue;
                        }
                        refuse_all(jobs, Refusal::Unavailable);
                        return Vec::new();
                    }
                    Err(Failure::Detour(detour)) => {
                        self.committer.detour(detour, &mut how, give_up).await;
                        continue;
                    }
                    Err(Failure::KeyExists(violation)) => {
                        let before = jobs.len();
                        match self.answer_existing(&mut jobs).await {
                            Ok(()) if jobs.len() < before => continue,
                            // Something else is unique as well, and the same attempt would find it again.
                            Ok(()) => violation.not_transient(),
                            Err(error) => error,
                        }
                    }
                    Err(Failure::Database(error)) => error,
                };
                let pause = pauses.next().unwrap_or(PAUSE_MAX);
                if error.is_transient() && Instant::now() + pause < give_up {
                    // One row that somebody keeps locked does not keep those whose locks are free.
                    how.lock = Lock::Skip;
                    tokio::time::sleep(pause).await;
                } else if error.is_transient() {
                    tracing::warn!(%error, jobs = jobs.len(), "a batch could not be committed");
                    refuse_all(jobs, Refusal::Unavailable);
                    return Vec::new();
                } else if jobs.len() > 1 {
                    let second = jobs.split_off(jobs.len() / 2);
                    let mut waiting = self.settle(jobs, begun).await;
                    waiting.extend(self.settle(second, begun).await);
                    return waiting;
                } else if let Some(culprit) = jobs.pop() {
                    self.committer.park(culprit, &error).await;
                }
            }
            Vec::new()
        })
    }

    /// Answers the callers, and gives back the jobs that have to wait for their locks.
    fn answer(&self, jobs: Vec<Job<C::Work>>, outcomes: Vec<Option<C::Outcome>>) -> Vec<Job<C::Work>> {
        let mut waiting = Vec::new();
        for (job, outcome) in jobs.into_iter().zip(outcomes) {
            match outcome {
                None => waiting.push(job),
                Some(outcome) => {
                    C::note_keys(&outcome, |(owner_id, key)| self.known.note(owner_id, key));
                    self.committer.answer(job.work, outcome);
                }
            }
        }
        waiting
    }

    /// Answers the callers whose keys exist already, and leaves the other jobs.
    async fn answer_existing(&self, jobs: &mut Vec<Job<C::Work>>) -> Result<(), Error> {
        let keys: Vec<_> = jobs.iter().flat_map(|job| job.work.keys()).collect();
        let existing = self.committer.stored(&keys, true).await?;
        let owned = |stored: C::Stored| {
            let (owner_id, key) = C::key_of(&stored);
            ((owner_id, key.to_owned()), stored)
        };
        let mut existing: HashMap<(Uuid, String), C::Stored> = existing.into_iter().map(owned).collect();
        for job in std::mem::take(jobs) {
            let keys = job.work.keys().into_iter();
            let stored: Vec<C::Stored> = keys.filter_map(|(owner_id, key)| existing.remove(&(owner_id, key.to_owned()))).collect();
            if stored.is_empty() {
                jobs.push(job);
                continue;
            }
            for (owner_id, key) in stored.iter().map(C::key_of) {
                self.known.note_repetition(owner_id, key);
            }
            self.committer.answer_stored(job.work, stored);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
