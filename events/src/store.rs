//! The event store: append-only tables of events that are the outbox too. An event is written in the transaction of the state that it
//! tells of; the relay and the embedded bus read on from a cursor.
//!
//! **Completeness** comes from the cursor (transaction id, sequence) below `pg_snapshot_xmin`, never from `id > cursor`: a transaction
//! that commits late has a lower sequence than one that was read already. SQLite has one writer, so its sequence is the commit order. Across
//! clusters, see [`Cursor`].

use std::collections::HashMap;

use lastro_database::rows::{Type, all_of_ids, insert_rows};
use lastro_database::{Database, Error, Transaction, all, one};
use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use uuid::Uuid;

use crate::cursor::clusters;
pub use crate::cursor::{Cursor, NoCursor};
use crate::event::{Event, GENESIS, Hash, NewEvent};

/// A table of events. The name is ours, never a caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventStore {
    /// The table.
    pub table: &'static str,
    /// The stream's name on the bus.
    pub topic: &'static str,
    /// The full name of the message that payloads are.
    pub message: &'static str,
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
    aggregate_id: Uuid,
    version: i64,
    hash: Vec<u8>,
}

#[derive(FromQueryResult)]
struct Seq {
    seq: i64,
}

#[derive(FromQueryResult)]
struct Position {
    xid: i64,
    seq: i64,
}

/// Events to a statement.
const APPENDED_AT_ONCE: usize = 2000;

/// What is written of a new event.
const NEW_COLUMNS: &[(&str, Type)] = &[
    ("id", Type::Uuid),
    ("aggregate_id", Type::Uuid),
    ("version", Type::BigInt),
    ("kind", Type::Text),
    ("payload", Type::Bytes),
    ("digest", Type::Bytes),
    ("correlation_id", Type::Text),
    ("causation_id", Type::OptionalUuid),
    ("recorded_us", Type::BigInt),
    ("hash", Type::Bytes),
];

fn values(event: &Event) -> Vec<Value> {
    vec![
        event.id.into(),
        event.aggregate_id.into(),
        event.version.into(),
        event.kind.clone().into(),
        event.payload.clone().into(),
        event.digest.to_vec().into(),
        event.correlation_id.clone().into(),
        event.causation_id.into(),
        event.recorded_us.into(),
        event.hash.to_vec().into(),
    ]
}

/// Where the transaction of an event is not asked for. Cast, since the two databases differ in how long a bare 0 is.
const NO_XID: &str = "CAST(0 AS bigint)";
const COLUMNS: &str = "seq, id, aggregate_id, version, kind, payload, digest, correlation_id, causation_id, recorded_us, hash";

impl EventStore {
    /// Appends an event to the end of its aggregate's stream. The caller holds a lock on the aggregate, or finds that the version
    /// exists (`Kind::Unique`).
    pub async fn append(&self, tx: &Transaction, aggregate_id: Uuid, event: NewEvent) -> Result<Event, Error> {
        let appended = self.append_all(tx, vec![(aggregate_id, event)]).await?;
        appended.into_iter().next().ok_or_else(|| Error::corrupt("an event that was appended and is not there"))
    }

    /// Appends an event each to the ends of the streams of different aggregates, in few statements. The caller holds a lock on each.
    pub async fn append_all(&self, on: &impl ConnectionTrait, events: Vec<(Uuid, NewEvent)>) -> Result<Vec<Event>, Error> {
        let sql = format!(
            "SELECT e.aggregate_id, e.version, e.hash FROM {0} e WHERE e.aggregate_id {{ids}} \
             AND e.version = (SELECT max(m.version) FROM {0} m WHERE m.aggregate_id = e.aggregate_id)",
            self.table
        );
        let (mut appended, mut events) = (Vec::with_capacity(events.len()), events.into_iter().peekable());
        while events.peek().is_some() {
            let some: Vec<(Uuid, NewEvent)> = events.by_ref().take(APPENDED_AT_ONCE).collect();
            let ids: Vec<Uuid> = some.iter().map(|(aggregate_id, _)| *aggregate_id).collect();
            let heads: Vec<Head> = all_of_ids(on, &sql, &ids, []).await?;
            let heads: HashMap<Uuid, Head> = heads.into_iter().map(|head| (head.aggregate_id, head)).collect();
            let at_end = |(aggregate_id, event): (Uuid, NewEvent)| match heads.get(&aggregate_id) {
                Some(head) => Ok(event.at(aggregate_id, head.version + 1, &hash(head.hash.clone())?)),
                None => Ok(event.at(aggregate_id, 1, &GENESIS)),
            };
            let some: Vec<Event> = some.into_iter().map(at_end).collect::<Result<_, Error>>()?;
            insert_rows(on, self.table, NEW_COLUMNS, "", some.iter().map(values).collect()).await?;
            appended.extend(some);
        }
        Ok(appended)
    }

    /// Inserts events that stand at their places in their streams already. The caller holds a lock on each stream, and knows where it ends.
    pub async fn insert(&self, on: &impl ConnectionTrait, events: &[Event]) -> Result<(), Error> {
        insert_rows(on, self.table, NEW_COLUMNS, "", events.iter().map(values).collect()).await.map(|_| ())
    }

    /// The stream of one aggregate, oldest first.
    pub async fn stream(&self, database: &Database, aggregate_id: Uuid) -> Result<Vec<Event>, Error> {
        self.stream_from(database, aggregate_id, 1, u32::MAX).await
    }

    /// A part of the stream of one aggregate, oldest first: from a version, up to `limit` events.
    pub async fn stream_from(&self, database: &Database, aggregate_id: Uuid, from_version: i64, limit: u32) -> Result<Vec<Event>, Error> {
        let sql =
            format!("SELECT {NO_XID} AS xid, {COLUMNS} FROM {} WHERE aggregate_id = $1 AND version >= $2 ORDER BY version LIMIT {limit}", self.table);
        let rows: Vec<Row> = all(database.reader(), &sql, [aggregate_id.into(), from_version.into()]).await?;
        rows.into_iter().map(Row::event).collect()
    }

    /// About how many events there are; a number, to show how far something has come.
    pub async fn stored(&self, database: &Database) -> Result<i64, Error> {
        let sql = if database.is_postgres() {
            format!("SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('{}', 'seq')::regclass), 0) AS seq", self.table)
        } else {
            format!("SELECT coalesce(max(seq), 0) AS seq FROM {}", self.table)
        };
        Ok(one::<Seq>(database.reader(), &sql, []).await?.map_or(0, |row| row.seq))
    }

    /// The cursor after which every event lies that cannot be seen yet: whoever reads the service's tables from now on, and then the events after
    /// it, misses nothing. Some that can be seen may lie after it as well.
    pub async fn end(&self, database: &Database) -> Result<Cursor, Error> {
        if !database.is_postgres() {
            let sql = format!("SELECT coalesce(max(seq), 0) AS seq FROM {}", self.table);
            let seq = one::<Seq>(database.reader(), &sql, []).await?.map_or(0, |row| row.seq);
            return Ok(Cursor { seq, ..Cursor::default() });
        }
        let clusters = clusters(database, self.table).await?;
        let last = clusters.lived.last().ok_or_else(|| Error::corrupt("an event store that lives nowhere"))?;
        let sql = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS seq";
        let xid = one::<Seq>(database.reader(), sql, []).await?.map_or(0, |row| row.seq);
        Ok(Cursor { incarnation: last.incarnation, cluster: last.cluster, xid, seq: 0 })
    }

    /// Up to `limit` events after a cursor, in the order in which no later call can find one before. A cursor that the store does not know, since it
    /// is of a cluster in which the store never lived, is as good as none: reading begins anew.
    pub async fn after(&self, database: &Database, cursor: Cursor, limit: u32) -> Result<Vec<(Cursor, Event)>, Error> {
        Ok(self.read(database, cursor, limit).await?.0)
    }

    /// As [`after`](Self::after), with the place from which to read on. After events it is the cursor of the last one. Where none are left it is as far
    /// as it is sure that none will come any more: a reader that keeps it in memory does not look through what lies before again and again.
    pub(crate) async fn read(&self, database: &Database, cursor: Cursor, limit: u32) -> Result<(Vec<(Cursor, Event)>, Cursor), Error> {
        let (found, end) = self.select(database, cursor, Horizon::Complete, limit).await?;
        let next = found.last().map_or(end.max(cursor), |(last, _)| *last);
        Ok((found, next))
    }

    /// As [`after`](Self::after), with what is committed and may have others before it that are not yet. Whoever goes on from there misses them.
    pub async fn visible_after(&self, database: &Database, cursor: Cursor, limit: u32) -> Result<Vec<(Cursor, Event)>, Error> {
        Ok(self.select(database, cursor, Horizon::Visible, limit).await?.0)
    }

    /// When the oldest event after a cursor was recorded, Unix microseconds: also of one that [`after`](Self::after) does not give yet. None when
    /// there is none.
    pub async fn oldest_after(&self, database: &Database, cursor: Cursor) -> Result<Option<i64>, Error> {
        Ok(self.visible_after(database, cursor, 1).await?.first().map(|(_, event)| event.recorded_us))
    }

    /// The cursor before the last `events` events up to a cursor.
    pub async fn before(&self, database: &Database, cursor: Cursor, events: u32) -> Result<Cursor, Error> {
        if !database.is_postgres() {
            return Ok(Cursor { seq: (cursor.seq - i64::from(events)).max(0), ..cursor });
        }
        let sql = format!(
            "SELECT xid::text::bigint AS xid, seq FROM {} WHERE (xid, seq) <= ($1::text::xid8, $2) ORDER BY {0}.xid DESC, seq DESC OFFSET {events} LIMIT 1",
            self.table
        );
        let place: Option<Position> = one(database.reader(), &sql, [cursor.xid.to_string().into(), cursor.seq.into()]).await?;
        Ok(place.map_or(Cursor { xid: 0, seq: 0, ..cursor }, |place| Cursor { xid: place.xid, seq: place.seq, ..cursor }))
    }

    /// Up to where all that is stored of these aggregates lies.
    pub async fn place_of(&self, database: &Database, aggregates: &[Uuid]) -> Result<Cursor, Error> {
        if !database.is_postgres() {
            let sql = format!("SELECT 0 AS xid, max(seq) AS seq FROM {} WHERE aggregate_id {{ids}}", self.table);
            let place: Vec<Position> = all_of_ids(database.reader(), &sql, aggregates, []).await?;
            return Ok(place.first().map_or_else(Cursor::default, |place| Cursor { seq: place.seq, ..Cursor::default() }));
        }
        let lived = clusters(database, self.table).await?.lived;
        let Some(last) = lived.last() else { return Ok(Cursor::default()) };
        // Transactions of an earlier cluster have numbers of their own: all of them lie before the first place of this one.
        let sql = format!(
            "SELECT xid::text::bigint AS xid, seq FROM {0} WHERE aggregate_id {{ids}} AND seq >= $2 ORDER BY {0}.xid DESC, seq DESC LIMIT 1",
            self.table
        );
        let place: Vec<Position> = all_of_ids(database.reader(), &sql, aggregates, [last.first_seq.into()]).await?;
        let begin = Cursor { incarnation: last.incarnation, cluster: last.cluster, xid: 0, seq: 0 };
        Ok(place.first().map_or(begin, |place| Cursor { xid: place.xid, seq: place.seq, ..begin }))
    }

    /// The events, and the place before which none can come any more.
    async fn select(&self, database: &Database, cursor: Cursor, horizon: Horizon, limit: u32) -> Result<(Vec<(Cursor, Event)>, Cursor), Error> {
        if !database.is_postgres() {
            let sql = format!("SELECT {NO_XID} AS xid, {COLUMNS} FROM {} WHERE seq > $1 ORDER BY seq LIMIT {limit}", self.table);
            let mut rows: Vec<Row> = all(database.reader(), &sql, [cursor.seq.into()]).await?;
            if rows.is_empty() && self.end(database).await?.seq < cursor.seq {
                // The file was replaced by an earlier one.
                note_unknown(cursor);
                rows = all(database.reader(), &sql, [0_i64.into()]).await?;
            }
            let event = |row: Row| Ok((Cursor { seq: row.seq, ..Cursor::default() }, row.event()?));
            return Ok((rows.into_iter().map(event).collect::<Result<_, Error>>()?, Cursor::default()));
        }
        let clusters = clusters(database, self.table).await?;
        let (first, mut after) = clusters.place(cursor).unwrap_or_else(|| {
            note_unknown(cursor);
            (0, (0, 0))
        });
        let mut found = Vec::new();
        for (index, lived) in clusters.lived.iter().enumerate().skip(first) {
            let next = clusters.lived.get(index + 1);
            // Whatever the cluster before had counted up to.
            after = after.max((lived.first_xid - 1, i64::MAX));
            // In the cluster of today something earlier may be committed yet, up to the horizon. Of those before everything is here. And rows of those
            // before may name transactions that this one has not begun: nobody is to look through them.
            let bound = match (next, horizon) {
                (Some(_), _) => "",
                (None, Horizon::Complete) => "AND xid < pg_snapshot_xmin(pg_current_snapshot())",
                (None, Horizon::Visible) => "AND xid < pg_snapshot_xmax(pg_current_snapshot())",
            };
            let left = limit as usize - found.len();
            // xid8 goes through text: it is unsigned, and 2^63 transactions are far away. `+ 0` keeps the planner from taking the two bounds for a
            // narrow range: without statistics it would read and sort all that is left for each page, and not read on in the index.
            let sql = format!(
                "SELECT xid::text::bigint AS xid, {COLUMNS} FROM {} WHERE (xid, seq) > ($1::text::xid8, $2) AND seq >= $3 AND seq + 0 < $4 {bound} \
                 ORDER BY {0}.xid, seq LIMIT {left}",
                self.table
            );
            let end = next.map_or(i64::MAX, |next| next.first_seq);
            let rows: Vec<Row> =
                all(database.reader(), &sql, [after.0.to_string().into(), after.1.into(), lived.first_seq.into(), end.into()]).await?;
            for row in rows {
                let cursor = Cursor { incarnation: lived.incarnation, cluster: lived.cluster, xid: row.xid, seq: row.seq };
                found.push((cursor, row.event()?));
            }
            if found.len() >= limit as usize {
                break;
            }
            after = (0, 0);
        }
        // Asked before the events were: what had ended by then was seen.
        let end = clusters.lived.last().map(|last| Cursor {
            incarnation: last.incarnation,
            cluster: last.cluster,
            xid: clusters.oldest_running - 1,
            seq: i64::MAX,
        });
        Ok((found, end.unwrap_or_default()))
    }
}

/// Which events are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Horizon {
    /// Those before which none can be committed any more.
    Complete,
    /// All that are committed.
    Visible,
}

fn note_unknown(cursor: Cursor) {
    tracing::warn!(%cursor, "the event store cannot have given this cursor; reading begins anew");
}

impl Row {
    fn event(self) -> Result<Event, Error> {
        Ok(Event {
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
        })
    }
}

fn hash(bytes: Vec<u8>) -> Result<Hash, Error> {
    bytes.try_into().map_err(|_| Error::corrupt("a hash that has not 32 bytes"))
}
