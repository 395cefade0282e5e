//! How stock is changed: requests that come at the same time are decided and written together, by group commit. What a batch changes is locked in one order,
//! as everybody does: sagas, reservations, stock, each by their ids.

mod attempt;
mod work;

use std::sync::Arc;
use std::time::Duration;

use lastro_database::group_commit::{Committer, Failure, GroupCommit, How, Job, Key, Limits, Locks, Refusal};
use lastro_database::{Database, Error};
use lastro_events::bus::Bus;
use lastro_mesh::clock;
use metrics::{Histogram, histogram};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use self::work::{AskedItem, Made, NewAdjustment, NewReservation, NewResolution, Refused, Short, adjustment_id};
use self::work::{Outcome, Stored, Work};
use crate::cache::StockCache;
use crate::domain::reservation::Verb;
use crate::store::adjustments::{self, Adjustment};
use crate::store::reservations;

/// Two batches at once on PostgreSQL: with more they are smaller, and cost more (docs/PERFORMANCE.md has the figures).
const LIMITS: Limits = Limits { batch_max: 256, batch_size_max: 1024, queue_max: 8_192, at_once: 2 };
/// Reservations that have run out are looked for so often, and so many are ended at once.
const EXPIRE_EVERY: Duration = Duration::from_millis(250);
const EXPIRE_AT_ONCE: u32 = 200;
/// So often reservations that have run out are ended before whoever lacks their pieces is refused.
const EXPIRED_FIRST_MAX: u32 = 3;

/// The way to change stock. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Batches(GroupCommit<Keeper>);

/// What commits.
pub struct Keeper {
    database: Database,
    bus: Bus,
    cache: Arc<StockCache>,
    batch_size: Histogram,
    batch_seconds: Histogram,
}

impl Batches {
    /// In which nothing moves until [`run`](Self::run) and [`run_lookups`](Self::run_lookups) are.
    pub fn new(database: Database, bus: Bus, cache: Arc<StockCache>) -> Self {
        let (batch_size, batch_seconds) = (histogram!("lastro_stock_batch_requests"), histogram!("lastro_stock_batch_seconds"));
        Self(GroupCommit::new(Arc::new(Keeper { database, bus, cache, batch_size, batch_seconds }), LIMITS))
    }

    /// Adds pieces to a store, or takes some away.
    pub async fn adjust(&self, new: NewAdjustment) -> Result<Adjustment, Refused> {
        if self.0.may_exist(new.key())
            && let Some(Stored::Adjustment(stored)) = self.0.look_up(new.key()).await?
        {
            return work::answer_adjustment(stored, &new.request_hash);
        }
        let (id, request_hash) = (new.id, new.request_hash);
        let answer = self.0.submit(1, |reply| Work::adjust(new, reply)).await;
        match answer {
            Err(refused) if refused.is_of_stock() => match self.made_already((id, work::ADJUSTMENT), refused).await? {
                Stored::Adjustment(stored) => work::answer_adjustment(stored, &request_hash),
                Stored::Reservation(_) => Err(Refused::Broken),
            },
            answer => answer,
        }
    }

    /// Keeps pieces for somebody.
    pub async fn reserve(&self, new: NewReservation) -> Result<Made, Refused> {
        if new.fence.is_none()
            && self.0.may_exist(new.key())
            && let Some(Stored::Reservation(stored)) = self.0.look_up(new.key()).await?
        {
            return work::answer_reservation(stored, new.call_id, new.request_hash.as_ref());
        }
        let (id, call_id, request_hash) = (new.id, new.call_id, new.request_hash);
        let locks = new.items.iter().map(|item| item.stocks.len()).sum();
        let answer = self.0.submit(places(locks), |reply| Work::reserve(new, reply)).await;
        match answer {
            Err(refused) if refused.is_of_stock() => match self.made_already((id, work::RESERVATION), refused).await? {
                Stored::Reservation(stored) => work::answer_reservation(stored, call_id, request_hash.as_ref()),
                Stored::Adjustment(_) => Err(Refused::Broken),
            },
            answer => answer,
        }
    }

    /// Whether a reservation may be stored under this id. Only a hint, which costs no query.
    pub fn may_be_reserved(&self, id: Uuid) -> bool {
        self.0.may_exist((id, work::RESERVATION))
    }

    /// What was refused was judged as a new request. Where it is made already, at another replica or by a COMMIT whose answer was lost, that is what counts;
    /// else it stays refused.
    async fn made_already(&self, key: Key<'_>, refused: Refused) -> Result<Stored, Refused> {
        let stored = self.0.committer().stored(&[key], true).await.map_err(|_| Refused::Unavailable)?;
        stored.into_iter().next().ok_or(refused)
    }

    /// Confirms, releases or returns what is kept, or ends it because its time is over.
    pub async fn resolve(&self, new: NewResolution) -> Result<Made, Refused> {
        self.0.submit(places(new.stocks.len()), |reply| Work::Resolve { new, reply }).await
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

    /// Ends reservations whose time is over, until told to stop.
    pub async fn run_expiry(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EXPIRE_EVERY) => {}
            }
            loop {
                match self.expire().await {
                    // As long as there are more than are ended at once.
                    Ok(ended) if ended >= EXPIRE_AT_ONCE as usize && !stop.is_cancelled() => {}
                    Ok(_) => break,
                    Err(error) => {
                        tracing::warn!(%error, "reservations that have run out cannot be ended now");
                        break;
                    }
                }
            }
        }
    }

    /// They go through the queue as everything does, so that batches beside each other lock nothing twice.
    async fn expire(&self) -> Result<usize, Error> {
        let found = reservations::expired(self.0.committer().database.reader(), clock::now_us(), EXPIRE_AT_ONCE).await?;
        let ended = found.iter().map(|one| self.resolve(NewResolution::of(one, Verb::Expire, "expiry".to_owned())));
        let mut count = 0;
        for (one, ended) in found.iter().zip(futures_util::future::join_all(ended).await) {
            match ended {
                Ok(_) => count += 1,
                Err(refused) => {
                    tracing::warn!(reservation = %one.id, ?refused, "a reservation that has run out cannot be ended now; it is tried again");
                }
            }
        }
        Ok(count)
    }
}

/// What locks much takes more places of those who wait.
const fn places(locks: usize) -> usize {
    1 + locks / 64
}

/// What attempts of a batch have found out: how often what had run out was ended first.
#[derive(Default)]
pub struct Heed {
    expired_first: u32,
}

/// Somebody lacks what is kept by reservations that have run out: they are to be ended first.
pub struct ExpiredFirst {
    expired_by_us: i64,
}

impl Committer for Keeper {
    type Work = Work;
    type Outcome = Outcome;
    type Heed = Heed;
    type Detour = ExpiredFirst;
    type Stored = Stored;

    fn locks(&self, work: &Work) -> Locks {
        work.locks()
    }

    fn size(&self, work: &Work) -> usize {
        work.locks().len()
    }

    async fn attempt(&self, jobs: &[Job<Work>], how: &How<Heed>) -> Result<Vec<Option<Outcome>>, Failure<ExpiredFirst>> {
        self.attempt_all(jobs, how.lock, how.heed.expired_first < EXPIRED_FIRST_MAX).await
    }

    async fn detour(&self, detour: ExpiredFirst, how: &mut How<Heed>, give_up: Instant) {
        how.heed.expired_first = if Instant::now() >= give_up { EXPIRED_FIRST_MAX } else { how.heed.expired_first + 1 };
        if let Err(error) = self.end_expired(detour.expired_by_us, give_up).await {
            tracing::warn!(%error, "reservations that have run out cannot be ended now");
        }
    }

    fn answer(&self, work: Work, outcome: Outcome) {
        work.answer(outcome);
    }

    async fn stored(&self, keys: &[Key<'_>], is_latest: bool) -> Result<Vec<Stored>, Error> {
        let on = if is_latest { self.database.writer() } else { self.database.reader() };
        let (mut of_adjustments, mut of_reservations): (Vec<Uuid>, Vec<Uuid>) = (Vec::new(), Vec::new());
        for (id, kind) in keys {
            if *kind == work::ADJUSTMENT { of_adjustments.push(*id) } else { of_reservations.push(*id) }
        }
        let mut found: Vec<Stored> = adjustments::by_ids(on, &of_adjustments).await?.into_iter().map(Stored::Adjustment).collect();
        found.extend(reservations::by_ids(on, &of_reservations).await?.into_iter().map(Stored::Reservation));
        Ok(found)
    }

    fn key_of(stored: &Stored) -> Key<'_> {
        stored.key()
    }

    fn answer_stored(&self, work: Work, stored: Vec<Stored>) {
        work.answer_stored(stored);
    }

    fn note_keys(outcome: &Outcome, note: impl FnMut(Key<'_>)) {
        outcome.key().into_iter().for_each(note);
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
