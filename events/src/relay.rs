//! The relay: publishes an event store to Redis in batches, from a cursor in the service's own database. One replica at a time; what is published
//! twice is known to every inbox. And the lag: how old the oldest event is that is not published yet.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use lastro_database::{Database, Error, execute, one};
use metrics::{counter, gauge};
use redis::aio::MultiplexedConnection;
use sea_orm::FromQueryResult;
use tokio_util::sync::CancellationToken;

use crate::bus::BusError;
use crate::bus::redis_streams::{self, Published, RedisBus};
use crate::event::Event;
use crate::inbox::now_us;
use crate::store::{Cursor, EventStore};

const POLL_INTERVAL: Duration = Duration::from_millis(200);
const PAUSES: ExponentialBuilder =
    ExponentialBuilder::new().with_min_delay(Duration::from_millis(250)).with_max_delay(Duration::from_secs(2)).with_factor(2.0).without_max_times();
/// Events that are published at once.
const BATCH: u32 = 500;
/// Payloads of what is published at once; one more goes along.
const BATCH_BYTES: usize = 1024 * 1024;
/// How often the lag is measured.
const MEASURE_EVERY: Duration = Duration::from_millis(500);
/// Events that are published again when Redis has lost the streams. Readers get all that they miss from the event store; this is for those that come
/// soon.
const PUBLISHED_AGAIN: u32 = 2000;
/// Streams are cut to their bytes when so many were added.
const TRIM_AFTER_BYTES: u64 = 1024 * 1024;

/// Publishes one event store.
pub struct Relay {
    store: EventStore,
    /// The service's database.
    database: Database,
    bus: RedisBus,
    /// The highest lag since it was measured last, in microseconds: one that is over quickly shows as well.
    peak_us: AtomicI64,
}

/// What a relay knows between two rounds.
#[derive(Default)]
struct Known {
    connection: Option<MultiplexedConnection>,
    /// Bytes that were added since the streams were cut.
    untrimmed: u64,
    /// Whether somebody else adds entries, so that a new epoch must begin.
    is_spoilt: bool,
}

#[derive(FromQueryResult)]
struct Locked {
    locked: bool,
}

impl Relay {
    /// Publishes an event store to a bus.
    pub fn new(store: EventStore, database: &Database, bus: &RedisBus) -> Self {
        Self { store, database: database.clone(), bus: bus.clone(), peak_us: AtomicI64::new(0) }
    }

    /// Publishes until told to stop.
    pub async fn run(&self, stop: CancellationToken) {
        let (mut known, mut pauses) = (Known { untrimmed: TRIM_AFTER_BYTES, ..Known::default() }, PAUSES.build());
        let wake = self.bus.stored();
        loop {
            let stored = wake.notified();
            let pause = match self.round(&mut known).await {
                Ok(0) => POLL_INTERVAL,
                Ok(published) => {
                    counter!("lastro_events_published_total", "topic" => self.store.topic).increment(published as u64);
                    pauses = PAUSES.build();
                    Duration::ZERO
                }
                Err(error) => {
                    tracing::warn!(%error, topic = self.store.topic, "events cannot be published; they wait in the event store");
                    known.connection = None;
                    pauses.next().unwrap_or(POLL_INTERVAL)
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = stored, if pause == POLL_INTERVAL => {}
            }
        }
    }

    /// Measures the lag until told to stop: apart from publishing, which may be what hangs.
    pub async fn measure(&self, stop: CancellationToken) {
        let lag = gauge!("lastro_relay_lag_seconds", "topic" => self.store.topic);
        loop {
            match self.lag().await {
                Ok(age) => lag.set(age.as_secs_f64()),
                Err(error) => tracing::debug!(%error, topic = self.store.topic, "the lag cannot be measured"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(MEASURE_EVERY) => {}
            }
        }
    }

    /// The age of the oldest event that is not published, also of one that waits for an older transaction to end; of the oldest since it was asked for
    /// last.
    pub async fn lag(&self) -> Result<Duration, Error> {
        let oldest = self.store.oldest_after(&self.database, self.cursor().await?).await?;
        let now = oldest.map_or(0, |recorded_us| now_us() - recorded_us);
        Ok(Duration::from_micros(now.max(self.peak_us.swap(0, Ordering::Relaxed)).max(0).unsigned_abs()))
    }

    async fn cursor(&self) -> Result<Cursor, Error> {
        let sql = "SELECT incarnation, cluster, xid, seq FROM relay_cursors WHERE topic = $1";
        Ok(one(self.database.reader(), sql, [self.store.topic.into()]).await?.unwrap_or_default())
    }

    /// Publishes one batch; how many events.
    async fn round(&self, known: &mut Known) -> Result<usize, BusError> {
        let topic = self.store.topic;
        let connection = match &mut known.connection {
            Some(connection) => connection,
            none => none.insert(self.bus.connect().await?),
        };
        // One replica at a time. An advisory lock takes no transaction id, so it does not hold back the horizon that `after` reads
        // below. On SQLite this process is alone, and its one writer must not wait for Redis.
        let turn = if self.database.is_postgres() {
            let tx = self.database.begin().await?;
            let sql = "SELECT pg_try_advisory_xact_lock(hashtext($1)) AS locked";
            if !one::<Locked>(&tx, sql, [format!("relay of {topic}").into()]).await?.is_some_and(|row| row.locked) {
                return Ok(0);
            }
            Some(tx)
        } else {
            None
        };
        let ours = self.cursor().await?;
        let (marker, read) = redis_streams::published(connection, topic).await?;
        let before = match marker.filter(|_| !known.is_spoilt) {
            // Redis may have lost the last second of what it was given. The earlier of the two cursors misses nothing.
            Some(marker) if marker.cursor <= ours => marker,
            Some(marker) => redis_streams::Marker { cursor: ours, ..marker },
            None => {
                let begin = self.store.before(&self.database, ours, PUBLISHED_AGAIN).await?;
                if begin < ours {
                    tracing::warn!(topic, "redis lost the streams, or they were spoilt; they begin anew, and readers read from the event store");
                    let oldest = self.store.oldest_after(&self.database, begin).await?;
                    self.peak_us.fetch_max(oldest.map_or(0, |recorded_us| now_us() - recorded_us), Ordering::Relaxed);
                }
                redis_streams::new_epoch(begin)
            }
        };
        let mut events = self.store.after(&self.database, before.cursor, BATCH).await?;
        // Redis gets them in one message.
        let mut bytes = 0;
        let fits = |(_, event): &&(Cursor, Event)| {
            let before = bytes;
            bytes += event.payload.len();
            before < BATCH_BYTES
        };
        let fitting = events.iter().take_while(fits).count();
        events.truncate(fitting);
        let Some((last, _)) = events.last() else { return Ok(0) };
        let after = match redis_streams::publish(connection, topic, &read, before, &events).await? {
            Published::Yes(after) => after,
            Published::Moved => return Ok(0),
            Published::Foreign(which) => {
                tracing::error!(topic, which, "something that is not Lastro adds entries to a stream; they are left out, and the streams begin anew");
                counter!("lastro_events_malformed_total", "topic" => topic).increment(1);
                known.is_spoilt = true;
                return Ok(0);
            }
        };
        known.is_spoilt = false;
        known.untrimmed += after.bytes.iter().sum::<u64>().saturating_sub(before.bytes.iter().sum());
        let sql = "INSERT INTO relay_cursors (topic, incarnation, cluster, xid, seq) VALUES ($1, $2, $3, $4, $5) \
                   ON CONFLICT (topic) DO UPDATE SET incarnation = excluded.incarnation, cluster = excluded.cluster, xid = excluded.xid, seq = excluded.seq";
        let tx = match turn {
            Some(tx) => tx,
            None => self.database.begin().await?,
        };
        // What is published again does not move it back: the marker says how far that has come.
        let furthest = ours.max(*last);
        execute(&tx, sql, [topic.into(), furthest.incarnation.into(), furthest.cluster.into(), furthest.xid.into(), furthest.seq.into()]).await?;
        tx.commit().await.map_err(Error::from)?;
        if known.untrimmed >= TRIM_AFTER_BYTES {
            redis_streams::trim(connection, &self.bus, topic, &after).await?;
            known.untrimmed = 0;
        }
        Ok(events.len())
    }
}
