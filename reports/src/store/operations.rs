//! Transactions that have not ended, with how they were submitted.

use std::collections::HashMap;

use lastro_database::rows::{Type, all_of_ids, execute_of_ids, insert_rows, update_rows};
use lastro_database::{Error, Transaction};
use lastro_events::inbox::Progress;
use sea_orm::{ConnectionTrait, FromQueryResult};
use uuid::Uuid;

/// How far each transaction has come: here while it has not ended, at its first entry once it is settled. So that nothing grows by a row for
/// each that is settled.
pub const PROGRESS: Progress = Progress::Own { table: "operation_versions", id: "id", version: "version" };

/// A transaction that has not ended, or has ended without a posting.
#[derive(Debug, Clone, PartialEq, Eq, FromQueryResult)]
pub struct Operation {
    /// Its id.
    pub id: Uuid,
    /// Of its last event.
    pub version: i64,
    /// The payload of its first event; empty where it has ended.
    pub submitted: Vec<u8>,
    /// When that was recorded, Unix microseconds.
    pub accepted_us: i64,
    /// Whether it has ended.
    pub has_ended: bool,
}

#[derive(FromQueryResult)]
struct Version {
    id: Uuid,
    version: i64,
}

/// Those of these that have not ended, or have without a posting.
pub async fn get(tx: &Transaction, ids: &[Uuid]) -> Result<HashMap<Uuid, Operation>, Error> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = "SELECT id, version, submitted, accepted_us, has_ended FROM operations WHERE id {ids}";
    let rows: Vec<Operation> = all_of_ids(tx, sql, ids, []).await?;
    Ok(rows.into_iter().map(|row| (row.id, row)).collect())
}

/// Keeps these as they are now.
pub async fn keep(tx: &Transaction, operations: Vec<Operation>) -> Result<(), Error> {
    let columns =
        [("id", Type::Uuid), ("version", Type::BigInt), ("submitted", Type::Bytes), ("accepted_us", Type::BigInt), ("has_ended", Type::Bool)];
    let row = |operation: Operation| {
        let Operation { id, version, submitted, accepted_us, has_ended } = operation;
        vec![id.into(), version.into(), submitted.into(), accepted_us.into(), has_ended.into()]
    };
    let conflict = "ON CONFLICT (id) DO UPDATE SET version = excluded.version, submitted = excluded.submitted, has_ended = excluded.has_ended";
    insert_rows(tx, "operations", &columns, conflict, operations.into_iter().map(row).collect()).await.map(|_| ())
}

/// Forgets these: their entries tell how far they have come.
pub async fn delete(tx: &Transaction, ids: &[Uuid]) -> Result<(), Error> {
    if ids.is_empty() {
        return Ok(());
    }
    execute_of_ids(tx, "DELETE FROM operations WHERE id {ids}", ids, []).await.map(|_| ())
}

/// Notes that settled transactions have had another event.
pub async fn set_settled_versions(tx: &Transaction, versions: Vec<(Uuid, i64)>) -> Result<(), Error> {
    let (columns, expected) = ([("id", Type::Uuid), ("version", Type::BigInt)], versions.len() as u64);
    let rows = versions.into_iter().map(|(id, version)| vec![id.into(), version.into()]).collect();
    let condition = "t.transaction_id = u.id AND t.posting = 0";
    let changed = update_rows(tx, "entries", &columns, ("operation_version = u.version", condition), rows).await?;
    Error::expect_rows(expected, changed)
}

/// How far transactions have come, as far as they are known.
pub async fn versions(on: &impl ConnectionTrait, ids: &[Uuid]) -> Result<Vec<(Uuid, i64)>, Error> {
    let rows: Vec<Version> = all_of_ids(on, "SELECT id, version FROM operation_versions WHERE id {ids}", ids, []).await?;
    Ok(rows.into_iter().map(|row| (row.id, row.version)).collect())
}
