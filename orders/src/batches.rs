//! How orders are changed: what is asked for at the same time is decided and written together, by group commit. Every change of an order has its row locked,
//! and with that its saga.

mod attempt;
mod work;

use std::sync::Arc;
use std::time::Duration;

use lastro_database::group_commit::{Committer, Failure, GroupCommit, How, Job, Key, Limits, Locks, Refusal};
use lastro_database::{Database, Error};
use lastro_events::bus::Bus;
use lastro_events::changes::Changes;
use metrics::{Histogram, histogram};
use smallvec::smallvec;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::work::{Accepted, Asked, CallReport, NewChange, NewOrder, Refused};
use self::work::{Outcome, Work};
use crate::NAME;
use crate::store::orders::{self, Order};

/// One batch at once: while it is flushed the next one gathers, and larger batches cost less (docs/PERFORMANCE.md has the figures).
const LIMITS: Limits = Limits { batch_max: 256, batch_size_max: 1024, queue_max: 8_192, at_once: 1 };

/// The way to change orders. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Batches(GroupCommit<Keeper>);

/// What commits.
pub struct Keeper {
    database: Database,
    bus: Bus,
    changes: Arc<Changes>,
    /// Whoever has taken a saga up has it for so long.
    lease: Duration,
    batch_size: Histogram,
    batch_seconds: Histogram,
}

impl Batches {
    /// In which nothing moves until [`run`](Self::run) and [`run_lookups`](Self::run_lookups) are.
    pub fn new(database: Database, bus: Bus, lease: Duration) -> Self {
        let (batch_size, batch_seconds) = (histogram!("lastro_order_batch_requests"), histogram!("lastro_order_batch_seconds"));
        let changes = Changes::new(&bus, NAME);
        Self(GroupCommit::new(Arc::new(Keeper { database, bus, changes, lease, batch_size, batch_seconds }), LIMITS))
    }

    /// How whoever waits for an order learns that it has changed.
    pub fn changes(&self) -> &Arc<Changes> {
        &self.0.committer().changes
    }

    /// The order that its owner has placed with a key before, if this may be one.
    pub async fn placed_before(&self, key: Key<'_>) -> Result<Option<Order>, Refused> {
        if self.0.may_exist(key) { Ok(self.0.look_up(key).await?) } else { Ok(None) }
    }

    /// Stores an order; its saga belongs to whoever stored it.
    pub async fn place(&self, new: NewOrder) -> Result<Accepted, Refused> {
        self.0.submit(1, |reply| Work::place(new, reply)).await
    }

    /// Changes an order; as it stands then.
    pub async fn change(&self, new: NewChange) -> Result<Accepted, Refused> {
        self.0.submit(1, |reply| Work::Change { new, reply }).await
    }

    /// Commits what is asked for, until told to stop.
    pub async fn run(&self, stop: CancellationToken) {
        let is_postgres = self.0.committer().database.is_postgres();
        self.0.run_batches(is_postgres, stop).await;
    }

    /// Looks up keys that may exist, until told to stop.
    pub async fn run_lookups(&self, stop: CancellationToken) {
        self.0.run_lookups(stop).await;
    }
}

/// Nothing is found out by attempts that the next one must heed.
#[derive(Default)]
pub struct Heed;

/// Nothing is to be done first.
pub enum Detour {}

impl Committer for Keeper {
    type Work = Work;
    type Outcome = Outcome;
    type Heed = Heed;
    type Detour = Detour;
    type Stored = Order;

    fn locks(&self, work: &Work) -> Locks {
        smallvec![work.order_id()]
    }

    fn size(&self, _: &Work) -> usize {
        1
    }

    async fn attempt(&self, jobs: &[Job<Work>], how: &How<Heed>) -> Result<Vec<Option<Outcome>>, Failure<Detour>> {
        self.attempt_all(jobs, how.lock).await
    }

    async fn detour(&self, detour: Detour, _: &mut How<Heed>, _: Instant) {
        match detour {}
    }

    fn answer(&self, work: Work, outcome: Outcome) {
        work.answer(outcome);
    }

    async fn stored(&self, keys: &[Key<'_>], is_latest: bool) -> Result<Vec<Order>, Error> {
        let on = if is_latest { self.database.writer() } else { self.database.reader() };
        orders::by_keys(on, keys).await
    }

    fn key_of(stored: &Order) -> Key<'_> {
        (stored.placed.owner_id, &stored.placed.external_id)
    }

    fn answer_stored(&self, work: Work, stored: Vec<Order>) {
        work.answer_stored(stored);
    }

    fn note_keys(outcome: &Outcome, mut note: impl FnMut(Key<'_>)) {
        if let Outcome::Placed(order) = outcome {
            note(Self::key_of(order));
        }
    }

    fn note_batch(&self, jobs: usize, took: Duration) {
        self.batch_size.record(jobs as f64);
        self.batch_seconds.record(took);
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Crowded => Self::Crowded,
            Refusal::Unavailable => Self::Unavailable,
            Refusal::Broken => Self::Broken,
        }
    }
}
