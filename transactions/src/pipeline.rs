//! The operation pipeline: group commit. One settling batch is in flight while the next gathers, without any timer: whoever came while
//! the last one was flushed goes together. What gets its locks is stored and settled in the same commit; the rest is stored as PENDING
//! and settled by the worker.

mod attempt;
mod batch;
mod conclude;
mod decision;
mod expiry;
mod job;
mod known_keys;
mod rehearsal;
mod settle;
mod stripes;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lastro_database::{Database, Error};
use lastro_events::bus::Bus;
use metrics::{Histogram, histogram};
use tokio::sync::{Mutex, Notify, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::expiry::StuckHolds;
pub use self::job::{Accepted, Culprit, NewOperation, NewResolution, Purpose, Refused, Verb, answer_of_all};
use self::job::{Job, Work};
use self::known_keys::{KnownKeys, Lookup};
use self::stripes::Stripes;
use crate::EVENTS;
use crate::changes::Changes;
use crate::provider::Answer;
use crate::store::ledger::Writes;
use crate::store::operations;
use crate::store::provider_calls::Call;

/// Jobs to a batch; what exceeds it waits for the next one.
const BATCH_MAX: usize = 512;
/// Legs to a batch, so that operations of many legs do not make it too long for those of one.
const BATCH_LEGS_MAX: usize = 2048;
/// Operations that wait for their batch, wherever they wait; what exceeds it is refused at once.
const QUEUE_MAX: usize = 12_288;
/// How long what cannot be stored without its locks waits for them: a capture, a void, a reversal, an atomic batch.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// The way into the pipeline. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Pipeline {
    queue: mpsc::UnboundedSender<Box<Job>>,
    places: Arc<Semaphore>,
    lookups: mpsc::Sender<Lookup>,
    settler: Arc<Settler>,
    /// What waits, held by whoever settles it or looks it up. Work that panicked leaves it to the work that is started in its place.
    jobs: Arc<Mutex<mpsc::UnboundedReceiver<Box<Job>>>>,
    asked: Arc<Mutex<mpsc::Receiver<Lookup>>>,
}

/// What settles.
pub(crate) struct Settler {
    database: Database,
    bus: Bus,
    /// Told after every commit that changed what was stored before.
    changes: Arc<Changes>,
    /// Told when something was stored unsettled.
    unsettled: Notify,
    known: KnownKeys,
    stripes: Stripes,
    stuck_holds: StuckHolds,
    /// Batches that are being settled.
    settling: AtomicUsize,
    /// Told when one of them has ended.
    batch_ended: Notify,
    batch_size: Histogram,
    batch_seconds: Histogram,
}

impl Settler {
    /// Tells of what was committed.
    fn committed(&self, writes: &Writes<'_>) {
        self.bus.wake(EVENTS.topic);
        self.changes.note(writes.updated.iter().filter_map(|one| Some((one.operation.id, one.operation.head?.version))));
    }

    fn is_settling(&self) -> bool {
        self.settling.load(Ordering::Relaxed) > 0
    }
}

impl Pipeline {
    /// A pipeline in which nothing moves until its work is run: [`run_batches`](Self::run_batches), [`run_lookups`](Self::run_lookups) and
    /// [`run_worker`](Self::run_worker).
    pub fn new(database: Database, bus: Bus) -> Self {
        // Bounded by the places.
        let (queue, jobs) = mpsc::unbounded_channel();
        let settler = Arc::new(Settler {
            changes: Changes::new(&bus),
            database,
            bus,
            unsettled: Notify::new(),
            known: KnownKeys::new(),
            stripes: Stripes::default(),
            stuck_holds: StuckHolds::default(),
            settling: AtomicUsize::new(0),
            batch_ended: Notify::new(),
            batch_size: histogram!("lastro_settle_batch_operations"),
            batch_seconds: histogram!("lastro_settle_batch_seconds"),
        });
        let (lookups, asked) = mpsc::channel(QUEUE_MAX);
        let (jobs, asked) = (Arc::new(Mutex::new(jobs)), Arc::new(Mutex::new(asked)));
        Self { queue, places: Arc::new(Semaphore::new(QUEUE_MAX)), lookups, settler, jobs, asked }
    }

    /// Stores an operation, and settles it if its accounts are free. Answers once it is durable. Who stops waiting before the operation has got
    /// into a batch takes it along: it is not stored.
    pub async fn submit(&self, new: NewOperation) -> Result<Accepted, Refused> {
        if self.settler.known.may_exist(new.operation.owner_id, &new.operation.external_id)
            && let Some(known) = self.look_up(&new).await?
        {
            return Ok(known);
        }
        self.queue(1, |reply| Work::create(new, reply)).await
    }

    /// Stores operations, all of them settled, or none: then one of them is the culprit. No two of them have the same key.
    pub async fn submit_together(&self, new: Vec<NewOperation>) -> Result<Vec<Accepted>, Refused> {
        let may_exist = |one: &NewOperation| self.settler.known.may_exist(one.operation.owner_id, &one.operation.external_id);
        if new.iter().any(may_exist)
            && let Some(answer) = self.look_up_all(&new).await?
        {
            return answer;
        }
        let refused = match self.queue(new.len(), |reply| Work::Together { new: new.clone(), reply }).await {
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
        let existing = operations::by_keys(self.settler.database.writer(), &keys).await.map_err(|_| Refused::Unavailable)?;
        Ok((!existing.is_empty()).then(|| job::answer_of_all(new, existing)))
    }

    /// Captures or voids a hold. Answers once that is durable.
    pub async fn resolve(&self, new: NewResolution) -> Result<Accepted, Refused> {
        self.queue(1, |reply| Work::Resolve { new, reply }).await
    }

    async fn queue<T>(&self, places: usize, work: impl FnOnce(oneshot::Sender<Result<T, Refused>>) -> Work) -> Result<T, Refused> {
        let places = u32::try_from(places).map_err(|_| Refused::Crowded)?;
        let place = self.places.clone().try_acquire_many_owned(places).map_err(|_| Refused::Crowded)?;
        let (reply, answer) = oneshot::channel();
        let job = Job { work: work(reply), locked_by: Instant::now() + LOCK_WAIT, _place: Some(place) };
        self.queue.send(Box::new(job)).map_err(|_| Refused::Unavailable)?;
        answer.await.unwrap_or(Err(Refused::Unavailable))
    }

    /// The stored operation of a key that may exist.
    async fn look_up(&self, new: &NewOperation) -> Result<Option<Accepted>, Refused> {
        let asked = &new.operation;
        let (reply, found) = oneshot::channel();
        let lookup = Lookup { owner_id: asked.owner_id, external_id: asked.external_id.clone(), reply };
        self.lookups.try_send(lookup).map_err(|_| Refused::Crowded)?;
        let found = found.await.unwrap_or_default();
        found.map(|stored| job::answer_of(stored, asked.id, &asked.request_hash)).transpose()
    }

    /// What has changed of operations that were stored before.
    pub fn changes(&self) -> &Arc<Changes> {
        &self.settler.changes
    }

    /// Stores and settles what is submitted, in batches, until told to stop.
    pub async fn run_batches(&self, stop: CancellationToken) {
        batch::run(self.settler.clone(), &mut *self.jobs.lock().await, stop).await;
    }

    /// Looks up keys that may exist, until told to stop.
    pub async fn run_lookups(&self, stop: CancellationToken) {
        let mut asked = self.asked.lock().await;
        tokio::select! {
            () = stop.cancelled() => {}
            () = known_keys::run_lookups(&self.settler, &mut asked) => {}
        }
    }

    /// Settles what was stored unsettled, here or by another replica, until told to stop.
    pub async fn run_worker(&self, stop: CancellationToken) {
        worker::run(&self.settler, stop).await;
    }

    /// Applies what a provider has reported of an operation, and was not applied yet.
    pub async fn apply_reports(&self, operation_id: Uuid) -> Result<(), Error> {
        self.settler.apply_reports(operation_id).await
    }

    /// Ends what a payment provider was asked for, as it has answered. False where that is not to be ended yet.
    pub async fn conclude_call(&self, call: &Call, answer: &Answer) -> Result<bool, Error> {
        self.settler.conclude_call(call, answer).await
    }

    /// Applies what providers have reported, and whoever took it could not apply, until told to stop.
    pub async fn run_reports(&self, stop: CancellationToken) {
        conclude::run(&self.settler, stop).await;
    }

    /// Releases holds that have run out by now, as far as they can be at once.
    pub async fn release_expired(&self) {
        expiry::release_now(&self.settler).await;
    }

    /// Releases holds that have run out, until told to stop.
    pub async fn run_expiry(&self, stop: CancellationToken) {
        expiry::run(&self.settler, stop).await;
    }
}
