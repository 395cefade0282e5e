//! Group commit: writes that are requested at the same time share one transaction, as reads share one statement in [`batch_loader`](crate::batch_loader).
//!
//! One batch is committed while the next one gathers, without any timer: whatever arrives while the last batch is flushed goes together. A second batch
//! goes beside it only if it locks nothing that the first one has locked. A service says what is to be done ([`Work`]) and how a batch is attempted
//! ([`Committer`]): it locks what the batch needs in the order of the ids, decides in pure code, and writes once. What fails is tried again; what fails
//! again and again is bisected, until the one that is at fault is alone. A request whose idempotency key exists is answered with what is stored.
//!
//! Knows no table, and no business.

mod known_keys;
mod queue;
mod settle;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::{Mutex, Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::known_keys::{KnownKeys, Lookup};
use crate::{Error, Kind};

/// How long work that cannot be stored without its locks waits for them.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// How long the outcome of an unknown COMMIT is asked for.
const READ_BACK_FOR: Duration = Duration::from_secs(3);
const READ_BACK_EVERY: Duration = Duration::from_millis(200);

/// An idempotency key: whose it is, and the key.
pub type Key<'a> = (Uuid, &'a str);

/// What a piece of work locks.
pub type Locks = SmallVec<[Uuid; 4]>;

/// Something that is to be done, and those who wait for it.
pub trait Work: Send + Sync + Sized + 'static {
    /// UUIDv7 of the request: work is decided in the order of these.
    fn id(&self) -> Uuid;

    /// The idempotency key, where the work has one alone. Two pieces of work with the same key become one.
    fn key(&self) -> Option<Key<'_>>;

    /// All idempotency keys that it would use.
    fn keys(&self) -> Vec<Key<'_>>;

    /// Takes over those who wait for a request with the same key; gives back what it cannot take over.
    fn absorb(&mut self, other: Self) -> Option<Self>;

    /// Whether it must have a batch of its own, because its refusal undoes the whole batch.
    fn goes_alone(&self) -> bool;

    /// Whether nobody waits for it any more. What was never tried is dropped then.
    fn is_abandoned(&self) -> bool;

    /// Tells everybody who waits that nothing was done, or that nobody knows.
    fn refuse(self, refusal: Refusal);
}

/// Why nothing was done, whatever it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Too many wait already. It was not stored.
    Crowded,
    /// The database is busy or away. It may have been stored: the same key tells.
    Unavailable,
    /// The database refuses this piece of work itself.
    Broken,
}

/// How locks are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Leave out what somebody else has locked.
    Skip,
    /// Wait for it, up to the lock timeout.
    Wait,
}

/// How a batch is attempted: first without waiting for locks, and heeding what earlier attempts have found out.
pub struct How<H> {
    /// How locks are taken.
    pub lock: Lock,
    /// What earlier attempts have found out.
    pub heed: H,
}

/// Why an attempt came to nothing.
pub enum Failure<D> {
    /// An idempotency key exists, it seems: what it belongs to must be looked up.
    KeyExists(Error),
    /// Something else must be done first, or the next attempt must go another way.
    Detour(D),
    /// The database failed.
    Database(Error),
}

impl<D> From<Error> for Failure<D> {
    fn from(error: Error) -> Self {
        // Ids are our own, and unique: that a key exists means that somebody else has stored it, or an earlier attempt of ours was committed after all.
        if error.kind == Kind::Unique { Self::KeyExists(error) } else { Self::Database(error) }
    }
}

/// How a service commits its batches.
pub trait Committer: Send + Sync + Sized + 'static {
    /// What is to be done.
    type Work: Work;
    /// What has become of a piece of work. Nothing of it is told before the commit.
    type Outcome: Send;
    /// What an attempt has found out, for the next one.
    type Heed: Default + Send + Sync;
    /// What an attempt may stop for.
    type Detour: Send;
    /// What is stored under an idempotency key.
    type Stored: Clone + Send + 'static;

    /// What a piece of work locks. It shares a batch with others that lock the same, and no batch beside theirs.
    fn locks(&self, work: &Self::Work) -> Locks;

    /// How much of a batch it takes: 1, or as many as it has parts.
    fn size(&self, work: &Self::Work) -> usize;

    /// One transaction for all of them. In the order of the jobs: what has become of each; None where somebody else has locked what it needs, and without
    /// that it is not stored.
    fn attempt(
        &self,
        jobs: &[Job<Self::Work>],
        how: &How<Self::Heed>,
    ) -> impl Future<Output = Result<Vec<Option<Self::Outcome>>, Failure<Self::Detour>>> + Send;

    /// Does what must be done first, and notes in `how` what the next attempt must heed. After `give_up` the batch is not tried any more.
    fn detour(&self, detour: Self::Detour, how: &mut How<Self::Heed>, give_up: Instant) -> impl Future<Output = ()> + Send;

    /// Tells everybody who waits for a piece of work what has become of it.
    fn answer(&self, work: Self::Work, outcome: Self::Outcome);

    /// What is stored under these keys; `is_latest` where it must be read where it is written.
    fn stored(&self, keys: &[Key<'_>], is_latest: bool) -> impl Future<Output = Result<Vec<Self::Stored>, Error>> + Send;

    /// The key of what is stored.
    fn key_of(stored: &Self::Stored) -> Key<'_>;

    /// Tells everybody who waits what is stored under the keys of a piece of work: at least one.
    fn answer_stored(&self, work: Self::Work, stored: Vec<Self::Stored>);

    /// The keys that an outcome has stored.
    fn note_keys(outcome: &Self::Outcome, note: impl FnMut(Key<'_>));

    /// A batch has been committed, or refused.
    fn note_batch(&self, _jobs: usize, _took: Duration) {}

    /// The database refuses this one piece of work. Where it can be stored for later, it is.
    fn park(&self, job: Job<Self::Work>, error: &Error) -> impl Future<Output = ()> + Send {
        tracing::error!(%error, id = %job.work.id(), "the database refuses a piece of work");
        job.work.refuse(Refusal::Broken);
        std::future::ready(())
    }
}

/// A piece of work that waits for its batch.
pub struct Job<W> {
    /// What is to be done.
    pub work: W,
    /// Until then it waits for its locks, if it cannot be stored without them.
    locked_by: Instant,
    /// Of the places of those who wait, until the job goes into a batch.
    _place: Option<OwnedSemaphorePermit>,
}

impl<W> Job<W> {
    /// A piece of work of the committer's own, which does not go through the queue.
    pub fn of(work: W) -> Self {
        Self { work, locked_by: Instant::now(), _place: None }
    }
}

/// How large batches and the queue may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Jobs to a batch; what exceeds it waits for the next one.
    pub batch_max: usize,
    /// The sizes of the jobs of a batch, together, so that work of many parts does not make it too long for others. The last job may exceed it.
    pub batch_size_max: usize,
    /// Places of work that waits for its batch; what exceeds it is refused at once.
    pub queue_max: usize,
    /// Batches at once on PostgreSQL. SQLite has one writer: a second batch would only wait for it.
    pub at_once: usize,
}

/// The way in. Cheap to clone; all clones are one.
pub struct GroupCommit<C: Committer> {
    queue: mpsc::UnboundedSender<Box<Job<C::Work>>>,
    places: Arc<Semaphore>,
    lookups: mpsc::Sender<Lookup<C::Stored>>,
    inner: Arc<Inner<C>>,
    /// What waits, held by whoever settles it or looks it up. Work that panicked leaves it to the work that is started in its place.
    jobs: Arc<Mutex<mpsc::UnboundedReceiver<Box<Job<C::Work>>>>>,
    asked: Arc<Mutex<mpsc::Receiver<Lookup<C::Stored>>>>,
}

impl<C: Committer> Clone for GroupCommit<C> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            places: self.places.clone(),
            lookups: self.lookups.clone(),
            inner: self.inner.clone(),
            jobs: self.jobs.clone(),
            asked: self.asked.clone(),
        }
    }
}

/// What commits.
struct Inner<C> {
    committer: Arc<C>,
    limits: Limits,
    known: KnownKeys,
    /// Batches that are being committed.
    in_flight: AtomicUsize,
    /// Told when one of them has ended.
    batch_ended: Notify,
}

impl<C: Committer> GroupCommit<C> {
    /// One in which nothing moves until its work is run: [`run_batches`](Self::run_batches) and [`run_lookups`](Self::run_lookups).
    pub fn new(committer: Arc<C>, limits: Limits) -> Self {
        // Bounded by the places.
        let (queue, jobs) = mpsc::unbounded_channel();
        let (lookups, asked) = mpsc::channel(limits.queue_max);
        let inner = Inner { committer, limits, known: KnownKeys::new(), in_flight: AtomicUsize::new(0), batch_ended: Notify::new() };
        Self {
            queue,
            places: Arc::new(Semaphore::new(limits.queue_max)),
            lookups,
            inner: Arc::new(inner),
            jobs: Arc::new(Mutex::new(jobs)),
            asked: Arc::new(Mutex::new(asked)),
        }
    }

    /// How a service commits its batches.
    pub fn committer(&self) -> &Arc<C> {
        &self.inner.committer
    }

    /// Has a piece of work done, which takes so many places in the queue. Answers once it is durable. A caller that stops waiting before the work has got
    /// into a batch takes it along: it is not done.
    pub async fn submit<T, R: From<Refusal>>(&self, places: usize, work: impl FnOnce(oneshot::Sender<Result<T, R>>) -> C::Work) -> Result<T, R> {
        let places = u32::try_from(places).map_err(|_| Refusal::Crowded)?;
        let place = self.places.clone().try_acquire_many_owned(places).map_err(|_| Refusal::Crowded)?;
        let (reply, answer) = oneshot::channel();
        let job = Job { work: work(reply), locked_by: Instant::now() + LOCK_WAIT, _place: Some(place) };
        self.queue.send(Box::new(job)).map_err(|_| Refusal::Unavailable)?;
        answer.await.unwrap_or(Err(Refusal::Unavailable.into()))
    }

    /// Whether something may be stored under a key. Only a hint, which costs no query: what is not known here is found out by the batch.
    pub fn may_exist(&self, (owner_id, key): Key<'_>) -> bool {
        self.inner.known.may_exist(owner_id, key)
    }

    /// What is stored under a key that may exist. Lookups of many callers share one statement.
    pub async fn look_up(&self, (owner_id, key): Key<'_>) -> Result<Option<C::Stored>, Refusal> {
        let (reply, found) = oneshot::channel();
        let lookup = Lookup { owner_id, key: key.to_owned(), reply };
        self.lookups.try_send(lookup).map_err(|_| Refusal::Crowded)?;
        Ok(found.await.unwrap_or_default())
    }

    /// Commits what is submitted, in batches, until told to stop.
    pub async fn run_batches(&self, is_postgres: bool, stop: CancellationToken) {
        let at_once = if is_postgres { self.inner.limits.at_once } else { 1 };
        queue::run(self.inner.clone(), &mut *self.jobs.lock().await, at_once, stop).await;
    }

    /// Looks up keys that may exist, until told to stop.
    pub async fn run_lookups(&self, stop: CancellationToken) {
        let mut asked = self.asked.lock().await;
        tokio::select! {
            () = stop.cancelled() => {}
            () = known_keys::run_lookups(&self.inner, &mut asked) => {}
        }
    }
}

impl<C> Inner<C> {
    fn is_committing(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) > 0
    }
}

/// After a COMMIT whose answer was lost, or never sent: asks whether it was stored, until there is an answer. A batch is stored whole or not at all, so
/// that one row that it generated tells.
pub async fn read_back<F: Future<Output = Result<bool, Error>>>(is_stored: impl Fn() -> F, commit_error: Error) -> Result<(), Error> {
    let give_up = Instant::now() + READ_BACK_FOR;
    loop {
        match is_stored().await {
            Ok(true) => return Ok(()),
            Ok(false) => return Err(commit_error),
            Err(error) if Instant::now() > give_up => return Err(error),
            Err(_) => tokio::time::sleep(READ_BACK_EVERY).await,
        }
    }
}
