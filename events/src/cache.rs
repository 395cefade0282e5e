//! Two levels of cache before a database: 1,000 entries for 30 s in this process, and Redis behind them, which all replicas share. Whoever changes what an
//! entry was made of has it forgotten in both: here at once, at other replicas as soon as they hear of it. A replica that hears nothing keeps nothing.
//!
//! Reads of one thing that come at the same time share one query, so that a stampede on one thing leaves the others fast.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lastro_database::Error;
use metrics::{Counter, counter};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::bus::Bus;
use crate::bus::redis_streams::{RedisBus, SharedCache};

/// As the source documents name them.
const ENTRIES: u64 = 1_000;
const LIVES: Duration = Duration::from_secs(30);
/// When a thing was last forgotten is remembered for longer than any query takes.
const FORGOTTEN: u64 = 100_000;
const FORGOTTEN_FOR: Duration = Duration::from_secs(60);
/// Reads of a thing that is forgotten again and again in the meantime.
const ATTEMPTS: u32 = 3;
/// Things to an announcement.
const AT_ONCE: usize = 1_000;
/// A write is not answered before other replicas are told of it, unless that takes longer.
const TOLD_WITHIN: Duration = Duration::from_millis(50);
/// Between attempts to reach Redis.
const PAUSE: Duration = Duration::from_millis(250);
/// A connection that has gone silent looks like one on which nothing is announced: after so long another one is opened.
const LISTEN_MAX: Duration = Duration::from_secs(10);

/// What is cached: how it is read, and how it is written for others.
pub trait Cached: Send + Sync + 'static {
    /// What is known of one thing.
    type Value: Send + Sync + 'static;
    /// The name by which replicas hear of each other, and under which Redis keeps it.
    const CHANNEL: &'static str;
    /// The name of the counter of hits and misses.
    const METRIC: &'static str;
    /// How long Redis keeps it.
    const SHARED_FOR: Duration;

    /// Reads it; None where there is no such thing.
    fn query(&self, id: Uuid) -> impl Future<Output = Result<Option<Self::Value>, Error>> + Send;

    /// Whether what Redis had is what the database has: whoever changed it may have been killed before it could say so.
    fn is_current(&self, id: Uuid, value: Option<&Self::Value>) -> impl Future<Output = Result<bool, Error>> + Send;

    /// As Redis keeps it.
    fn to_bytes(value: Option<&Self::Value>) -> Vec<u8>;

    /// As Redis has kept it. None where it does not read; there may be no such thing.
    #[allow(clippy::option_option, reason = "that it does not read and that there is none are two things")]
    fn of_bytes(bytes: &[u8]) -> Option<Option<Self::Value>>;
}

struct Entry<V> {
    /// None where there is no such thing.
    value: Option<Arc<V>>,
    /// When its query began, by the count of everything that was forgotten.
    since: u64,
}

impl<V> Clone for Entry<V> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), since: self.since }
    }
}

/// The cache of this process.
pub struct Cache<C: Cached> {
    cached: C,
    entries: moka::future::Cache<Uuid, Entry<C::Value>>,
    /// The count at which each thing was last forgotten.
    forgotten: moka::sync::Cache<Uuid, u64>,
    count: AtomicU64,
    /// When things were forgotten before this count is not remembered any more: whatever began to be read before it may be one of them.
    remembered_from: Arc<AtomicU64>,
    /// Whatever began to be read before this count may have missed what other replicas have told.
    heard_from: AtomicU64,
    others: Option<Others>,
    hits: Counter,
    misses: Counter,
}

/// The other replicas, and what they share.
struct Others {
    redis: RedisBus,
    shared: SharedCache,
    /// Whether what they announce is heard.
    hears: AtomicBool,
    /// What they have not been told yet, with the count at which it was forgotten. It is not looked up in what is shared.
    untold: Mutex<HashMap<Uuid, u64>>,
    noted: Notify,
    /// Told when they have been told of something.
    told: Notify,
}

impl Others {
    fn untold(&self) -> MutexGuard<'_, HashMap<Uuid, u64>> {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Cached> Cache<C> {
    /// Of this; with the other replicas on the same bus.
    pub fn new(cached: C, bus: &Bus) -> Arc<Self> {
        let others = |redis: &RedisBus| Others {
            redis: redis.clone(),
            shared: redis.shared_cache(C::CHANNEL, C::SHARED_FOR),
            hears: AtomicBool::new(false),
            untold: Mutex::default(),
            noted: Notify::new(),
            told: Notify::new(),
        };
        let remembered_from = Arc::new(AtomicU64::new(0));
        let no_more = {
            let remembered_from = remembered_from.clone();
            move |_: Arc<Uuid>, count: u64, why: moka::notification::RemovalCause| {
                if why == moka::notification::RemovalCause::Size {
                    remembered_from.fetch_max(count, Ordering::SeqCst);
                }
            }
        };
        Arc::new(Self {
            cached,
            entries: moka::future::Cache::builder().max_capacity(ENTRIES).time_to_live(LIVES).build(),
            forgotten: moka::sync::Cache::builder()
                .max_capacity(FORGOTTEN)
                .time_to_live(FORGOTTEN_FOR)
                // What was forgotten last is what counts.
                .eviction_policy(moka::policy::EvictionPolicy::lru())
                .eviction_listener(no_more)
                .build(),
            remembered_from,
            count: AtomicU64::new(1),
            heard_from: AtomicU64::new(0),
            others: match bus {
                Bus::Embedded(_) => None,
                Bus::Redis(redis) => Some(others(redis)),
            },
            hits: counter!(C::METRIC, "outcome" => "hit"),
            misses: counter!(C::METRIC, "outcome" => "miss"),
        })
    }

    /// What this process knows of a thing without asking anybody.
    pub async fn peek(&self, id: Uuid) -> Option<Arc<C::Value>> {
        let hears = self.others.as_ref().is_none_or(|others| others.hears.load(Ordering::Relaxed));
        let entry = self.entries.get(&id).await.filter(|entry| hears && self.is_fresh(id, entry))?;
        self.hits.increment(1);
        entry.value
    }

    /// What is known of a thing; None where there is no such thing.
    pub async fn get(&self, id: Uuid) -> Result<Option<Arc<C::Value>>, Error> {
        if self.others.as_ref().is_some_and(|others| !others.hears.load(Ordering::Relaxed)) {
            // Those that come at the same time share one query, of which nothing is kept.
            let loaded = self.entries.try_get_with(id, self.load_alone(id)).await.map_err(|error: Arc<Error>| error.copy())?;
            self.entries.invalidate(&id).await;
            if self.is_fresh(id, &loaded) {
                return Ok(loaded.value);
            }
            return self.query(id).await;
        }
        for _ in 0..ATTEMPTS {
            if let Some(entry) = self.entries.get(&id).await
                && self.is_fresh(id, &entry)
            {
                self.hits.increment(1);
                return Ok(entry.value);
            }
            self.misses.increment(1);
            // One that was read before it was forgotten makes room for another one; those that come meanwhile wait for that.
            self.entries.invalidate(&id).await;
            let loaded = self.entries.try_get_with(id, self.load(id)).await.map_err(|error: Arc<Error>| error.copy())?;
            if self.is_fresh(id, &loaded) {
                return Ok(loaded.value);
            }
        }
        self.query(id).await
    }

    fn is_fresh(&self, id: Uuid, entry: &Entry<C::Value>) -> bool {
        // What is remembered is looked at first: it may be given up for room just then, which is told by a higher count.
        let is_forgotten = self.forgotten.get(&id).is_some_and(|forgotten| forgotten > entry.since);
        let since_all = self.heard_from.load(Ordering::SeqCst).max(self.remembered_from.load(Ordering::SeqCst));
        entry.since >= since_all && !is_forgotten
    }

    async fn load(&self, id: Uuid) -> Result<Entry<C::Value>, Error> {
        let since = self.count.load(Ordering::SeqCst);
        let shared = self.others.as_ref().filter(|others| !others.untold().contains_key(&id));
        // Where Redis does not answer, the database does.
        let looked = match shared {
            Some(others) => others.shared.look(id).await.ok(),
            None => None,
        };
        if let Some(found) = looked.as_ref().and_then(|looked| looked.value.as_deref()).and_then(C::of_bytes)
            && self.cached.is_current(id, found.as_ref()).await?
        {
            return Ok(Entry { value: found.map(Arc::new), since });
        }
        let value = self.query(id).await?;
        if let (Some(others), Some(looked)) = (shared, looked) {
            let _ = others.shared.fill(id, &looked, &C::to_bytes(value.as_deref())).await;
        }
        Ok(Entry { value, since })
    }

    async fn load_alone(&self, id: Uuid) -> Result<Entry<C::Value>, Error> {
        let since = self.count.load(Ordering::SeqCst);
        Ok(Entry { value: self.query(id).await?, since })
    }

    /// What the database has now, past every cache.
    pub async fn query(&self, id: Uuid) -> Result<Option<Arc<C::Value>>, Error> {
        Ok(self.cached.query(id).await?.map(Arc::new))
    }

    /// They have changed, or are changing. Whoever has begun to read it keeps nothing of it.
    pub fn forget(&self, ids: &[Uuid]) {
        let count = self.forget_here(ids);
        if let Some(others) = &self.others {
            others.untold().extend(ids.iter().map(|id| (*id, count)));
            others.noted.notify_one();
        }
    }

    /// Waits until other replicas have been told that things were forgotten, for a moment at most: a caller that writes at one replica and reads at another
    /// one finds what it has written.
    pub async fn told(&self, ids: &[Uuid]) {
        let Some(others) = &self.others else { return };
        let told = async {
            loop {
                let told = others.told.notified();
                if !ids.iter().any(|id| others.untold().contains_key(id)) {
                    return;
                }
                told.await;
            }
        };
        let _ = timeout(TOLD_WITHIN, told).await;
    }

    /// Everything may have changed.
    pub fn forget_all(&self) {
        let count = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        self.remembered_from.fetch_max(count, Ordering::SeqCst);
    }

    fn forget_here(&self, ids: &[Uuid]) -> u64 {
        let count = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        for id in ids {
            self.forgotten.insert(*id, count);
        }
        count
    }

    /// Tells other replicas what was forgotten here, until told to stop.
    pub async fn keep_announcing(&self, stop: CancellationToken) {
        let Some(others) = &self.others else { return stop.cancelled().await };
        let mut announcer = others.redis.announcer(C::CHANNEL);
        while !stop.is_cancelled() {
            let untold: Vec<(Uuid, u64)> = others.untold().iter().take(AT_ONCE).map(|(id, count)| (*id, *count)).collect();
            let some: Vec<Uuid> = untold.iter().map(|(id, _)| *id).collect();
            if some.is_empty() {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = others.noted.notified() => continue,
                }
            }
            let message: Vec<u8> = some.iter().flat_map(|id| id.as_bytes().iter().copied()).collect();
            // Before others are told, since they may look there at once; and told they are, also where that cannot be.
            let emptied = others.shared.forget(&some).await;
            let told = announcer.announce(&message).await.and(emptied);
            if let Err(error) = told {
                tracing::debug!(%error, "other replicas cannot be told now what has changed");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(PAUSE) => {}
                }
                continue;
            }
            // What was forgotten again meanwhile is told of again.
            let mut left = others.untold();
            for (id, count) in untold {
                if left.get(&id) == Some(&count) {
                    left.remove(&id);
                }
            }
            drop(left);
            others.told.notify_waiters();
        }
    }

    /// Hears what other replicas have forgotten, until told to stop.
    pub async fn keep_hearing(&self, stop: CancellationToken) {
        let Some(others) = &self.others else { return stop.cancelled().await };
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.hear(others) => {}
            }
        }
    }

    /// Whatever is kept may be of the past from now on.
    fn hear_no_more(&self, others: &Others) {
        if others.hears.swap(false, Ordering::SeqCst) {
            self.heard_from.store(self.count.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        }
    }

    async fn hear(&self, others: &Others) {
        let mut announcements = match others.redis.announcements(C::CHANNEL).await {
            Ok(announcements) => announcements,
            Err(error) => {
                tracing::debug!(%error, "what other replicas have changed cannot be heard now; nothing is cached");
                self.hear_no_more(others);
                return sleep(PAUSE).await;
            }
        };
        // What was announced before it listened is not known.
        self.heard_from.store(self.count.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        others.hears.store(true, Ordering::Relaxed);
        let open_again = Instant::now() + LISTEN_MAX;
        loop {
            match timeout_at(open_again, announcements.next()).await {
                Ok(Some(message)) => {
                    let (ids, _) = message.as_chunks::<16>();
                    self.forget_here(&ids.iter().map(|id| Uuid::from_bytes(*id)).collect::<Vec<_>>());
                }
                Ok(None) => {
                    self.hear_no_more(others);
                    return;
                }
                Err(_) => return,
            }
        }
    }
}
