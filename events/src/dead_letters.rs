//! Dead letters: events that could not be applied, with everything later of their aggregates. An operator lists them and has them tried again.

use lastro_database::{Database, Error, all, execute};
use sea_orm::{FromQueryResult, Value};
use uuid::Uuid;

use crate::inbox::take_turns;

/// An event that could not be applied.
#[derive(Debug, Clone, PartialEq, Eq, FromQueryResult)]
pub struct DeadLetter {
    /// The topic that it came from.
    pub topic: String,
    /// Whose stream it is in.
    pub aggregate_id: Uuid,
    /// Its place there.
    pub version: i64,
    /// Its name.
    pub kind: String,
    /// The request that led to it.
    pub correlation_id: String,
    /// What applying it ended with.
    pub error: String,
    /// When it was given up, Unix microseconds.
    pub dead_us: i64,
}

/// Up to `limit` dead letters after one, by topic, aggregate and version.
pub async fn list(database: &Database, after: Option<(&str, Uuid, i64)>, limit: u32) -> Result<Vec<DeadLetter>, Error> {
    let (topic, aggregate_id, version) = after.unwrap_or(("", Uuid::nil(), 0));
    let sql = format!(
        "SELECT topic, aggregate_id, version, kind, correlation_id, error, dead_us FROM dead_events \
         WHERE (topic, aggregate_id, version) > ($1, $2, $3) ORDER BY topic, aggregate_id, version LIMIT {limit}"
    );
    all(database.reader(), &sql, [topic.into(), aggregate_id.into(), version.into()]).await
}

/// Has the dead letters of an aggregate tried again, all of them in order: the consumer, or its next start, finds them within seconds. How many.
pub async fn retry(database: &Database, topic: &str, aggregate_id: Uuid) -> Result<u64, Error> {
    const COLUMNS: &str = "topic, aggregate_id, version, id, kind, payload, correlation_id, causation_id, recorded_us, digest, hash";
    let tx = database.begin().await?;
    // The consumer, if it is at this aggregate just now, ends first: it must not bury again what is taken out here.
    take_turns(&tx, topic, &[aggregate_id]).await?;
    let key = || [Value::from(topic), aggregate_id.into()];
    let parked = format!(
        "INSERT INTO inbox_parked ({COLUMNS}, parked_us) SELECT {COLUMNS}, 0 FROM dead_events WHERE topic = $1 AND aggregate_id = $2 \
         ON CONFLICT (topic, aggregate_id, version) DO NOTHING"
    );
    execute(&tx, &parked, key()).await?;
    let moved = execute(&tx, "DELETE FROM dead_events WHERE topic = $1 AND aggregate_id = $2", key()).await?;
    tx.commit().await?;
    Ok(moved)
}
