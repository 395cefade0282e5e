//! The table `sagas`: the highest epoch that each saga has called with.

use lastro_database::Error;
use lastro_database::rows::{Type, all_of_ids, insert_rows};
use sea_orm::{ConnectionTrait, FromQueryResult};
use uuid::Uuid;

/// A saga, and an epoch of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromQueryResult)]
pub struct SagaEpoch {
    pub id: Uuid,
    pub epoch: i64,
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
