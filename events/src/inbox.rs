//! The inbox: applies the events of each aggregate exactly once and in order, whatever order they come in, many in one transaction. How far each
//! aggregate has come is kept in the consumer's own database, in the transaction of the effects; what is ahead is parked until the gap closes, and
//! what cannot be applied is a dead letter, together with everything later of its aggregate.
//!
//! Transactions of one topic that have aggregates of the same shard take turns (advisory locks in the order of the shards), so that no aggregate has
//! to be locked by itself.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};

use lastro_database::rows::{Type, all_of_ids, execute_of_ids, insert_rows};
use lastro_database::{Database, Error, Transaction, all, execute, one, shadow};
use sea_orm::{ConnectionTrait as _, DbBackend, FromQueryResult, Value};
use uuid::Uuid;

use crate::consumer::{Failure, Handler};
use crate::event::Event;
use crate::store::Cursor;

/// Streams of a topic, and turns of its consumers. An aggregate's events are all in one.
pub const SHARDS: u128 = 4;

/// Where the versions of aggregates are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// In the table `inbox`, a row for each aggregate.
    Inbox,
    /// In a table of the projection, which the handler writes: an aggregate's row has its id and the version of its last event.
    Own {
        /// The table.
        table: &'static str,
        /// The column with the aggregate's id.
        id: &'static str,
        /// The column with the version.
        version: &'static str,
    },
}

/// What became of delivered events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Applied now, those among them that were parked.
    pub applied: usize,
    /// Applied before.
    pub duplicates: usize,
    /// Ahead of their aggregate's stream: they wait.
    pub parked: usize,
    /// An earlier event of their aggregate is a dead letter, so these are too.
    pub dead: usize,
}

/// A step of a reader through the event store, taken in the transaction that applies what lies between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Where the reader stood when it read.
    pub from: Cursor,
    /// Where it stands afterwards.
    pub to: Cursor,
}

/// Why nothing was applied.
#[derive(Debug)]
pub enum Unapplied {
    /// Another replica has taken the step meanwhile.
    Overtaken,
    /// Applying failed.
    Failed {
        /// How.
        failure: Failure,
        /// What was to be applied, parked events among it. Empty where it did not come to that.
        planned: Vec<Event>,
    },
}

/// The inbox of one consumer group of one topic.
pub struct Inbox<'a, H> {
    /// Where effects and versions live.
    pub database: &'a Database,
    /// The topic.
    pub topic: &'static str,
    /// The group, which is one reader.
    pub group: &'static str,
    /// What writes the effects.
    pub handler: &'a H,
}

#[derive(FromQueryResult)]
struct Reached {
    aggregate_id: Uuid,
    version: i64,
}

#[derive(FromQueryResult)]
struct Aggregate {
    aggregate_id: Uuid,
}

#[derive(FromQueryResult)]
struct Trouble {
    dead: i64,
    parked: i64,
}

#[derive(FromQueryResult)]
struct Row {
    aggregate_id: Uuid,
    version: i64,
    id: Uuid,
    kind: String,
    payload: Vec<u8>,
    correlation_id: String,
    causation_id: Option<Uuid>,
    recorded_us: i64,
    digest: Vec<u8>,
    hash: Vec<u8>,
}

/// In this order everywhere.
const COLUMNS: &[(&str, Type)] = &[
    ("topic", Type::Text),
    ("aggregate_id", Type::Uuid),
    ("version", Type::BigInt),
    ("id", Type::Uuid),
    ("kind", Type::Text),
    ("payload", Type::Bytes),
    ("correlation_id", Type::Text),
    ("causation_id", Type::OptionalUuid),
    ("recorded_us", Type::BigInt),
    ("digest", Type::Bytes),
    ("hash", Type::Bytes),
];
const SELECT: &str = "SELECT aggregate_id, version, id, kind, payload, correlation_id, causation_id, recorded_us, digest, hash";
const ONCE: &str = "ON CONFLICT (topic, aggregate_id, version) DO NOTHING";

impl<H: Handler> Inbox<'_, H> {
    /// Applies events in one transaction, with what was parked behind them, and takes a reader's step. All or nothing.
    pub async fn apply(&self, events: &[Event], step: Option<Step>) -> Result<Outcome, Unapplied> {
        self.attempt(events, step, true).await
    }

    /// As [`apply`](Self::apply), these events alone: to find the one that cannot be applied.
    pub async fn apply_alone(&self, events: &[Event]) -> Result<Outcome, Unapplied> {
        self.attempt(events, None, false).await
    }

    async fn attempt(&self, events: &[Event], step: Option<Step>, with_parked: bool) -> Result<Outcome, Unapplied> {
        let early = |error: Error| Unapplied::Failed { failure: error.into(), planned: Vec::new() };
        let tx = self.database.begin().await.map_err(early)?;
        let aggregates = ids_of(events);
        take_turns(&tx, self.topic, &aggregates).await.map_err(early)?;
        if let Some(step) = step
            && !self.step(&tx, step).await.map_err(early)?
        {
            return Err(Unapplied::Overtaken);
        }
        let plan = self.plan(&tx, &aggregates, events, with_parked).await.map_err(early)?;
        let late = |failure: Failure| Unapplied::Failed { failure, planned: plan.apply.clone() };
        if !plan.apply.is_empty() {
            self.handler.apply(&tx, &plan.apply).await.map_err(late)?;
        }
        self.write(&tx, &plan).await.map_err(|error| late(error.into()))?;
        tx.commit().await.map_err(|error| late(Error::from(error).into()))?;
        if !plan.apply.is_empty() {
            self.handler.applied(&plan.apply);
        }
        Ok(Outcome { applied: plan.apply.len(), duplicates: plan.duplicates, parked: plan.park.len(), dead: plan.bury.len() })
    }

    /// Moves the reader's cursor, if it stands where it stood; false otherwise.
    async fn step(&self, tx: &Transaction, step: Step) -> Result<bool, Error> {
        let key = || [Value::from(self.topic), self.group.into()];
        let new =
            "INSERT INTO bus_offsets (topic, consumer_group, incarnation, cluster, xid, seq) VALUES ($1, $2, 0, 0, 0, 0) ON CONFLICT DO NOTHING";
        execute(tx, new, key()).await?;
        let sql = "UPDATE bus_offsets SET incarnation = $3, cluster = $4, xid = $5, seq = $6 \
                   WHERE topic = $1 AND consumer_group = $2 AND incarnation = $7 AND cluster = $8 AND xid = $9 AND seq = $10";
        let numbers = [step.to, step.from].into_iter().flat_map(|at| [at.incarnation, at.cluster, at.xid, at.seq].map(Value::from));
        Ok(execute(tx, sql, key().into_iter().chain(numbers)).await? == 1)
    }

    async fn plan(&self, tx: &Transaction, aggregates: &[Uuid], events: &[Event], with_parked: bool) -> Result<Plan, Error> {
        if events.is_empty() {
            return Ok(Plan::default());
        }
        let reached = self.reached(tx, aggregates).await?;
        let trouble = "SELECT CAST(CASE WHEN EXISTS (SELECT 1 FROM dead_events WHERE topic = $1) THEN 1 ELSE 0 END AS bigint) AS dead, \
                       CAST(CASE WHEN EXISTS (SELECT 1 FROM inbox_parked WHERE topic = $1) THEN 1 ELSE 0 END AS bigint) AS parked";
        let trouble: Option<Trouble> = one(tx, trouble, [self.topic.into()]).await?;
        let (any_dead, any_parked) = trouble.map_or((false, false), |trouble| (trouble.dead == 1, trouble.parked == 1));
        let dead: Vec<Reached> = if any_dead {
            let sql = "SELECT aggregate_id, min(version) AS version FROM dead_events WHERE topic = $2 AND aggregate_id {ids} GROUP BY aggregate_id";
            all_of_ids(tx, sql, aggregates, [self.topic.into()]).await?
        } else {
            Vec::new()
        };
        let mut parked = Vec::new();
        if any_parked {
            let sql = format!("{SELECT} FROM inbox_parked WHERE topic = $2 AND aggregate_id {{ids}}");
            let rows: Vec<Row> = all_of_ids(tx, &sql, aggregates, [self.topic.into()]).await?;
            parked = rows.into_iter().map(Row::event).collect::<Result<_, _>>()?;
        }
        let dead: HashMap<Uuid, i64> = dead.into_iter().map(|row| (row.aggregate_id, row.version)).collect();
        Ok(Plan::make(events, if with_parked { parked } else { Vec::new() }, &reached, &dead, any_parked))
    }

    /// How far aggregates have come; those that are not known yet are left out.
    pub async fn reached(&self, tx: &Transaction, aggregates: &[Uuid]) -> Result<HashMap<Uuid, i64>, Error> {
        let rows: Vec<Reached> = match self.handler.progress() {
            Progress::Inbox => {
                let sql = "SELECT aggregate_id, version FROM inbox WHERE topic = $2 AND aggregate_id {ids}";
                all_of_ids(tx, sql, aggregates, [self.topic.into()]).await?
            }
            Progress::Own { table, id, version } => {
                let sql = format!("SELECT {id} AS aggregate_id, {version} AS version FROM {table} WHERE {id} {{ids}}");
                all_of_ids(tx, &sql, aggregates, []).await?
            }
        };
        Ok(rows.into_iter().map(|row| (row.aggregate_id, row.version)).collect())
    }

    async fn write(&self, tx: &Transaction, plan: &Plan) -> Result<(), Error> {
        if !plan.reached.is_empty() && self.handler.progress() == Progress::Inbox {
            let rows = plan.reached.iter().map(|(id, version)| vec![self.topic.into(), (*id).into(), (*version).into()]).collect();
            let columns = [("topic", Type::Text), ("aggregate_id", Type::Uuid), ("version", Type::BigInt)];
            insert_rows(tx, "inbox", &columns, "ON CONFLICT (topic, aggregate_id) DO UPDATE SET version = excluded.version", rows).await?;
        }
        if plan.clears_parked {
            // What has been applied by now, whichever way it came.
            let versions = match self.handler.progress() {
                Progress::Inbox => {
                    "SELECT i.version FROM inbox i WHERE i.topic = inbox_parked.topic AND i.aggregate_id = inbox_parked.aggregate_id".to_owned()
                }
                Progress::Own { table, id, version } => format!("SELECT o.{version} FROM {table} o WHERE o.{id} = inbox_parked.aggregate_id"),
            };
            let sql = format!("DELETE FROM inbox_parked WHERE aggregate_id {{ids}} AND topic = $2 AND version <= ({versions})");
            execute_of_ids(tx, &sql, &plan.aggregates, [self.topic.into()]).await?;
        }
        if !plan.park.is_empty() {
            let now_us = now_us();
            let rows = plan.park.iter().map(|event| values(self.topic, event).chain([now_us.into()]).collect()).collect();
            insert_rows(tx, "inbox_parked", &[COLUMNS, &[("parked_us", Type::BigInt)]].concat(), ONCE, rows).await?;
        }
        bury(tx, self.topic, &plan.bury, "an earlier event of the aggregate is a dead letter").await
    }

    /// Gives an event up: it becomes a dead letter with every later one of its aggregate, while others go on. Unless it was applied after all, by
    /// another replica.
    pub async fn dead_letter(&self, event: &Event, error: &str) -> Result<bool, Error> {
        let tx = self.database.begin().await?;
        take_turns(&tx, self.topic, &[event.aggregate_id]).await?;
        let reached = self.reached(&tx, &[event.aggregate_id]).await?.get(&event.aggregate_id).copied().unwrap_or_default();
        if event.version <= reached {
            return Ok(false);
        }
        bury(&tx, self.topic, std::slice::from_ref(event), error).await?;
        let key = || [Value::from(self.topic), event.aggregate_id.into(), event.version.into()];
        let sql = format!("{SELECT} FROM inbox_parked WHERE topic = $1 AND aggregate_id = $2 AND version >= $3");
        let behind: Vec<Row> = all(&tx, &sql, key()).await?;
        let behind: Vec<Event> = behind.into_iter().map(Row::event).collect::<Result<_, _>>()?;
        bury(&tx, self.topic, &behind, "an earlier event of the aggregate is a dead letter").await?;
        execute(&tx, "DELETE FROM inbox_parked WHERE topic = $1 AND aggregate_id = $2 AND version >= $3", key()).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Aggregates with events that have been parked for a while: the gap before them does not close by itself.
    pub async fn stuck(&self, parked_before_us: i64, limit: u32) -> Result<Vec<Uuid>, Error> {
        let sql = format!("SELECT DISTINCT aggregate_id FROM inbox_parked WHERE topic = $1 AND parked_us < $2 LIMIT {limit}");
        let rows: Vec<Aggregate> = all(self.database.reader(), &sql, [self.topic.into(), parked_before_us.into()]).await?;
        Ok(rows.into_iter().map(|row| row.aggregate_id).collect())
    }

    /// What is parked of an aggregate, and the version that it has reached.
    pub async fn parked_of(&self, aggregate_id: Uuid) -> Result<(Vec<Event>, i64), Error> {
        let tx = self.database.begin().await?;
        let sql = format!("{SELECT} FROM inbox_parked WHERE topic = $1 AND aggregate_id = $2 ORDER BY version");
        let rows: Vec<Row> = all(&tx, &sql, [self.topic.into(), aggregate_id.into()]).await?;
        let reached = self.reached(&tx, &[aggregate_id]).await?.get(&aggregate_id).copied().unwrap_or_default();
        tx.rollback().await?;
        Ok((rows.into_iter().map(Row::event).collect::<Result<_, _>>()?, reached))
    }

    /// How far the group has read the event store.
    pub async fn cursor(&self) -> Result<Cursor, Error> {
        cursor(self.database, self.topic, self.group).await
    }

    /// Moves the group's cursor forward to a place up to which everything is applied; back it never goes.
    pub async fn advance(&self, from: Cursor, to: Cursor) -> Result<bool, Error> {
        if to <= from {
            return Ok(false);
        }
        let tx = self.database.begin().await?;
        let moved = self.step(&tx, Step { from, to }).await?;
        tx.commit().await?;
        Ok(moved)
    }
}

/// How far a reader has read the event store of a topic.
pub async fn cursor(database: &Database, topic: &str, reader: &str) -> Result<Cursor, Error> {
    let sql = "SELECT incarnation, cluster, xid, seq FROM bus_offsets WHERE topic = $1 AND consumer_group = $2";
    Ok(one(database.reader(), sql, [topic.into(), reader.into()]).await?.unwrap_or_default())
}

/// Waits until nobody else applies, buries or retries events of these aggregates. SQLite has one writer.
pub(crate) async fn take_turns(tx: &Transaction, topic: &str, aggregates: &[Uuid]) -> Result<(), Error> {
    take(tx, topic, aggregates.iter().map(|id| id.as_u128() % SHARDS).collect()).await
}

/// As [`take_turns`], of all aggregates.
pub(crate) async fn hold_all_turns(tx: &Transaction, topic: &str) -> Result<(), Error> {
    take(tx, topic, (0..SHARDS).collect()).await
}

async fn take(tx: &Transaction, topic: &str, mut shards: Vec<u128>) -> Result<(), Error> {
    if tx.get_database_backend() != DbBackend::Postgres || shards.is_empty() {
        return Ok(());
    }
    shards.sort_unstable();
    shards.dedup();
    // Tables that are made anew have turns of their own: see `replay`.
    let turns = format!("hashtext(concat($1, CASE current_schema() WHEN '{}' THEN ' anew' END))", shadow::SCHEMA);
    // In this order, so that two that want several never wait for each other in a circle.
    let locks = shards.iter().map(|shard| format!("pg_advisory_xact_lock({turns}, {shard})")).collect::<Vec<_>>().join(", ");
    execute(tx, &format!("SELECT {locks}"), [topic.into()]).await.map(|_| ())
}

/// What is to be done with delivered events.
#[derive(Debug, Default)]
struct Plan {
    aggregates: Vec<Uuid>,
    /// Of each aggregate its next ones, without a gap.
    apply: Vec<Event>,
    /// The versions after that.
    reached: Vec<(Uuid, i64)>,
    park: Vec<Event>,
    bury: Vec<Event>,
    duplicates: usize,
    /// Whether there may be something parked that is done with.
    clears_parked: bool,
}

impl Plan {
    fn make(events: &[Event], parked: Vec<Event>, reached: &HashMap<Uuid, i64>, dead: &HashMap<Uuid, i64>, clears_parked: bool) -> Self {
        let mut plan = Self { aggregates: ids_of(events), clears_parked, ..Self::default() };
        // By aggregate in the order in which they come, then by version.
        let mut places: HashMap<Uuid, usize> = HashMap::new();
        let mut streams: Vec<BTreeMap<i64, (Event, bool)>> = Vec::new();
        let delivered = events.iter().cloned().map(|event| (event, false));
        for (event, was_parked) in delivered.chain(parked.into_iter().map(|event| (event, true))) {
            let place = *places.entry(event.aggregate_id).or_insert_with(|| {
                streams.push(BTreeMap::new());
                streams.len() - 1
            });
            match streams[place].entry(event.version) {
                Entry::Vacant(free) => drop(free.insert((event, was_parked))),
                // Delivered twice at once, or parked already: what was delivered first counts.
                Entry::Occupied(mut known) => {
                    known.get_mut().1 |= was_parked;
                    plan.duplicates += 1;
                }
            }
        }
        for stream in streams {
            let Some(aggregate_id) = stream.values().next().map(|(event, _)| event.aggregate_id) else { continue };
            let before = reached.get(&aggregate_id).copied().unwrap_or_default();
            // An event before it is as alive as any.
            let (mut version, first_dead) = (before, dead.get(&aggregate_id).copied().unwrap_or(i64::MAX));
            for (event, was_parked) in stream.into_values() {
                if event.version <= version {
                    plan.duplicates += usize::from(!was_parked);
                } else if event.version >= first_dead {
                    plan.bury.push(event);
                } else if event.version == version + 1 {
                    version += 1;
                    plan.apply.push(event);
                } else if !was_parked {
                    plan.park.push(event);
                }
            }
            if version > before {
                plan.reached.push((aggregate_id, version));
            }
        }
        plan
    }
}

impl Row {
    fn event(self) -> Result<Event, Error> {
        let hash = |bytes: Vec<u8>| bytes.try_into().map_err(|_| Error::corrupt("a hash that has not 32 bytes"));
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

fn ids_of(events: &[Event]) -> Vec<Uuid> {
    let mut ids: Vec<Uuid> = events.iter().map(|event| event.aggregate_id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn values(topic: &'static str, event: &Event) -> impl Iterator<Item = Value> {
    let values: [Value; 11] = [
        topic.into(),
        event.aggregate_id.into(),
        event.version.into(),
        event.id.into(),
        event.kind.clone().into(),
        event.payload.clone().into(),
        event.correlation_id.clone().into(),
        event.causation_id.into(),
        event.recorded_us.into(),
        event.digest.to_vec().into(),
        event.hash.to_vec().into(),
    ];
    values.into_iter()
}

async fn bury(tx: &Transaction, topic: &'static str, events: &[Event], error: &str) -> Result<(), Error> {
    let now_us = now_us();
    let rows = events.iter().map(|event| values(topic, event).chain([error.into(), now_us.into()]).collect()).collect();
    insert_rows(tx, "dead_events", &[COLUMNS, &[("error", Type::Text), ("dead_us", Type::BigInt)]].concat(), ONCE, rows).await.map(|_| ())
}

/// Now, Unix microseconds.
#[allow(clippy::disallowed_methods, reason = "this crate stands below the one with the clock")]
pub(crate) fn now_us() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::GENESIS;

    fn event(aggregate: u128, version: i64) -> Event {
        Event {
            id: Uuid::from_u128(aggregate * 1000 + version as u128),
            aggregate_id: Uuid::from_u128(aggregate),
            version,
            kind: "HAPPENED".to_owned(),
            payload: Vec::new(),
            digest: GENESIS,
            correlation_id: String::new(),
            causation_id: None,
            recorded_us: 0,
            hash: GENESIS,
        }
    }

    fn versions(events: &[Event]) -> Vec<(u128, i64)> {
        events.iter().map(|event| (event.aggregate_id.as_u128(), event.version)).collect()
    }

    #[test]
    fn of_each_aggregate_the_next_ones_are_applied_and_the_rest_waits() {
        let reached = HashMap::from([(Uuid::from_u128(1), 2), (Uuid::from_u128(3), 7)]);
        let delivered = [event(2, 1), event(1, 4), event(1, 3), event(1, 2), event(1, 3), event(2, 4), event(3, 8), event(3, 9)];
        let plan = Plan::make(&delivered, vec![event(1, 5), event(1, 7), event(2, 2)], &reached, &HashMap::from([(Uuid::from_u128(3), 9)]), true);
        assert_eq!(versions(&plan.apply), [(2, 1), (2, 2), (1, 3), (1, 4), (1, 5), (3, 8)]);
        assert_eq!(versions(&plan.park), [(2, 4)], "what is parked already stays where it is");
        assert_eq!(versions(&plan.bury), [(3, 9)], "and not what comes before the dead one");
        assert_eq!(plan.reached, [(Uuid::from_u128(2), 2), (Uuid::from_u128(1), 5), (Uuid::from_u128(3), 8)]);
        assert_eq!(plan.duplicates, 2);
    }
}
