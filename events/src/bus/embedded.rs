//! The embedded bus: consumers read the publishers' event tables from an offset that they keep in their own database.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lastro_database::{Database, Error, execute, one};
use tokio::sync::Notify;

use super::{BusError, Delivery, Position};
use crate::store::{Cursor, EventStore};

/// How long a consumer waits before it looks again, should no wake-up reach it (another process, a late commit).
const POLL_INTERVAL: Duration = Duration::from_millis(200);
const BATCH: u32 = 200;

/// The bus within one process.
#[derive(Clone)]
pub struct EmbeddedBus {
    publishers: Arc<HashMap<&'static str, Database>>,
    stored: Arc<Notify>,
}

/// A consumer group's offset in one topic.
pub struct EmbeddedSubscription {
    store: EventStore,
    publisher: Option<Database>,
    consumer: Database,
    group: &'static str,
    cursor: Option<Cursor>,
    stored: Arc<Notify>,
}

impl EmbeddedBus {
    /// A bus over the databases of the publishers, by topic.
    pub fn new(publishers: HashMap<&'static str, Database>) -> Self {
        Self { publishers: Arc::new(publishers), stored: Arc::default() }
    }

    /// Wakes every consumer.
    pub fn wake(&self) {
        self.stored.notify_waiters();
    }

    pub(super) fn subscribe(&self, store: EventStore, group: &'static str, database: &Database) -> EmbeddedSubscription {
        EmbeddedSubscription {
            store,
            publisher: self.publishers.get(store.topic).cloned(),
            consumer: database.clone(),
            group,
            cursor: None,
            stored: self.stored.clone(),
        }
    }
}

impl EmbeddedSubscription {
    pub(super) async fn next(&mut self) -> Result<Vec<Delivery>, BusError> {
        let Some(publisher) = self.publisher.clone() else {
            return Err(Error::corrupt(format!("nobody publishes {}", self.store.topic)).into());
        };
        let cursor = match self.cursor {
            Some(cursor) => cursor,
            None => *self.cursor.insert(self.load().await?),
        };
        // Registered before looking, so that what is stored in between wakes it.
        let stored = self.stored.clone();
        let stored = stored.notified();
        let events = self.store.after(&publisher, cursor, BATCH).await?;
        if events.is_empty() {
            let _ = tokio::time::timeout(POLL_INTERVAL, stored).await;
        }
        Ok(events.into_iter().map(|(cursor, event)| Delivery { event, position: Position::Embedded(cursor) }).collect())
    }

    pub(super) async fn acknowledge(&mut self, deliveries: &[Delivery]) -> Result<(), BusError> {
        let Some(Delivery { position: Position::Embedded(cursor), .. }) = deliveries.last() else {
            return Ok(());
        };
        self.cursor = Some(*cursor);
        let tx = self.consumer.begin().await?;
        let sql = "INSERT INTO bus_offsets (topic, consumer_group, xid, seq) VALUES ($1, $2, $3, $4) \
                   ON CONFLICT (topic, consumer_group) DO UPDATE SET xid = excluded.xid, seq = excluded.seq";
        execute(&tx, sql, [self.store.topic.into(), self.group.into(), cursor.xid.into(), cursor.seq.into()]).await?;
        Ok(tx.commit().await.map_err(Error::from)?)
    }

    async fn load(&self) -> Result<Cursor, Error> {
        let sql = "SELECT xid, seq FROM bus_offsets WHERE topic = $1 AND consumer_group = $2";
        Ok(one(self.consumer.reader(), sql, [self.store.topic.into(), self.group.into()]).await?.unwrap_or_default())
    }
}
