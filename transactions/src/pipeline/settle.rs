//! How a batch of operations is committed: what an attempt may have to do first, how callers are told, and how the one operation is parked that the
//! database refuses to settle.

use std::time::Duration;

use lastro_database::Error;
use lastro_database::group_commit::{Committer, Failure, How, Job, Key, Lock, Locks, Refusal, Work as _};
use tokio::time::Instant;
use uuid::Uuid;

use super::attempt::{Outcome, Plan};
use super::job::{Accepted, Refused, Work, accept, answer_of_all};
use super::{Settler, decision, expiry};
use crate::domain::operation::Operation;
use crate::store::operations;

/// So often holds that have run out are released before who lacks their money is left undecided: the others of the batch do not wait until the last of
/// many is released.
pub(super) const RELEASES_MAX: u32 = 3;
/// So often somebody else, who has them, is waited for, and so long each time.
const RELEASE_WAITS_MAX: u32 = 10;
const RELEASE_PAUSE: Duration = Duration::from_millis(5);

/// What attempts of a batch have found out.
#[derive(Default)]
pub struct Heed {
    /// When somebody first lacked what holds have that had run out: by this time they are judged, so that those that run out meanwhile do not put it off.
    pub expired_by_us: Option<i64>,
    /// Accounts with holds that have run out and could not be released: who lacks funds there is not decided now.
    pub unsure: Vec<Uuid>,
    releases: u32,
    waits: u32,
}

/// What an attempt stops for.
pub enum Detour {
    /// A clearing account was full: the next attempt uses another one. At most once a stripe.
    Elsewhere,
    /// Somebody lacks what a hold has that ran out on one of these accounts: it is to be released first.
    ReleaseExpired { accounts: Vec<Uuid>, expired_by_us: i64 },
}

impl Committer for Settler {
    type Work = Work;
    type Outcome = Outcome;
    type Heed = Heed;
    type Detour = Detour;
    type Stored = Operation;

    fn locks(&self, work: &Work) -> Locks {
        work.legs(&self.stripes).into_iter().flat_map(|leg| [leg.debit, leg.credit]).collect()
    }

    /// Its legs.
    fn size(&self, work: &Work) -> usize {
        match work {
            Work::Create { new, .. } => new.operation.movement.legs().len(),
            Work::Together { new, .. } => new.iter().map(|new| new.operation.movement.legs().len()).sum(),
            Work::Resolve { new, .. } => new.movement.legs().len(),
        }
    }

    async fn attempt(&self, jobs: &[Job<Work>], how: &How<Heed>) -> Result<Vec<Option<Outcome>>, Failure<Detour>> {
        self.attempt_as(jobs, Plan { decide: true, lock: how.lock, heed: &how.heed }).await
    }

    async fn detour(&self, detour: Detour, how: &mut How<Heed>, give_up: Instant) {
        let Detour::ReleaseExpired { accounts, expired_by_us } = detour else { return };
        let heed = &mut how.heed;
        heed.expired_by_us = Some(expired_by_us);
        if expiry::release_on(self, &accounts, expired_by_us).await {
            heed.releases += 1;
        } else {
            heed.waits += 1;
            tokio::time::sleep(RELEASE_PAUSE).await;
        }
        if heed.releases >= RELEASES_MAX || heed.waits >= RELEASE_WAITS_MAX || Instant::now() >= give_up {
            heed.unsure.extend(accounts);
        }
    }

    fn answer(&self, work: Work, outcome: Outcome) {
        match (work, outcome) {
            (Work::Create { callers, .. }, Outcome::Created(operation)) => accept(callers, operation),
            (Work::Together { reply, .. }, Outcome::Together(operations)) => {
                let _ = reply.send(Ok(operations.into_iter().map(|operation| Accepted { operation, replayed: false }).collect()));
            }
            (Work::Resolve { reply, .. }, Outcome::Resolved(operation)) => drop(reply.send(Ok(Accepted { operation: *operation, replayed: false }))),
            (work, Outcome::Refused(refused)) => work.refuse_as(refused),
            (work, _) => work.refuse_as(Refused::Unavailable),
        }
    }

    async fn stored(&self, keys: &[Key<'_>], is_latest: bool) -> Result<Vec<Operation>, Error> {
        operations::by_keys(if is_latest { self.database.writer() } else { self.database.reader() }, keys).await
    }

    fn key_of(stored: &Operation) -> Key<'_> {
        (stored.owner_id, &stored.external_id)
    }

    fn answer_stored(&self, work: Work, mut stored: Vec<Operation>) {
        match work {
            Work::Create { callers, .. } => accept(callers, stored.swap_remove(0)),
            Work::Together { new, reply } => drop(reply.send(answer_of_all(&new, stored))),
            Work::Resolve { reply, .. } => drop(reply.send(Err(Refused::Unavailable))),
        }
    }

    fn note_keys(outcome: &Outcome, note: impl FnMut(Key<'_>)) {
        outcome.created().iter().map(Self::key_of).for_each(note);
    }

    fn note_batch(&self, jobs: usize, took: Duration) {
        self.batch_size.record(jobs as f64);
        self.batch_seconds.record(took);
    }

    /// Stores the one operation that the database refuses to settle, so that it is not lost; the worker tries it again.
    async fn park(&self, job: Job<Work>, error: &Error) {
        tracing::error!(%error, operation = %job.work.id(), "an operation cannot be settled; it is parked if it can be");
        if !matches!(job.work, Work::Create { .. }) {
            // What is done at once or not at all is not done.
            return job.work.refuse(Refusal::Broken);
        }
        let parked = self.attempt_as(std::slice::from_ref(&job), Plan { decide: false, lock: Lock::Wait, heed: &Heed::default() }).await;
        match parked {
            Ok(outcomes) => match outcomes.into_iter().next().flatten() {
                Some(outcome) => self.answer(job.work, outcome),
                None => job.work.refuse(Refusal::Unavailable),
            },
            Err(Failure::Detour(_)) => job.work.refuse(Refusal::Unavailable),
            Err(Failure::KeyExists(error)) => match self.stored(&job.work.keys(), true).await {
                Ok(stored) if !stored.is_empty() => self.answer_stored(job.work, stored),
                looked_up => {
                    tracing::error!(%error, looked_up = looked_up.is_ok(), "nor can it be parked");
                    job.work.refuse(Refusal::Unavailable);
                }
            },
            Err(Failure::Database(error)) => {
                tracing::error!(%error, "nor can it be parked; its caller is told");
                job.work.refuse(if error.is_transient() { Refusal::Unavailable } else { Refusal::Broken });
            }
        }
    }
}

/// The accounts that some jobs lock, sorted.
pub(super) fn accounts(settler: &Settler, jobs: &[Job<Work>]) -> Vec<Uuid> {
    decision::accounts(jobs.iter().flat_map(|job| job.work.legs(&settler.stripes)))
}
