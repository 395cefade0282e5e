//! The table `sagas`: the highest epoch that each saga has called with.

use lastro_database::Error;
use lastro_database::rows::{Type, all_of_ids, insert_rows};
use sea_orm::{ConnectionTrait, DbBackend, FromQueryResult};
use uuid::Uuid;

/// A saga, and an epoch of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromQueryResult)]
pub struct SagaEpoch {
    pub id: Uuid,
    pub epoch: i64,
}

/// Of these sagas, those that somebody else has locked at this moment. The others stay locked until the end of the transaction, as far as they are there.
pub async fn locked_by_others(on: &impl ConnectionTrait, ids: &[Uuid]) -> Result<Vec<Uuid>, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        id: Uuid,
    }
    if ids.is_empty() || on.get_database_backend() == DbBackend::Sqlite {
        return Ok(Vec::new());
    }
    let locked: Vec<Found> = all_of_ids(on, "SELECT id FROM sagas WHERE id {ids} ORDER BY id FOR UPDATE SKIP LOCKED", ids, []).await?;
    let there: Vec<Found> = all_of_ids(on, "SELECT id FROM sagas WHERE id {ids}", ids, []).await?;
    Ok(there.into_iter().map(|found| found.id).filter(|id| locked.iter().all(|found| found.id != *id)).collect())
}

/// Raises the epochs of sagas, which must be sorted by id and each be there once; what they are then. In a transaction they stay locked until its end.
pub async fn raise(on: &impl ConnectionTrait, epochs: &[SagaEpoch]) -> Result<Vec<SagaEpoch>, Error> {
    if epochs.is_empty() {
        return Ok(Vec::new());
    }
    // One that is lower than what is stored changes nothing, and locks the row all the same.
    let conflict = "ON CONFLICT (id) DO UPDATE SET epoch = CASE WHEN excluded.epoch > sagas.epoch THEN excluded.epoch ELSE sagas.epoch END";
    let rows = epochs.iter().map(|one| vec![one.id.into(), one.epoch.into()]).collect();
    insert_rows(on, "sagas", &[("id", Type::Uuid), ("epoch", Type::BigInt)], conflict, rows).await?;
    let ids: Vec<Uuid> = epochs.iter().map(|one| one.id).collect();
    all_of_ids(on, "SELECT id, epoch FROM sagas WHERE id {ids}", &ids, []).await
}
