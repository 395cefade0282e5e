//! One batch, from its jobs to their answers: sorted and deduplicated by (owner, external id), attempted in one transaction. If that fails, it is bisected
//! and only the culprit is parked. After an unknown COMMIT it reads back by an event that it generated.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use lastro_database::{Error, Kind};
use tokio::time::Instant;
use uuid::Uuid;

use super::attempt::{How, Outcome};
use super::job::{Accepted, Job, Refused, Work, accept, answer_of_all};
use super::{Settler, expiry};
use crate::domain::operation::Operation;
use crate::store::ledger::Lock;
use crate::store::operations;

/// How long a batch is tried against a database that is busy or away, before its callers are told.
const TRY_FOR: Duration = Duration::from_millis(1500);
/// Between attempts of a batch.
const PAUSES: ExponentialBuilder =
    ExponentialBuilder::new().with_min_delay(Duration::from_millis(5)).with_max_delay(PAUSE_MAX).with_factor(2.0).without_max_times();
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// So often holds that have run out are released before who lacks their money is left undecided: the others of the batch do not wait until the last of
/// many is released.
pub(super) const RELEASES_MAX: u32 = 3;
/// So often somebody else, who has them, is waited for, and so long each time; so long also before what others have locked is tried again.
const RELEASE_WAITS_MAX: u32 = 10;
const RELEASE_PAUSE: Duration = Duration::from_millis(5);

/// Why an attempt came to nothing.
pub(super) enum Failure {
    /// A key exists, it seems: what it belongs to must be looked up.
    KeyExists(Error),
    /// A clearing account was full: the next attempt uses another one.
    ElsewhereFirst,
    /// Somebody lacks what a hold has that ran out on one of these accounts: it is to be released first.
    ExpiredFirst { accounts: Vec<Uuid>, expired_by_us: i64 },
    /// The database failed.
    Database(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // The primary key is ours alone, and unique: that it exists means that an earlier attempt of ours was committed after all.
        if error.kind == Kind::Unique { Self::KeyExists(error) } else { Self::Database(error) }
    }
}

/// Sorted by key, so that two replicas insert in the same order and never wait for each other in a circle; those with one key become one.
#[allow(clippy::vec_box, reason = "as they were taken: what is sorted is a pointer, not some hundred bytes")]
pub(super) fn group(mut jobs: Vec<Box<Job>>) -> Vec<Job> {
    // Of equals the one that came first stays the first.
    jobs.sort_by(|a, b| a.work.key().cmp(&b.work.key()));
    let mut groups: Vec<Job> = Vec::with_capacity(jobs.len());
    for job in jobs {
        let job = Job { _place: None, ..*job };
        match (groups.last_mut().map(|last| &mut last.work), job.work) {
            (Some(Work::Create { new: first, callers }), Work::Create { new, callers: more }) if first.key() == new.key() => callers.extend(more),
            (_, work) => groups.push(Job { work, ..job }),
        }
    }
    groups
}

/// Tells the callers of a job what became of it.
fn answer(settler: &Settler, work: Work, outcome: Outcome) {
    match (work, outcome) {
        (Work::Create { callers, .. }, Outcome::Created(operation)) => {
            settler.known.note(operation.owner_id, &operation.external_id);
            accept(callers, operation);
        }
        (Work::Together { reply, .. }, Outcome::Together(operations)) => {
            operations.iter().for_each(|one| settler.known.note(one.owner_id, &one.external_id));
            let _ = reply.send(Ok(operations.into_iter().map(|operation| Accepted { operation, replayed: false }).collect()));
        }
        (Work::Resolve { reply, .. }, Outcome::Resolved(operation)) => drop(reply.send(Ok(Accepted { operation: *operation, replayed: false }))),
        (work, Outcome::Refused(refused)) => work.refuse(refused),
        (work, _) => work.refuse(Refused::Unavailable),
    }
}

fn refuse_all(groups: Vec<Job>, refused: Refused) {
    groups.into_iter().for_each(|group| group.work.refuse(refused));
}

impl Settler {
    /// Stores and settles groups, and answers their callers.
    pub(super) fn settle(&self, mut groups: Vec<Job>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let (mut give_up, mut pauses) = (Instant::now() + TRY_FOR, PAUSES.build());
            let mut how = How::new(true, Lock::Skip);
            let (mut releases, mut waits) = (0, 0);
            while !groups.is_empty() {
                let error = match self.attempt(&groups, &how).await {
                    Ok(outcomes) => {
                        groups = self.answer(groups, outcomes);
                        // What is left waits for locks that others have.
                        how.lock = Lock::Wait;
                        give_up = groups.iter().map(|group| group.locked_by).max().unwrap_or(give_up);
                        if Instant::now() < give_up {
                            if !groups.is_empty() {
                                tokio::time::sleep(RELEASE_PAUSE).await;
                            }
                            continue;
                        }
                        return refuse_all(groups, Refused::Unavailable);
                    }
                    // At most once a stripe.
                    Err(Failure::ElsewhereFirst) => continue,
                    Err(Failure::ExpiredFirst { accounts, expired_by_us }) => {
                        how.expired_by_us = Some(expired_by_us);
                        if expiry::release_on(self, &accounts, expired_by_us).await {
                            releases += 1;
                        } else {
                            waits += 1;
                            tokio::time::sleep(RELEASE_PAUSE).await;
                        }
                        if releases >= RELEASES_MAX || waits >= RELEASE_WAITS_MAX || Instant::now() >= give_up {
                            how.unsure.extend(accounts);
                        }
                        continue;
                    }
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
                let pause = pauses.next().unwrap_or(PAUSE_MAX);
                if error.is_transient() && Instant::now() + pause < give_up {
                    // One row that somebody keeps locked does not keep those whose locks are free.
                    how.lock = Lock::Skip;
                    tokio::time::sleep(pause).await;
                } else if error.is_transient() {
                    tracing::warn!(%error, operations = groups.len(), "a batch could not be settled");
                    refuse_all(groups, Refused::Unavailable);
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

    /// Answers the callers, and gives back those who have to wait for their locks.
    fn answer(&self, groups: Vec<Job>, outcomes: Vec<Outcome>) -> Vec<Job> {
        let mut waiting = Vec::new();
        for (group, outcome) in groups.into_iter().zip(outcomes) {
            match outcome {
                Outcome::NotLocked => waiting.push(group),
                outcome => answer(self, group.work, outcome),
            }
        }
        waiting
    }

    /// Answers the callers whose key exists already, and leaves the other groups.
    async fn answer_existing(&self, groups: &mut Vec<Job>) -> Result<(), Error> {
        let keys: Vec<(Uuid, &str)> = groups.iter().flat_map(|group| group.work.keys()).collect();
        let existing = operations::by_keys(self.database.writer(), &keys).await?;
        let mut existing: HashMap<(Uuid, String), Operation> =
            existing.into_iter().map(|operation| ((operation.owner_id, operation.external_id.clone()), operation)).collect();
        for group in std::mem::take(groups) {
            let mut stored: Vec<Operation> =
                group.work.keys().into_iter().filter_map(|(owner, key)| existing.remove(&(owner, key.to_owned()))).collect();
            if stored.is_empty() {
                groups.push(group);
                continue;
            }
            stored.iter().for_each(|one| self.known.note_repetition(one.owner_id, &one.external_id));
            match group.work {
                Work::Create { callers, .. } => accept(callers, stored.swap_remove(0)),
                Work::Together { new, reply } => drop(reply.send(answer_of_all(&new, stored))),
                Work::Resolve { reply, .. } => drop(reply.send(Err(Refused::Unavailable))),
            }
        }
        Ok(())
    }

    /// Stores the one operation that the database refuses to settle, so that it is not lost; the worker tries it again.
    async fn park(&self, mut groups: Vec<Job>, error: &Error) {
        let ids = groups.iter().map(|group| group.work.id().to_string()).collect::<Vec<_>>().join(", ");
        tracing::error!(%error, operation = ids, "an operation cannot be settled; it is parked if it can be");
        if !groups.iter().all(|group| matches!(group.work, Work::Create { .. })) {
            // What is done at once or not at all is not done.
            return refuse_all(groups, Refused::Broken);
        }
        match self.attempt(&groups, &How::new(false, Lock::Wait)).await {
            Ok(outcomes) => refuse_all(self.answer(groups, outcomes), Refused::Unavailable),
            Err(Failure::ElsewhereFirst | Failure::ExpiredFirst { .. }) => refuse_all(groups, Refused::Unavailable),
            Err(Failure::KeyExists(error)) => {
                let looked_up = self.answer_existing(&mut groups).await;
                tracing::error!(%error, looked_up = looked_up.is_ok(), "nor can it be parked");
                refuse_all(groups, Refused::Unavailable);
            }
            Err(Failure::Database(error)) => {
                let refused = if error.is_transient() { Refused::Unavailable } else { Refused::Broken };
                tracing::error!(%error, "nor can it be parked; its caller is told");
                refuse_all(groups, refused);
            }
        }
    }
}
