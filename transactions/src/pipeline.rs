//! The operation pipeline: group commit. One settling batch is in flight while the next gathers, without any timer: whoever came while
//! the last one was flushed goes together. What gets its locks is stored and settled in the same commit; the rest is stored as PENDING
//! and settled by the worker.

mod batch;
mod decision;
mod known_keys;
mod stripes;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lastro_database::Database;
use lastro_events::bus::Bus;
use metrics::{Histogram, histogram};
use tokio::sync::{Mutex, Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::known_keys::{KnownKeys, Lookup};
use self::stripes::Stripes;
use crate::domain::operation::Operation;

/// Operations to a batch; what exceeds it waits for the next one.
const BATCH_MAX: usize = 512;
/// Operations that wait for their batch, wherever they wait; what exceeds it is refused at once.
const QUEUE_MAX: usize = 8192;

/// An operation about to be stored.
#[derive(Debug, Clone)]
pub struct NewOperation {
    /// PENDING, and without an event.
    pub operation: Operation,
    /// The payload of its event SUBMITTED.
    pub submitted: Vec<u8>,
    /// The request that led to it.
    pub correlation_id: String,
}

/// An operation that is durably stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    /// As it stands.
    pub operation: Operation,
    /// An earlier call created it.
    pub replayed: bool,
}

/// Why an operation was not stored, or why nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The key was used for another request.
    KeyReused,
    /// Too many wait already. It was not stored.
    Crowded,
    /// The database is busy or away. It may have been stored: the same key tells.
    Unavailable,
    /// The database refuses the operation itself.
    Broken,
}

struct Job {
    new: NewOperation,
    /// Closed when the caller has given up.
    reply: oneshot::Sender<Result<Accepted, Refused>>,
    /// One of the places of those who wait, until the job goes into a batch.
    place: OwnedSemaphorePermit,
}

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
    /// Told after every commit of the worker, for those who wait for an outcome.
    settled: Notify,
    /// Told when something was stored unsettled.
    unsettled: Notify,
    known: KnownKeys,
    stripes: Stripes,
    /// Batches that are being settled.
    settling: AtomicUsize,
    /// Told when one of them has ended.
    batch_ended: Notify,
    batch_size: Histogram,
    batch_seconds: Histogram,
}

impl Settler {
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
            database,
            bus,
            settled: Notify::new(),
            unsettled: Notify::new(),
            known: KnownKeys::new(),
            stripes: Stripes::default(),
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
        let place = self.places.clone().try_acquire_owned().map_err(|_| Refused::Crowded)?;
        let (reply, answer) = oneshot::channel();
        self.queue.send(Box::new(Job { new, reply, place })).map_err(|_| Refused::Unavailable)?;
        answer.await.unwrap_or(Err(Refused::Unavailable))
    }

    /// The stored operation of a key that may exist.
    async fn look_up(&self, new: &NewOperation) -> Result<Option<Accepted>, Refused> {
        let asked = &new.operation;
        let (reply, found) = oneshot::channel();
        let lookup = Lookup { owner_id: asked.owner_id, external_id: asked.external_id.clone(), reply };
        self.lookups.try_send(lookup).map_err(|_| Refused::Crowded)?;
        let found = found.await.unwrap_or_default();
        found.map(|stored| batch::answer_of(&stored, asked.id, &asked.request_hash)).transpose()
    }

    /// Resolves when the worker has settled something after this call.
    pub async fn settled(&self) {
        self.settler.settled.notified().await;
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
}
