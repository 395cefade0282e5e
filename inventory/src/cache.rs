//! Two levels of cache before the stock of products: 1,000 entries for 30 s in this process, and Redis behind them, which all replicas share. Every write
//! empties both: here before its caller is answered, at other replicas as soon as they hear of it. A replica that hears nothing keeps nothing.
//!
//! Reads of one product that come at the same time share one query, so that a stampede on one product leaves the others fast.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lastro_database::{Database, Error};
use lastro_events::bus::Bus;
use lastro_events::bus::redis_streams::{RedisBus, SharedCache};
use metrics::{Counter, counter};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::domain::stock::Stock;
use crate::store::{products, stock};

/// As the source documents name them.
const ENTRIES: u64 = 1_000;
const LIVES: Duration = Duration::from_secs(30);
/// When a product was last forgotten is remembered for longer than any query takes.
const FORGOTTEN: u64 = 100_000;
const FORGOTTEN_FOR: Duration = Duration::from_secs(60);
/// Reads of a product that is forgotten again and again in the meantime.
const ATTEMPTS: u32 = 3;
const CHANNEL: &str = "stock";
/// Products to an announcement.
const AT_ONCE: usize = 1_000;
/// A write is not answered before other replicas are told of it, unless that takes longer.
const TOLD_WITHIN: Duration = Duration::from_millis(50);
/// Between attempts to reach Redis.
const PAUSE: Duration = Duration::from_millis(250);
/// A connection that has gone silent looks like one on which nothing is announced: after so long another one is opened.
const LISTEN_MAX: Duration = Duration::from_secs(10);

/// The stock of a product, by the name of the store.
pub type ProductStock = Vec<(String, Stock)>;

#[derive(Clone)]
struct Entry {
    /// None where there is no such product.
    stock: Option<Arc<ProductStock>>,
    /// When its query began, by the count of everything that was forgotten.
    since: u64,
}

/// The cache of this process.
pub struct StockCache {
    database: Database,
    entries: moka::future::Cache<Uuid, Entry>,
    /// The count at which each product was last forgotten.
    forgotten: moka::sync::Cache<Uuid, u64>,
    count: AtomicU64,
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

impl StockCache {
    /// Before this database; with the other replicas on the same bus.
    pub fn new(database: Database, bus: &Bus) -> Arc<Self> {
        let others = |redis: &RedisBus| Others {
            redis: redis.clone(),
            shared: redis.shared_cache(CHANNEL, LIVES),
            hears: AtomicBool::new(false),
            untold: Mutex::default(),
            noted: Notify::new(),
            told: Notify::new(),
        };
        Arc::new(Self {
            database,
            entries: moka::future::Cache::builder().max_capacity(ENTRIES).time_to_live(LIVES).build(),
            forgotten: moka::sync::Cache::builder()
                .max_capacity(FORGOTTEN)
                .time_to_live(FORGOTTEN_FOR)
                // What was forgotten last is what counts.
                .eviction_policy(moka::policy::EvictionPolicy::lru())
                .build(),
            count: AtomicU64::new(1),
            heard_from: AtomicU64::new(0),
            others: match bus {
                Bus::Embedded(_) => None,
                Bus::Redis(redis) => Some(others(redis)),
            },
            hits: counter!("lastro_stock_cache_total", "outcome" => "hit"),
            misses: counter!("lastro_stock_cache_total", "outcome" => "miss"),
        })
    }

    /// The stock of a product; None where there is no such product.
    pub async fn get(&self, product_id: Uuid) -> Result<Option<Arc<ProductStock>>, Error> {
        if self.others.as_ref().is_some_and(|others| !others.hears.load(Ordering::Relaxed)) {
            // Those that come at the same time share one query, of which nothing is kept.
            let loaded = self.entries.try_get_with(product_id, self.load_alone(product_id)).await.map_err(|error: Arc<Error>| error.copy())?;
            self.entries.invalidate(&product_id).await;
            if self.is_fresh(product_id, &loaded) {
                return Ok(loaded.stock);
            }
            return self.query(product_id).await;
        }
        for _ in 0..ATTEMPTS {
            if let Some(entry) = self.entries.get(&product_id).await
                && self.is_fresh(product_id, &entry)
            {
                self.hits.increment(1);
                return Ok(entry.stock);
            }
            self.misses.increment(1);
            // One that was read before it was forgotten makes room for another one; those that come meanwhile wait for that.
            self.entries.invalidate(&product_id).await;
            let loaded = self.entries.try_get_with(product_id, self.load(product_id)).await.map_err(|error: Arc<Error>| error.copy())?;
            if self.is_fresh(product_id, &loaded) {
                return Ok(loaded.stock);
            }
        }
        self.query(product_id).await
    }

    fn is_fresh(&self, product_id: Uuid, entry: &Entry) -> bool {
        let is_heard_of = entry.since >= self.heard_from.load(Ordering::SeqCst);
        is_heard_of && self.forgotten.get(&product_id).is_none_or(|forgotten| forgotten <= entry.since)
    }

    async fn load(&self, product_id: Uuid) -> Result<Entry, Error> {
        let since = self.count.load(Ordering::SeqCst);
        let shared = self.others.as_ref().filter(|others| !others.untold().contains_key(&product_id));
        // Where Redis does not answer, the database does.
        let looked = match shared {
            Some(others) => others.shared.look(product_id).await.ok(),
            None => None,
        };
        if let Some(found) = looked.as_ref().and_then(|looked| looked.value.as_deref()).and_then(of_bytes) {
            return Ok(Entry { stock: found.map(Arc::new), since });
        }
        let stock = self.query(product_id).await?;
        if let (Some(others), Some(looked)) = (shared, looked) {
            let _ = others.shared.fill(product_id, &looked, &to_bytes(stock.as_deref())).await;
        }
        Ok(Entry { stock, since })
    }

    async fn load_alone(&self, product_id: Uuid) -> Result<Entry, Error> {
        let since = self.count.load(Ordering::SeqCst);
        Ok(Entry { stock: self.query(product_id).await?, since })
    }

    async fn query(&self, product_id: Uuid) -> Result<Option<Arc<ProductStock>>, Error> {
        let rows = stock::of_product(self.database.reader(), product_id).await?;
        if rows.is_empty() && products::get(self.database.reader(), product_id).await?.is_none() {
            return Ok(None);
        }
        let rows = rows.into_iter().filter(|row| row.stock.version > 0);
        Ok(Some(Arc::new(rows.map(|row| (row.store_id, row.stock)).collect())))
    }

    /// Their stock has changed, or is changing. Whoever has begun to read it keeps nothing of it.
    pub fn forget(&self, products: &[Uuid]) {
        let count = self.forget_here(products);
        if let Some(others) = &self.others {
            others.untold().extend(products.iter().map(|product_id| (*product_id, count)));
            others.noted.notify_one();
        }
    }

    /// Waits until other replicas have been told that products were forgotten, for a moment at most: a caller that writes at one replica and reads at another
    /// one finds what it has written.
    pub async fn told(&self, products: &[Uuid]) {
        let Some(others) = &self.others else { return };
        let told = async {
            loop {
                let told = others.told.notified();
                if !products.iter().any(|product_id| others.untold().contains_key(product_id)) {
                    return;
                }
                told.await;
            }
        };
        let _ = timeout(TOLD_WITHIN, told).await;
    }

    fn forget_here(&self, products: &[Uuid]) -> u64 {
        let count = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        for product_id in products {
            self.forgotten.insert(*product_id, count);
        }
        count
    }

    /// Tells other replicas what was forgotten here, until told to stop.
    pub async fn keep_announcing(&self, stop: CancellationToken) {
        let Some(others) = &self.others else { return stop.cancelled().await };
        let mut announcer = others.redis.announcer(CHANNEL);
        while !stop.is_cancelled() {
            let untold: Vec<(Uuid, u64)> = others.untold().iter().take(AT_ONCE).map(|(product_id, count)| (*product_id, *count)).collect();
            let some: Vec<Uuid> = untold.iter().map(|(product_id, _)| *product_id).collect();
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
                tracing::debug!(%error, "other replicas cannot be told now which stock has changed");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(PAUSE) => {}
                }
                continue;
            }
            // What was forgotten again meanwhile is told of again.
            let mut left = others.untold();
            for (product_id, count) in untold {
                if left.get(&product_id) == Some(&count) {
                    left.remove(&product_id);
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
        let mut announcements = match others.redis.announcements(CHANNEL).await {
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

fn to_bytes(stock: Option<&ProductStock>) -> Vec<u8> {
    let row = |(store_id, stock): &(String, Stock)| json!([store_id, stock.on_hand, stock.reserved, stock.version]);
    json!(stock.map(|stock| stock.iter().map(row).collect::<Vec<_>>())).to_string().into_bytes()
}

/// None where it does not read. There may be no such product.
#[allow(clippy::option_option, reason = "that it does not read and that there is none are two things")]
fn of_bytes(bytes: &[u8]) -> Option<Option<ProductStock>> {
    let row = |row: &Value| {
        let stock = Stock { on_hand: row[1].as_i64()?, reserved: row[2].as_i64()?, version: row[3].as_i64()? };
        Some((row[0].as_str()?.to_owned(), stock))
    };
    match serde_json::from_slice(bytes).ok()? {
        Value::Null => Some(None),
        Value::Array(rows) => rows.iter().map(row).collect::<Option<_>>().map(Some),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_reads_back() {
        let stock = vec![("a".to_owned(), Stock { on_hand: 3, reserved: 1, version: 7 }), ("b".to_owned(), Stock::default())];
        assert_eq!(of_bytes(&to_bytes(Some(&stock))), Some(Some(stock)));
        assert_eq!(of_bytes(&to_bytes(None)), Some(None));
        assert_eq!(of_bytes(b"x"), None);
        assert_eq!(of_bytes(b"[[1]]"), None);
    }
}
