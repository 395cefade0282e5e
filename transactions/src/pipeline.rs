//! The operation pipeline: operations that arrive at the same time are stored and settled together, by group commit. What gets its locks is stored and
//! settled in the same commit; the rest is stored as PENDING and settled by the worker.

mod attempt;
mod conclude;
mod decision;
mod expiry;
mod job;
mod rehearsal;
mod settle;
mod stripes;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use lastro_database::group_commit::{GroupCommit, Limits};
use lastro_database::{Database, Error};
use lastro_events::bus::Bus;
use lastro_events::changes::Changes;
use lastro_mesh::clock;
use metrics::{Histogram, histogram};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::expiry::StuckHolds;
use self::job::Work;
pub use self::job::{Accepted, Culprit, NewOperation, NewResolution, Purpose, Refused, Verb, answer_of_all};
use self::stripes::Stripes;
use crate::provider::Answer;
use crate::store::ledger::Writes;
use crate::store::operations::{self, Named};
use crate::store::provider_calls::Call;
use crate::store::sagas::SagaEpoch;
use crate::{EVENTS, NAME};

/// Legs to a batch, so that operations of many legs do not make it too long for those of one. At once on PostgreSQL: while one batch is flushed, the next
/// is decided and a third is written (docs/PERFORMANCE.md has the figures).
const LIMITS: Limits = Limits { batch_max: 512, batch_size_max: 2048, queue_max: 12_288, at_once: 3 };

/// How long an account that is to be closed waits for holds whose time is over and which another replica is releasing.
const EXPIRED_WAIT_MAX: Duration = Duration::from_secs(1);
const EXPIRED_LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The way into the pipeline. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Pipeline {
    commit: GroupCommit<Settler>,
}

/// What settles.
pub(crate) struct Settler {
    database: Database,
    bus: Bus,
    /// Told after every commit that changed what was stored before.
    changes: Arc<Changes>,
    /// Told when something was stored unsettled.
    unsettled: Notify,
    stripes: Stripes,
    stuck_holds: StuckHolds,
    batch_size: Histogram,
    batch_seconds: Histogram,
}

impl Settler {
    /// Tells of what was committed.
    fn committed(&self, writes: &Writes<'_>) {
        self.bus.wake(EVENTS.topic);
        self.changes.note(writes.updated.iter().filter_map(|one| Some((one.operation.id, one.operation.head?.version))));
    }
}

impl Pipeline {
    /// A pipeline in which nothing moves until its work is run: [`run_batches`](Self::run_batches), [`run_lookups`](Self::run_lookups) and
    /// [`run_worker`](Self::run_worker).
    pub fn new(database: Database, bus: Bus) -> Self {
        let settler = Settler {
            changes: Changes::new(&bus, NAME),
            database,
            bus,
            unsettled: Notify::new(),
            stripes: Stripes::default(),
            stuck_holds: StuckHolds::default(),
            batch_size: histogram!("lastro_settle_batch_operations"),
            batch_seconds: histogram!("lastro_settle_batch_seconds"),
        };
        Self { commit: GroupCommit::new(Arc::new(settler), LIMITS) }
    }

    fn settler(&self) -> &Settler {
        self.commit.committer()
    }

    /// Stores an operation, and settles it if its accounts are free. Answers once it is durable. Who stops waiting before the operation has got
    /// into a batch takes it along: it is not stored.
    pub async fn submit(&self, new: NewOperation) -> Result<Accepted, Refused> {
        if self.commit.may_exist(new.key())
            && let Some(stored) = self.commit.look_up(new.key()).await?
        {
            return job::answer_of(stored, new.operation.id, &new.operation.request_hash);
        }
        self.commit.submit(1, |reply| Work::create(new, reply)).await
    }

    /// Stores operations, all of them settled, or none: then one of them is the culprit. No two of them have the same key.
    pub async fn submit_together(&self, new: Vec<NewOperation>) -> Result<Vec<Accepted>, Refused> {
        if new.iter().any(|one| self.commit.may_exist(one.key()))
            && let Some(answer) = self.look_up_all(&new).await?
        {
            return answer;
        }
        let refused = match self.commit.submit(new.len(), |reply| Work::Together { new: new.clone(), reply }).await {
            Err(refused @ (Refused::Together { .. } | Refused::RefundTooMuch { .. })) => refused,
            answer => return answer,
        };
        // They were judged as new ones. Where they are stored already, by another call or by a COMMIT whose answer was lost, what they have moved is not there
        // a second time.
        self.look_up_all(&new).await?.unwrap_or(Err(refused))
    }

    /// The answer where some of the keys exist.
    async fn look_up_all(&self, new: &[NewOperation]) -> Result<Option<Result<Vec<Accepted>, Refused>>, Refused> {
        let keys: Vec<_> = new.iter().map(NewOperation::key).collect();
        let existing = operations::by_keys(self.settler().database.writer(), &keys).await.map_err(|_| Refused::Unavailable)?;
        Ok((!existing.is_empty()).then(|| job::answer_of_all(new, existing)))
    }

    /// Captures or voids a hold. Answers once that is durable.
    pub async fn resolve(&self, new: NewResolution) -> Result<Accepted, Refused> {
        self.commit.submit(1, |reply| Work::Resolve { new, reply }).await
    }

    /// What has changed of operations that were stored before.
    pub fn changes(&self) -> &Arc<Changes> {
        &self.settler().changes
    }

    /// Stores and settles what is submitted, in batches, until told to stop.
    pub async fn run_batches(&self, stop: CancellationToken) {
        self.commit.run_batches(self.settler().database.is_postgres(), stop).await;
    }

    /// Looks up keys that may exist, until told to stop.
    pub async fn run_lookups(&self, stop: CancellationToken) {
        self.commit.run_lookups(stop).await;
    }

    /// Settles what was stored unsettled, here or by another replica, until told to stop.
    pub async fn run_worker(&self, stop: CancellationToken) {
        worker::run(self.settler(), stop).await;
    }

    /// Applies what a provider has reported of an operation, and was not applied yet.
    pub async fn apply_reports(&self, operation_id: Uuid) -> Result<(), Error> {
        self.settler().apply_reports(operation_id).await
    }

    /// Ends what a payment provider was asked for, as it has answered. False where that is not to be ended yet.
    pub async fn conclude_call(&self, call: &Call, answer: &Answer) -> Result<bool, Error> {
        self.settler().conclude_call(call, answer).await
    }

    /// Ends a charge that waits for its provider, for the saga that asked for it. False where the saga has called with a higher epoch.
    pub async fn cancel_charge(&self, operation_id: Uuid, saga: SagaEpoch, correlation_id: &str) -> Result<bool, Error> {
        self.settler().cancel_charge(operation_id, saga, correlation_id).await
    }

    /// Nobody asks the provider any more for a charge that was cancelled.
    pub async fn end_cancelled_call(&self, operation_id: Uuid) -> Result<(), Error> {
        self.settler().end_cancelled_call(operation_id).await
    }

    /// Applies what providers have reported, and whoever took it could not apply, until told to stop.
    pub async fn run_reports(&self, stop: CancellationToken) {
        conclude::run(self.settler(), stop).await;
    }

    /// Releases the holds that had run out and name these accounts, and waits a moment for those that another replica is releasing. Whoever judges
    /// the accounts afterwards finds none of them, but those that cannot be released.
    pub async fn release_expired(&self, named: Named) -> Result<(), Error> {
        let settler = self.settler();
        let (now_us, since) = (clock::now_us(), Instant::now());
        loop {
            // Looked for without taking part in what batches wait for: whoever asks again and again costs a look into an index.
            let mut expired = operations::expired_naming(settler.database.reader(), named, now_us).await?;
            let stuck = settler.stuck_holds.ids();
            expired.retain(|id| !stuck.contains(id));
            if expired.is_empty() || since.elapsed() > EXPIRED_WAIT_MAX {
                return Ok(());
            }
            if !expiry::release_these(settler, &expired).await {
                tokio::time::sleep(EXPIRED_LOOK_AGAIN).await;
            }
        }
    }

    /// Releases holds that have run out, until told to stop.
    pub async fn run_expiry(&self, stop: CancellationToken) {
        expiry::run(self.settler(), stop).await;
    }
}
