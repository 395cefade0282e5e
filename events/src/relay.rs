//! The relay: publishes an event store to Redis in batches, from a cursor in the service's own database. One replica at a time; what is published
//! twice is known to every inbox. And the lag: how old the oldest event is that is not published yet.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use lastro_database::{Database, Error, Transaction, execute, one};
use metrics::{counter, gauge};
use redis::aio::MultiplexedConnection;
use sea_orm::FromQueryResult;
use tokio::time::Instant;
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
    /// Where the cursor was when nothing more was found, and up to where that is sure.
    quiet: Mutex<Option<(Cursor, Cursor)>>,
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
    /// The text of the marker that this relay was about to leave in Redis when it published last.
    attempted: String,
}

#[derive(FromQueryResult)]
struct Locked {
    locked: bool,
}

impl Relay {
    /// Publishes an event store to a bus.
    pub fn new(store: EventStore, database: &Database, bus: &RedisBus) -> Self {
        Self { store, database: database.clone(), bus: bus.clone(), quiet: Mutex::default(), peak_us: AtomicI64::new(0) }
    }

    /// Publishes until told to stop.
    pub async fn run(&self, stop: CancellationToken) {
        let (mut known, mut pauses) = (Known { untrimmed: TRIM_AFTER_BYTES, ..Known::default() }, PAUSES.build());
        let wake = self.bus.stored(self.store.topic);
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
                    // The database may be another one now, set back to an earlier state.
                    *self.quiet.lock().unwrap_or_else(PoisonError::into_inner) = None;
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
        let (mut last, mut measured) = (Duration::ZERO, Instant::now());
        loop {
            match self.lag().await {
                Ok(age) => (last, measured) = (age, Instant::now()),
                Err(error) => tracing::debug!(%error, topic = self.store.topic, "the lag cannot be measured"),
            }
            // While it cannot be measured, what was stored just after the last time may be as old as that.
            let unmeasured = measured.elapsed();
            lag.set((last + if unmeasured > MEASURE_EVERY { unmeasured } else { Duration::ZERO }).as_secs_f64());
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(MEASURE_EVERY) => {}
            }
        }
    }

    /// The age of the oldest event that is not published, also of one that waits for an older transaction to end; of the oldest since it was asked for
    /// last.
    pub async fn lag(&self) -> Result<Duration, Error> {
        let oldest = self.store.oldest_after(&self.database, self.beyond_quiet(self.cursor().await?)).await?;
        let now = oldest.map_or(0, |recorded_us| now_us() - recorded_us);
        Ok(Duration::from_micros(now.max(self.peak_us.swap(0, Ordering::Relaxed)).max(0).unsigned_abs()))
    }

    async fn cursor(&self) -> Result<Cursor, Error> {
        let sql = "SELECT incarnation, cluster, xid, seq FROM relay_cursors WHERE topic = $1";
        Ok(one(self.database.reader(), sql, [self.store.topic.into()]).await?.unwrap_or_default())
    }

    /// The place from which to read on after a cursor: further on, where it is known that nothing lies in between.
    fn beyond_quiet(&self, cursor: Cursor) -> Cursor {
        let quiet = *self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        quiet.filter(|(after, _)| *after == cursor).map_or(cursor, |(_, up_to)| up_to)
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
        if let Some(marker) = marker.filter(|marker| marker.cursor > ours && read == known.attempted && !known.is_spoilt) {
            // Redis did what it was asked to, and its answer or our own commit was lost.
            self.keep_cursor(turn, marker.cursor).await?;
            return Ok(1);
        }
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
        let (mut events, next) = self.store.read(&self.database, self.beyond_quiet(before.cursor), BATCH).await?;
        // Redis gets them in one message.
        let mut bytes = 0;
        let fits = |(_, event): &&(Cursor, Event)| {
            let before = bytes;
            bytes += event.payload.len();
            before < BATCH_BYTES
        };
        let fitting = events.iter().take_while(fits).count();
        events.truncate(fitting);
        let Some((last, _)) = events.last() else {
            *self.quiet.lock().unwrap_or_else(PoisonError::into_inner) = Some((before.cursor, next));
            return Ok(0);
        };
        let after = match redis_streams::publish(connection, topic, &read, before, &events, &mut known.attempted).await? {
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
        // What is published again does not move it back: the marker says how far that has come.
        self.keep_cursor(turn, ours.max(*last)).await?;
        if known.untrimmed >= TRIM_AFTER_BYTES {
            redis_streams::trim(connection, &self.bus, topic, &after).await?;
            known.untrimmed = 0;
        }
        Ok(events.len())
    }

    /// Stores how far the relay has published, in the transaction of its turn where there is one.
    async fn keep_cursor(&self, turn: Option<Transaction>, cursor: Cursor) -> Result<(), Error> {
        let sql = "INSERT INTO relay_cursors (topic, incarnation, cluster, xid, seq) VALUES ($1, $2, $3, $4, $5) \
                   ON CONFLICT (topic) DO UPDATE SET incarnation = excluded.incarnation, cluster = excluded.cluster, xid = excluded.xid, seq = excluded.seq";
        let tx = match turn {
            Some(tx) => tx,
            None => self.database.begin().await?,
        };
        execute(&tx, sql, [self.store.topic.into(), cursor.incarnation.into(), cursor.cluster.into(), cursor.xid.into(), cursor.seq.into()]).await?;
        Ok(tx.commit().await?)
    }
}
