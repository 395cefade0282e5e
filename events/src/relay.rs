//! The relay: publishes a service's event table to Redis in batches, from a cursor in the service's own database. One replica at a time;
//! what is published twice is known to every inbox.

use std::time::Duration;

use lastro_database::{Database, Error, execute, one};
use metrics::{Gauge, counter, gauge};
use redis::aio::MultiplexedConnection;
use sea_orm::FromQueryResult;
use tokio_util::sync::CancellationToken;

use crate::bus::BusError;
use crate::bus::redis_streams::{self, RedisBus};
use crate::store::{Cursor, EventStore};

const POLL_INTERVAL: Duration = Duration::from_millis(200);
const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(1);
const BATCH: u32 = 500;

/// Publishes one service's events.
#[derive(Clone)]
pub struct Relay {
    /// Which table, to which topic.
    pub store: EventStore,
    /// The service's database.
    pub database: Database,
    /// Where to.
    pub bus: RedisBus,
}

#[derive(FromQueryResult)]
struct Locked {
    locked: bool,
}

impl Relay {
    /// Publishes until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let lag = gauge!("lastro_relay_lag_seconds", "topic" => self.store.topic);
        let mut connection = None;
        let wake = self.bus.stored();
        loop {
            let stored = wake.notified();
            let pause = match self.round(&mut connection, &lag).await {
                Ok(0) => POLL_INTERVAL,
                Ok(published) => {
                    counter!("lastro_events_published_total", "topic" => self.store.topic).increment(published as u64);
                    Duration::ZERO
                }
                Err(error) => {
                    tracing::warn!(%error, topic = self.store.topic, "events cannot be published; they wait in the event store");
                    connection = None;
                    PAUSE_AFTER_ERROR
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = stored, if pause == POLL_INTERVAL => {}
            }
        }
    }

    /// Publishes one batch; how many events.
    async fn round(&self, connection: &mut Option<MultiplexedConnection>, lag: &Gauge) -> Result<usize, BusError> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(self.bus.connect().await?),
        };
        // One replica at a time. An advisory lock takes no transaction id, so it does not hold back the horizon that `after` reads
        // below. On SQLite this process is alone, and its one writer must not wait for Redis.
        let turn = if self.database.is_postgres() {
            let tx = self.database.begin().await?;
            let sql = "SELECT pg_try_advisory_xact_lock(hashtext($1)) AS locked";
            if !one::<Locked>(&tx, sql, [self.store.topic.into()]).await?.is_some_and(|row| row.locked) {
                return Ok(0);
            }
            Some(tx)
        } else {
            None
        };
        let sql = "SELECT xid, seq FROM relay_cursors WHERE topic = $1";
        let ours: Cursor = one(self.database.reader(), sql, [self.store.topic.into()]).await?.unwrap_or_default();
        // Redis may have lost what it was given, all or the last second of it. The earlier of the two cursors misses nothing.
        let theirs = redis_streams::published(connection, self.store.topic).await?.unwrap_or_default();
        let cursor = ours.min(theirs);
        if theirs < ours {
            tracing::warn!(topic = self.store.topic, "redis lost events; they are published again");
        }
        let events = self.store.after(&self.database, cursor, BATCH).await?;
        lag.set(events.first().map_or(0.0, |(_, event)| seconds_since(event.recorded_us)));
        let Some((last, _)) = events.last() else { return Ok(0) };
        redis_streams::publish(connection, self.store.topic, &events).await?;
        let sql = "INSERT INTO relay_cursors (topic, xid, seq) VALUES ($1, $2, $3) \
                   ON CONFLICT (topic) DO UPDATE SET xid = excluded.xid, seq = excluded.seq";
        let tx = match turn {
            Some(tx) => tx,
            None => self.database.begin().await?,
        };
        execute(&tx, sql, [self.store.topic.into(), last.xid.into(), last.seq.into()]).await?;
        tx.commit().await.map_err(Error::from)?;
        Ok(events.len())
    }
}

#[allow(clippy::float_arithmetic, clippy::disallowed_methods, reason = "a metric")]
fn seconds_since(recorded_us: i64) -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (now.as_micros() as f64 - recorded_us as f64).max(0.0) / 1e6
}
