//! The table `sagas`: the highest epoch that each saga has called with.

use lastro_database::group_commit::Lock;
use lastro_database::{Error, all, one};
use sea_orm::sea_query::ArrayType;
use sea_orm::{ConnectionTrait, DbBackend, FromQueryResult, Value};
use uuid::Uuid;

/// A saga, and an epoch of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromQueryResult)]
pub struct SagaEpoch {
    pub id: Uuid,
    pub epoch: i64,
}

/// Raises the epochs of sagas, which must be sorted by id and each be there once; what they are then. In a transaction they stay locked until its end. With
/// [`Lock::Skip`] those that somebody else has locked are left out.
pub async fn raise(on: &impl ConnectionTrait, sagas: &[SagaEpoch], lock: Lock) -> Result<Vec<SagaEpoch>, Error> {
    if sagas.is_empty() {
        return Ok(Vec::new());
    }
    if on.get_database_backend() == DbBackend::Sqlite {
        let mut raised = Vec::with_capacity(sagas.len());
        for saga in sagas {
            raised.extend(one::<SagaEpoch>(on, RAISE_ONE, [saga.id.into(), saga.epoch.into()]).await?);
        }
        return Ok(raised);
    }
    let ids = sagas.iter().map(|saga| Value::from(saga.id)).collect();
    let epochs = sagas.iter().map(|saga| Value::from(saga.epoch)).collect();
    let arrays = [Value::Array(ArrayType::Uuid, Some(Box::new(ids))), Value::Array(ArrayType::BigInt, Some(Box::new(epochs)))];
    let sql = match lock {
        Lock::Wait => RAISE_MANY,
        Lock::Skip => RAISE_MANY_THAT_ARE_FREE,
    };
    all(on, sql, arrays).await
}

// One that is lower than what is stored changes nothing, and locks the row all the same.
const RAISE_ONE: &str = "INSERT INTO sagas (id, epoch) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET epoch = max(sagas.epoch, excluded.epoch) \
                         RETURNING id, epoch";
const RAISE_MANY: &str = "INSERT INTO sagas (id, epoch) SELECT u.id, u.epoch FROM unnest($1::uuid[], $2::bigint[]) AS u (id, epoch) ORDER BY u.id \
                          ON CONFLICT (id) DO UPDATE SET epoch = greatest(sagas.epoch, excluded.epoch) RETURNING id, epoch";
const RAISE_MANY_THAT_ARE_FREE: &str = "WITH known AS (SELECT id FROM sagas WHERE id = ANY($1::uuid[])), \
                                        locked AS (SELECT id FROM sagas WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE SKIP LOCKED) \
                                        INSERT INTO sagas (id, epoch) SELECT u.id, u.epoch FROM unnest($1::uuid[], $2::bigint[]) AS u (id, epoch) \
                                        WHERE u.id NOT IN (SELECT id FROM known) OR u.id IN (SELECT id FROM locked) ORDER BY u.id \
                                        ON CONFLICT (id) DO UPDATE SET epoch = greatest(sagas.epoch, excluded.epoch) RETURNING id, epoch";
