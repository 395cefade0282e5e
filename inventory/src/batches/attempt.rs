//! One attempt of a batch, in one transaction: locks what it needs, decides in the order in which the callers came, writes everything, and commits.

use std::collections::{BTreeMap, HashMap, HashSet};

use lastro_database::group_commit::{Failure, Job, Lock, Work as _, read_back};
use lastro_database::{Error, Kind, Transaction};
use lastro_events::event::Event;
use lastro_mesh::clock;
use sea_orm::{ConnectionTrait as _, DbBackend};
use tokio::time::Instant;
use uuid::Uuid;

use super::work::{AskedItem, NewAdjustment, NewReservation, NewResolution, Outcome, Refused, Short, Work};
use super::{EXPIRE_AT_ONCE, ExpiredFirst, Keeper};
use crate::domain::reservation::{Move, State, Stocks, Verb, allocate, moved};
use crate::domain::stock::{self, Happening, Stock};
use crate::store::adjustments::{self, Adjustment};
use crate::store::reservations::{self, Item, Reservation};
use crate::store::sagas::{self, SagaEpoch};
use crate::store::stock::{Cause, SNAPSHOT_EVERY, STOCK_EVENTS, StockRow, record};
use crate::store::{products, stock as stocks};

/// Reservations that have run out and are looked at where somebody lacks pieces.
const EXPIRED_LOOKED_AT: u32 = 1_000;
/// Stores that one product may be in.
const STORES_MAX: i64 = 100;

impl Keeper {
    /// In the order of the jobs: what has become of each; None where it has to wait for its locks.
    pub(super) async fn attempt_all(
        &self,
        jobs: &[Job<Work>],
        lock: Lock,
        expired_first: bool,
    ) -> Result<Vec<Option<Outcome>>, Failure<ExpiredFirst>> {
        let tx = self.database.begin().await?;
        let mut decided = lock_all(&tx, jobs, lock).await?;
        // The clock is read when the locks are held: a reservation that has run out by then is dead.
        decided.now_us = clock::now_us();
        let mut outcomes: Vec<Option<Outcome>> = Vec::new();
        outcomes.resize_with(jobs.len(), || None);
        // In the order in which they came.
        let mut order: Vec<usize> = (0..jobs.len()).collect();
        order.sort_unstable_by_key(|index| jobs[*index].work.id());
        for index in order {
            outcomes[index] = decided.decide(&jobs[index].work)?;
        }
        if decided.needs_what_has_run_out(&tx).await? {
            if expired_first {
                tx.rollback().await.map_err(Error::from)?;
                return Err(Failure::Detour(ExpiredFirst { expired_by_us: decided.now_us }));
            }
            // More have run out than could be ended: nobody knows whether there is enough.
            for outcome in &mut outcomes {
                if matches!(outcome, Some(Outcome::Refused(Refused::OutOfStock(_)))) {
                    *outcome = Some(Outcome::Refused(Refused::Crowded));
                }
            }
        }
        let Some(mark) = decided.write(&tx, &outcomes).await? else {
            // Epochs that were raised stay so, whatever became of what was asked for.
            tx.commit().await.map_err(Error::from)?;
            return Ok(outcomes);
        };
        let committed = match tx.commit().await.map_err(Error::from) {
            Err(error) if error.kind == Kind::Unavailable => read_back(|| self.is_written(mark), error).await,
            committed => committed,
        };
        // Also where nobody knows whether it is written.
        self.cache.forget(&decided.changed_products());
        committed?;
        self.bus.wake(STOCK_EVENTS.topic);
        Ok(outcomes)
    }

    /// Ends reservations that have run out, page by page; those that somebody else has locked are left to that one.
    pub(super) async fn end_expired(&self, by_us: i64, give_up: Instant) -> Result<(), Error> {
        while Instant::now() < give_up {
            let found = reservations::expired(self.database.writer(), by_us, EXPIRE_AT_ONCE).await?;
            let ended = match self.end(&found).await {
                // One that cannot be ended does not keep the others.
                Err(error) if !error.is_transient() => self.end_one_by_one(&found).await?,
                ended => ended?,
            };
            if found.len() < EXPIRE_AT_ONCE as usize || ended == 0 {
                break;
            }
        }
        Ok(())
    }

    async fn end_one_by_one(&self, found: &[Reservation]) -> Result<usize, Error> {
        let mut ended = 0;
        for one in found {
            match self.end(std::slice::from_ref(one)).await {
                Ok(count) => ended += count,
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => tracing::error!(%error, reservation = %one.id, "a reservation that has run out cannot be ended"),
            }
        }
        Ok(ended)
    }

    /// In one transaction; how many.
    async fn end(&self, found: &[Reservation]) -> Result<usize, Error> {
        let work = |one: &Reservation| {
            let (reply, _) = tokio::sync::oneshot::channel();
            Job::of(Work::Resolve { new: NewResolution::of(one, Verb::Expire, "expiry".to_owned()), reply })
        };
        let jobs: Vec<Job<Work>> = found.iter().map(work).collect();
        match Box::pin(self.attempt_all(&jobs, Lock::Skip, false)).await {
            Ok(outcomes) => Ok(outcomes.iter().flatten().count()),
            Err(Failure::Detour(_)) => Ok(0),
            Err(Failure::KeyExists(error) | Failure::Database(error)) => Err(error),
        }
    }

    /// A batch is stored whole or not at all.
    async fn is_written(&self, mark: Mark) -> Result<bool, Error> {
        let on = self.database.writer();
        match mark {
            Mark::Event { stock_id, version, event_id } => stocks::has_event(on, stock_id, version, event_id).await,
            Mark::Reservation { id, call_id } => reservations::is_made_by(on, id, call_id).await,
        }
    }
}

/// Something that a batch has generated, by which its COMMIT is known.
#[derive(Clone, Copy)]
enum Mark {
    Event { stock_id: Uuid, version: i64, event_id: Uuid },
    Reservation { id: Uuid, call_id: Uuid },
}

/// Everything that is decided together.
struct Decided {
    stock: HashMap<Uuid, StockRow>,
    /// The versions that stock had when it was locked.
    versions: HashMap<Uuid, i64>,
    reservations: HashMap<Uuid, Reservation>,
    /// The states that reservations had when they were locked.
    states: HashMap<Uuid, State>,
    epochs: HashMap<Uuid, i64>,
    /// Products that are in so many stores that they get no more.
    full: Vec<Uuid>,
    events: Vec<Event>,
    snapshots: Vec<(Uuid, Stock, i64)>,
    now_us: i64,
    /// Products that somebody was refused for lack of.
    short: Vec<Uuid>,
    /// Products of which stores were chosen by what each has left, while something of them was kept for others.
    chosen: HashSet<Uuid>,
    /// Nothing was left out because somebody else has locked it: what is missing is not there.
    is_complete: bool,
}

/// Locks sagas, reservations and stock, each in the order of their ids; stock that is not there yet is made.
async fn lock_all(tx: &Transaction, jobs: &[Job<Work>], lock: Lock) -> Result<Decided, Error> {
    let mut asked: BTreeMap<Uuid, i64> = BTreeMap::new();
    for SagaEpoch { id, epoch } in jobs.iter().filter_map(|job| job.work.fence()) {
        asked.entry(id).and_modify(|known| *known = epoch.max(*known)).or_insert(epoch);
    }
    let asked: Vec<SagaEpoch> = asked.into_iter().map(|(id, epoch)| SagaEpoch { id, epoch }).collect();
    let epochs = sagas::raise(tx, &asked, lock).await?.into_iter().map(|one| (one.id, one.epoch)).collect();
    let resolved = |job: &Job<Work>| match &job.work {
        Work::Resolve { new, .. } => Some(new.reservation_id),
        Work::Adjust { .. } | Work::Reserve { .. } => None,
    };
    let reservations = reservations::lock(tx, &sorted(jobs.iter().filter_map(resolved)), lock).await?;
    let ids = sorted(jobs.iter().flat_map(|job| job.work.stocks()));
    let mut rows = stocks::lock(tx, &ids, lock).await?;
    let full = make_missing(tx, jobs, &mut rows, lock).await?;
    Ok(Decided {
        versions: rows.iter().map(|row| (row.id, row.stock.version)).collect(),
        stock: rows.into_iter().map(|row| (row.id, row)).collect(),
        states: reservations.iter().map(|one| (one.id, one.state)).collect(),
        reservations: reservations.into_iter().map(|one| (one.id, one)).collect(),
        epochs,
        full,
        events: Vec::new(),
        snapshots: Vec::new(),
        now_us: 0,
        short: Vec::new(),
        chosen: HashSet::new(),
        is_complete: lock == Lock::Wait || tx.get_database_backend() == DbBackend::Sqlite,
    })
}

fn sorted(ids: impl Iterator<Item = Uuid>) -> Vec<Uuid> {
    let mut ids: Vec<Uuid> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Whether an adjustment brings its product into its store, where it is not yet: only what adds to nothing does.
fn is_to_be_made(new: &NewAdjustment) -> bool {
    new.quantity > 0 && new.expected_version.is_none_or(|version| version == 0)
}

/// Brings products into stores where adjustments add to them; the products that are in too many already.
async fn make_missing(tx: &Transaction, jobs: &[Job<Work>], rows: &mut Vec<StockRow>, lock: Lock) -> Result<Vec<Uuid>, Error> {
    let missing = |job: &Job<Work>| match &job.work {
        Work::Adjust { new, .. } if is_to_be_made(new) && rows.iter().all(|row| row.id != new.stock_id) => Some(new.clone()),
        Work::Adjust { .. } | Work::Reserve { .. } | Work::Resolve { .. } => None,
    };
    let mut new: Vec<NewAdjustment> = jobs.iter().filter_map(missing).collect();
    new.sort_by_key(|one| (one.product_id, one.stock_id));
    new.dedup_by_key(|one| one.stock_id);
    if new.is_empty() {
        return Ok(Vec::new());
    }
    // What only was locked by somebody else is there, and counts for no new store.
    let there = stocks::stores_of(tx, &sorted(new.iter().map(|one| one.product_id))).await?;
    new.retain(|one| !there.iter().any(|(product_id, store_id)| *product_id == one.product_id && *store_id == one.store_id));
    let mut full = Vec::new();
    let mut made: Vec<&NewAdjustment> = Vec::new();
    for one in &new {
        // One at a time brings a product into new stores; where somebody else has it, what is to be added waits.
        if products::lock(tx, one.product_id, lock).await?.is_none() {
            continue;
        }
        let with_those = made.iter().filter(|made| made.product_id == one.product_id).count() as i64;
        if stocks::count_stores(tx, one.product_id).await? + with_those >= STORES_MAX {
            full.push(one.stock_id);
        } else {
            made.push(one);
        }
    }
    let mut made: Vec<(Uuid, Uuid, &str)> = made.iter().map(|one| (one.stock_id, one.product_id, one.store_id.as_str())).collect();
    made.sort_unstable();
    stocks::make(tx, &made).await?;
    rows.extend(stocks::lock(tx, &made.iter().map(|(id, ..)| *id).collect::<Vec<_>>(), lock).await?);
    Ok(full)
}

impl Decided {
    fn decide(&mut self, work: &Work) -> Result<Option<Outcome>, Error> {
        if let Some(fence) = work.fence() {
            match self.epochs.get(&fence.id) {
                Some(highest) if *highest > fence.epoch => return Ok(Some(Outcome::Refused(Refused::StaleEpoch))),
                Some(_) => {}
                // Somebody else has the saga.
                None => return Ok(None),
            }
        }
        match work {
            Work::Adjust { new, .. } => self.adjust(new),
            Work::Reserve { new, .. } => self.reserve(new),
            Work::Resolve { new, .. } => self.resolve(new),
        }
    }

    /// Whether reservations that have run out keep pieces that somebody lacks, or that another store would have been chosen for.
    async fn needs_what_has_run_out(&self, tx: &Transaction) -> Result<bool, Error> {
        if self.short.is_empty() && self.chosen.is_empty() {
            return Ok(false);
        }
        let is_needed = |item: &Item| self.short.contains(&item.product_id) || self.chosen.contains(&item.product_id);
        let expired = reservations::expired(tx, self.now_us, EXPIRED_LOOKED_AT).await?;
        // Where there are more than are looked at, nobody knows.
        Ok(expired.len() >= EXPIRED_LOOKED_AT as usize || expired.iter().flat_map(|one| &one.items).any(is_needed))
    }

    fn adjust(&mut self, new: &NewAdjustment) -> Result<Option<Outcome>, Error> {
        let refused = |refused| Ok(Some(Outcome::Refused(refused)));
        if self.full.contains(&new.stock_id) {
            return refused(Refused::TooManyStores);
        }
        let stock = match self.stock.get(&new.stock_id) {
            Some(row) => row.stock,
            // It is not there, and nothing is taken from what is not there; or somebody has locked it.
            None if self.is_complete && !is_to_be_made(new) => Stock::default(),
            None => return Ok(None),
        };
        if new.expected_version.is_some_and(|expected| expected != stock.version) {
            return refused(Refused::VersionConflict { version: stock.version });
        }
        let happening = if new.quantity > 0 { Happening::Added(new.quantity) } else { Happening::Removed(-new.quantity) };
        let after = match stock.after(happening) {
            Ok(after) => after,
            Err(stock::Refused::OutOfStock { available }) => {
                self.short.push(new.product_id);
                return refused(Refused::OutOfStock(vec![Short { index: 0, product_id: new.product_id, available }]));
            }
            Err(stock::Refused::Overflow) => return refused(Refused::Overflow),
            Err(stock::Refused::Broken) => return Err(Error::corrupt("an adjustment that cannot be")),
        };
        let cause = Cause { correlation_id: &new.correlation_id, reservation_id: "", expired: false };
        self.happen(new.stock_id, after, happening, &cause)?;
        let (product_id, store_id) = (new.product_id, new.store_id.clone());
        let request_hash = new.request_hash;
        let adjustment =
            Adjustment { id: new.id, call_id: new.call_id, request_hash, product_id, store_id, stock: after, create_time_us: self.now_us };
        Ok(Some(Outcome::Adjusted(adjustment)))
    }

    fn reserve(&mut self, new: &NewReservation) -> Result<Option<Outcome>, Error> {
        let is_tombstone = new.request_hash.is_none();
        let mut items = Vec::new();
        if !is_tombstone {
            match self.share(&new.items) {
                None => return Ok(None),
                Some(Ok(shared)) => items = shared,
                Some(Err(short)) => {
                    self.short.extend(short.iter().map(|one| one.product_id));
                    return Ok(Some(Outcome::Refused(Refused::OutOfStock(short))));
                }
            }
        }
        let reservation = Reservation {
            id: new.id,
            namespace: new.namespace,
            name: new.name.clone(),
            call_id: new.call_id,
            request_hash: new.request_hash,
            state: if is_tombstone { State::Released } else { State::Reserved },
            items,
            expire_time_us: self.now_us.saturating_add(new.ttl_us),
            create_time_us: self.now_us,
            update_time_us: self.now_us,
        };
        let cause = Cause { correlation_id: &new.correlation_id, reservation_id: &reservation.full_name(), expired: false };
        for item in &reservation.items {
            self.happen_to(item, Happening::Reserved(item.quantity), &cause)?;
        }
        Ok(Some(Outcome::Reserved(reservation)))
    }

    /// Which stores all items come from; the items of which there is too little. None where somebody else has locked a store.
    fn share(&mut self, asked: &[AskedItem]) -> Option<Result<Vec<Item>, Vec<Short>>> {
        let (mut items, mut short) = (Vec::new(), Vec::new());
        for (index, item) in asked.iter().enumerate() {
            let rows: Vec<&StockRow> = item.stocks.iter().map(|id| self.stock.get(id)).collect::<Option<_>>()?;
            if rows.len() > 1 && rows.iter().any(|row| row.stock.reserved > 0) {
                self.chosen.insert(item.product_id);
            }
            let available: Vec<(&str, i64)> = rows.iter().map(|row| (row.store_id.as_str(), row.stock.available())).collect();
            match allocate(&available, item.quantity) {
                Some(shares) => items.extend(shares.into_iter().map(|(place, quantity)| Item {
                    product_id: item.product_id,
                    store_id: rows[place].store_id.clone(),
                    stock_id: rows[place].id,
                    quantity,
                })),
                None => short.push(Short { index, product_id: item.product_id, available: available.iter().map(|(_, pieces)| *pieces).sum() }),
            }
        }
        Some(if short.is_empty() { Ok(items) } else { Err(short) })
    }

    fn resolve(&mut self, new: &NewResolution) -> Result<Option<Outcome>, Error> {
        let Some(reservation) = self.reservations.get(&new.reservation_id) else { return Ok(None) };
        let is_over = self.now_us >= reservation.expire_time_us;
        let (state, stocks) = match moved(reservation.state, new.verb, is_over) {
            Move::To(state, stocks) => (state, stocks),
            Move::Nothing => return Ok(Some(Outcome::Resolved(reservation.clone()))),
            Move::Refused => return Ok(Some(Outcome::Refused(Refused::Ended(reservation.state)))),
        };
        let mut reservation = reservation.clone();
        if reservation.items.iter().any(|item| !self.stock.contains_key(&item.stock_id)) {
            return Ok(None);
        }
        let cause = Cause { correlation_id: &new.correlation_id, reservation_id: &reservation.full_name(), expired: state == State::Expired };
        let happening = |item: &Item| match stocks {
            Stocks::Released => Happening::Released(item.quantity),
            Stocks::Committed => Happening::Committed(item.quantity),
            Stocks::Returned => Happening::Returned(item.quantity),
        };
        // All or none: each is judged before anything happens. A reservation has each stock once.
        let overflows =
            |item: &Item| self.stock.get(&item.stock_id).is_some_and(|row| row.stock.after(happening(item)) == Err(stock::Refused::Overflow));
        if reservation.items.iter().any(overflows) {
            return Ok(Some(Outcome::Refused(Refused::Overflow)));
        }
        for item in &reservation.items {
            self.happen_to(item, happening(item), &cause)?;
        }
        (reservation.state, reservation.update_time_us) = (state, self.now_us);
        self.reservations.insert(reservation.id, reservation.clone());
        // Confirming what has run out ends it, and is refused.
        let is_refused = new.verb == Verb::Confirm && state == State::Expired;
        Ok(Some(if is_refused { Outcome::Refused(Refused::Ended(state)) } else { Outcome::Resolved(reservation) }))
    }

    fn happen_to(&mut self, item: &Item, happening: Happening, cause: &Cause<'_>) -> Result<(), Error> {
        let stock = self.stock.get(&item.stock_id).map(|row| row.stock).ok_or_else(|| Error::corrupt("stock that is not locked"))?;
        let after = stock.after(happening).map_err(|refused| Error::corrupt(format!("stock that cannot be so: {refused:?}")))?;
        self.happen(item.stock_id, after, happening, cause)
    }

    fn happen(&mut self, id: Uuid, after: Stock, happening: Happening, cause: &Cause<'_>) -> Result<(), Error> {
        let row = self.stock.get_mut(&id).ok_or_else(|| Error::corrupt("stock that is not locked"))?;
        let event = record(row, after, happening, cause, self.now_us);
        if after.version % SNAPSHOT_EVERY == 0 {
            self.snapshots.push((id, after, event.recorded_us));
        }
        self.events.push(event);
        Ok(())
    }

    /// Writes everything. Something that tells whether it was committed; None where there was nothing to write.
    async fn write(&self, tx: &Transaction, outcomes: &[Option<Outcome>]) -> Result<Option<Mark>, Error> {
        let outcomes = || outcomes.iter().flatten();
        let adjusted = outcomes().filter_map(|outcome| if let Outcome::Adjusted(adjustment) = outcome { Some(adjustment) } else { None });
        let mut adjusted: Vec<&Adjustment> = adjusted.collect();
        let reserved = outcomes().filter_map(|outcome| if let Outcome::Reserved(reservation) = outcome { Some(reservation) } else { None });
        let mut reserved: Vec<&Reservation> = reserved.collect();
        // In one order, so that two replicas that insert the same never wait for each other in a circle.
        adjusted.sort_unstable_by_key(|one| one.id);
        reserved.sort_unstable_by_key(|one| one.id);
        adjustments::insert(tx, &adjusted).await?;
        reservations::insert(tx, &reserved).await?;
        let moved = self.reservations.values().filter_map(|one| Some((one, *self.states.get(&one.id)?))).filter(|(one, from)| one.state != *from);
        reservations::update_states(tx, &moved.collect::<Vec<_>>()).await?;
        let changed =
            self.stock.values().filter_map(|row| Some((row, *self.versions.get(&row.id)?))).filter(|(row, from)| row.stock.version != *from);
        let mut changed: Vec<(&StockRow, i64)> = changed.collect();
        changed.sort_unstable_by_key(|(row, _)| row.id);
        stocks::update(tx, &changed).await?;
        STOCK_EVENTS.insert(tx, &self.events).await?;
        stocks::insert_snapshots(tx, &self.snapshots).await?;
        let of_event = self.events.first().map(|event| Mark::Event { stock_id: event.aggregate_id, version: event.version, event_id: event.id });
        Ok(of_event.or_else(|| reserved.first().map(|one| Mark::Reservation { id: one.id, call_id: one.call_id })))
    }

    fn changed_products(&self) -> Vec<Uuid> {
        sorted(self.events.iter().filter_map(|event| self.stock.get(&event.aggregate_id)).map(|row| row.product_id))
    }
}
