//! The event store: append-only tables of events that are the outbox too. An event is written in the transaction of the state that it
//! tells of; the relay and the embedded bus read on from a cursor.
//!
//! **Completeness** comes from the cursor (transaction id, sequence) below `pg_snapshot_xmin`, never from `id > cursor`: a transaction
//! that commits late has a lower sequence than one that was read already. SQLite has one writer, so its sequence is the commit order.

use lastro_database::{Database, Error, Transaction, all, execute, one};
use sea_orm::{FromQueryResult, Value};
use uuid::Uuid;

use crate::event::{Event, GENESIS, Hash, NewEvent};

/// A table of events. The name is ours, never a caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventStore {
    /// The table.
    pub table: &'static str,
    /// The stream's name on the bus.
    pub topic: &'static str,
}

/// How far a reader has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, FromQueryResult)]
pub struct Cursor {
    /// PostgreSQL's transaction id; 0 on SQLite.
    pub xid: i64,
    /// The table's sequence.
    pub seq: i64,
}

#[derive(FromQueryResult)]
struct Row {
    xid: i64,
    seq: i64,
    id: Uuid,
    aggregate_id: Uuid,
    version: i64,
    kind: String,
    payload: Vec<u8>,
    digest: Vec<u8>,
    correlation_id: String,
    causation_id: Option<Uuid>,
    recorded_us: i64,
    hash: Vec<u8>,
}

#[derive(FromQueryResult)]
struct Head {
    version: i64,
    hash: Vec<u8>,
}

const COLUMNS: &str = "seq, id, aggregate_id, version, kind, payload, digest, correlation_id, causation_id, recorded_us, hash";

impl EventStore {
    /// Appends an event to the end of its aggregate's stream. The caller holds a lock on the aggregate, or finds that the version
    /// exists (`Kind::Unique`).
    pub async fn append(&self, tx: &Transaction, aggregate_id: Uuid, event: NewEvent) -> Result<Event, Error> {
        let sql = format!("SELECT version, hash FROM {} WHERE aggregate_id = $1 ORDER BY version DESC LIMIT 1", self.table);
        let head: Option<Head> = one(tx, &sql, [aggregate_id.into()]).await?;
        let (version, previous) = match head {
            Some(head) => (head.version, hash(head.hash)?),
            None => (0, GENESIS),
        };
        let event = event.at(aggregate_id, version + 1, &previous);
        let sql = format!(
            "INSERT INTO {} (id, aggregate_id, version, kind, payload, digest, correlation_id, causation_id, recorded_us, hash) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            self.table
        );
        let values: [Value; 10] = [
            event.id.into(),
            aggregate_id.into(),
            event.version.into(),
            event.kind.clone().into(),
            event.payload.clone().into(),
            event.digest.to_vec().into(),
            event.correlation_id.clone().into(),
            event.causation_id.into(),
            event.recorded_us.into(),
            event.hash.to_vec().into(),
        ];
        execute(tx, &sql, values).await?;
        Ok(event)
    }

    /// The stream of one aggregate, oldest first.
    pub async fn stream(&self, database: &Database, aggregate_id: Uuid) -> Result<Vec<Event>, Error> {
        let sql = format!("SELECT 0 AS xid, {COLUMNS} FROM {} WHERE aggregate_id = $1 ORDER BY version", self.table);
        let sql = if database.is_postgres() { sql.replace("0 AS xid", "0::bigint AS xid") } else { sql };
        let rows: Vec<Row> = all(database.reader(), &sql, [aggregate_id.into()]).await?;
        rows.into_iter().map(|row| Ok(row.event()?.1)).collect()
    }

    /// The cursor after which every event lies that cannot be seen yet: whoever reads the service's tables from now on, and then the events after
    /// it, misses nothing. Some that can be seen may lie after it as well.
    pub async fn end(&self, database: &Database) -> Result<Cursor, Error> {
        let sql = if database.is_postgres() {
            "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xid, 0::bigint AS seq".to_owned()
        } else {
            format!("SELECT 0 AS xid, coalesce(max(seq), 0) AS seq FROM {}", self.table)
        };
        Ok(one(database.reader(), &sql, []).await?.unwrap_or_default())
    }

    /// Up to `limit` events after a cursor, in the order in which no later call can find one before.
    pub async fn after(&self, database: &Database, cursor: Cursor, limit: u32) -> Result<Vec<(Cursor, Event)>, Error> {
        self.select(database, cursor, "AND xid < pg_snapshot_xmin(pg_current_snapshot())", limit).await
    }

    /// As [`after`](Self::after), with what is committed and may have others before it that are not yet. Whoever goes on from there misses them.
    pub async fn visible_after(&self, database: &Database, cursor: Cursor, limit: u32) -> Result<Vec<(Cursor, Event)>, Error> {
        self.select(database, cursor, "", limit).await
    }

    async fn select(&self, database: &Database, cursor: Cursor, and: &str, limit: u32) -> Result<Vec<(Cursor, Event)>, Error> {
        let rows: Vec<Row> = if database.is_postgres() {
            // xid8 goes through text: it is unsigned, and 2^63 transactions are far away.
            let sql = format!(
                "SELECT xid::text::bigint AS xid, {COLUMNS} FROM {} WHERE (xid, seq) > ($1::text::xid8, $2) {and} ORDER BY {0}.xid, seq LIMIT {limit}",
                self.table
            );
            all(database.reader(), &sql, [cursor.xid.to_string().into(), cursor.seq.into()]).await?
        } else {
            let sql = format!("SELECT 0 AS xid, {COLUMNS} FROM {} WHERE seq > $1 ORDER BY seq LIMIT {limit}", self.table);
            all(database.reader(), &sql, [cursor.seq.into()]).await?
        };
        rows.into_iter().map(Row::event).collect()
    }
}

impl Row {
    fn event(self) -> Result<(Cursor, Event), Error> {
        let event = Event {
            id: self.id,
            aggregate_id: self.aggregate_id,
            version: self.version,
            kind: self.kind,
            payload: self.payload,
            digest: hash(self.digest)?,
            correlation_id: self.correlation_id,
            causation_id: self.causation_id,
            recorded_us: self.recorded_us,
            hash: hash(self.hash)?,
        };
        Ok((Cursor { xid: self.xid, seq: self.seq }, event))
    }
}

fn hash(bytes: Vec<u8>) -> Result<Hash, Error> {
    bytes.try_into().map_err(|_| Error::corrupt("a hash that has not 32 bytes"))
}
