//! The operation pipeline: group commit. One settling batch is in flight while the next gathers, without any timer: whoever came while
//! the last one was flushed goes together. What gets its locks is stored and settled in the same commit; the rest is stored as PENDING
//! and settled by the worker.

mod batch;
mod decision;
mod worker;

use std::sync::Arc;

use lastro_database::Database;
use lastro_events::bus::Bus;
use metrics::{Histogram, histogram};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::store::operations::Operation;

/// Operations to a batch; what exceeds it waits for the next one.
const BATCH_MAX: usize = 512;
/// Operations that wait for their batch; what exceeds it is refused at once.
const QUEUE_MAX: usize = 8192;

/// An operation about to be stored.
#[derive(Debug, Clone)]
pub struct NewOperation {
    /// PENDING, at version 0.
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
    /// The database is busy or away. It may have been stored: the same key tells.
    Unavailable,
    /// The database refuses the operation itself.
    Broken,
}

struct Job {
    new: NewOperation,
    reply: oneshot::Sender<Result<Accepted, Refused>>,
}

/// The way into the pipeline. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Pipeline {
    queue: mpsc::Sender<Job>,
    settler: Arc<Settler>,
}

/// What settles.
pub(crate) struct Settler {
    database: Database,
    bus: Bus,
    /// Told after every commit of the worker, for those who wait for an outcome.
    settled: Notify,
    /// Told when something was stored unsettled.
    unsettled: Notify,
    batch_size: Histogram,
    batch_seconds: Histogram,
}

impl Pipeline {
    /// Starts settling.
    pub fn start(database: Database, bus: Bus) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let settler = Arc::new(Settler {
            database,
            bus,
            settled: Notify::new(),
            unsettled: Notify::new(),
            batch_size: histogram!("lastro_settle_batch_operations"),
            batch_seconds: histogram!("lastro_settle_batch_seconds"),
        });
        tokio::spawn(batch::run(settler.clone(), jobs));
        Self { queue, settler }
    }

    /// Stores an operation, and settles it if its accounts are free. Answers once it is durable.
    pub async fn submit(&self, new: NewOperation) -> Result<Accepted, Refused> {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(Job { new, reply }).map_err(|_| Refused::Unavailable)?;
        answer.await.unwrap_or(Err(Refused::Unavailable))
    }

    /// Resolves when the worker has settled something after this call.
    pub async fn settled(&self) {
        self.settler.settled.notified().await;
    }

    /// Settles what was stored unsettled, here or by another replica, until told to stop.
    pub async fn run_worker(&self, stop: CancellationToken) {
        worker::run(&self.settler, stop).await;
    }
}
