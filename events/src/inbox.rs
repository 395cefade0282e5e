//! The inbox: applies the events of each aggregate exactly once and in order, whatever order they come in. It keeps the version that
//! each aggregate has reached in the consumer's own database, in the transaction of the effect; what is ahead is parked until the gap
//! closes, and what keeps failing is dead-lettered together with everything later of its aggregate.

use lastro_database::{Database, Error, Transaction, execute, one};
use sea_orm::{ConnectionTrait as _, DbBackend, FromQueryResult, Value};
use uuid::Uuid;

use crate::consumer::{Failure, Handler};
use crate::event::Event;

/// What became of a delivered event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was applied, and so many parked ones after it.
    Applied {
        /// Events that were waiting for this one.
        parked: u32,
    },
    /// It was applied before.
    Duplicate,
    /// It is ahead of its aggregate's stream and waits.
    Parked,
    /// An earlier event of its aggregate is a dead letter, so this one is too.
    Dead,
}

#[derive(FromQueryResult)]
struct Reached {
    version: i64,
}

#[derive(FromQueryResult)]
struct Parked {
    id: Uuid,
    kind: String,
    payload: Vec<u8>,
    correlation_id: String,
    causation_id: Option<Uuid>,
    recorded_us: i64,
    digest: Vec<u8>,
    hash: Vec<u8>,
}

/// Applies one delivered event in one transaction.
pub async fn apply<H: Handler>(database: &Database, topic: &'static str, event: &Event, handler: &H) -> Result<Outcome, Failure> {
    let tx = database.begin().await?;
    let reached = lock(&tx, topic, event.aggregate_id).await?;
    let outcome = if event.version <= reached {
        Outcome::Duplicate
    } else if is_dead(&tx, topic, event.aggregate_id).await? {
        bury(&tx, topic, event, "an earlier event of the aggregate is a dead letter").await?;
        Outcome::Dead
    } else if event.version > reached + 1 {
        park(&tx, topic, event).await?;
        Outcome::Parked
    } else {
        handler.apply(&tx, event).await?;
        let mut version = event.version;
        let mut applied = vec![event.clone()];
        while let Some(next) = take_parked(&tx, topic, event.aggregate_id, version + 1).await? {
            handler.apply(&tx, &next).await?;
            version = next.version;
            applied.push(next);
        }
        let sql = "UPDATE inbox SET version = $3 WHERE topic = $1 AND aggregate_id = $2";
        execute(&tx, sql, [topic.into(), event.aggregate_id.into(), version.into()]).await?;
        tx.commit().await.map_err(Error::from)?;
        applied.iter().for_each(|event| handler.applied(event));
        return Ok(Outcome::Applied { parked: applied.len() as u32 - 1 });
    };
    tx.commit().await.map_err(Error::from)?;
    Ok(outcome)
}

/// Gives an event up: it becomes a dead letter, and so will every later one of its aggregate, while others go on.
pub async fn dead_letter(database: &Database, topic: &'static str, event: &Event, error: &str) -> Result<(), Error> {
    let tx = database.begin().await?;
    bury(&tx, topic, event, error).await?;
    Ok(tx.commit().await?)
}

/// The version that an aggregate has reached; holds the aggregate until the transaction ends.
async fn lock(tx: &Transaction, topic: &'static str, aggregate_id: Uuid) -> Result<i64, Error> {
    let sql = "INSERT INTO inbox (topic, aggregate_id, version) VALUES ($1, $2, 0) ON CONFLICT (topic, aggregate_id) DO NOTHING";
    execute(tx, sql, [topic.into(), aggregate_id.into()]).await?;
    let for_update = if tx.get_database_backend() == DbBackend::Postgres { " FOR UPDATE" } else { "" };
    let sql = format!("SELECT version FROM inbox WHERE topic = $1 AND aggregate_id = $2{for_update}");
    let reached: Option<Reached> = one(tx, &sql, [topic.into(), aggregate_id.into()]).await?;
    Ok(reached.map_or(0, |reached| reached.version))
}

async fn is_dead(tx: &Transaction, topic: &'static str, aggregate_id: Uuid) -> Result<bool, Error> {
    let sql = "SELECT version FROM dead_events WHERE topic = $1 AND aggregate_id = $2 ORDER BY version LIMIT 1";
    Ok(one::<Reached>(tx, sql, [topic.into(), aggregate_id.into()]).await?.is_some())
}

fn columns(topic: &'static str, event: &Event) -> Vec<Value> {
    vec![
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
    ]
}

async fn park(tx: &Transaction, topic: &'static str, event: &Event) -> Result<(), Error> {
    let sql = "INSERT INTO inbox_parked (topic, aggregate_id, version, id, kind, payload, correlation_id, causation_id, recorded_us, digest, hash) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (topic, aggregate_id, version) DO NOTHING";
    execute(tx, sql, columns(topic, event)).await.map(|_| ())
}

async fn bury(tx: &Transaction, topic: &'static str, event: &Event, error: &str) -> Result<(), Error> {
    let sql = "INSERT INTO dead_events (topic, aggregate_id, version, id, kind, payload, correlation_id, causation_id, recorded_us, digest, hash, error) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT (topic, aggregate_id, version) DO NOTHING";
    let values = columns(topic, event).into_iter().chain([error.into()]);
    execute(tx, sql, values).await.map(|_| ())
}

async fn take_parked(tx: &Transaction, topic: &'static str, aggregate_id: Uuid, version: i64) -> Result<Option<Event>, Error> {
    let key = || [Value::from(topic), aggregate_id.into(), version.into()];
    let sql = "SELECT id, kind, payload, correlation_id, causation_id, recorded_us, digest, hash FROM inbox_parked \
               WHERE topic = $1 AND aggregate_id = $2 AND version = $3";
    let Some(row) = one::<Parked>(tx, sql, key()).await? else {
        return Ok(None);
    };
    execute(tx, "DELETE FROM inbox_parked WHERE topic = $1 AND aggregate_id = $2 AND version = $3", key()).await?;
    let hash = |bytes: Vec<u8>| bytes.try_into().map_err(|_| Error::corrupt("a hash that has not 32 bytes"));
    Ok(Some(Event {
        id: row.id,
        aggregate_id,
        version,
        kind: row.kind,
        payload: row.payload,
        digest: hash(row.digest)?,
        correlation_id: row.correlation_id,
        causation_id: row.causation_id,
        recorded_us: row.recorded_us,
        hash: hash(row.hash)?,
    }))
}
