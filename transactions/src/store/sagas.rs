//! The table `sagas`: of each saga that has paid, or has cancelled its payment, the highest epoch that it has called with.

use lastro_database::group_commit::Lock;
use lastro_database::{Error, one};
use sea_orm::{ConnectionTrait, FromQueryResult};
use uuid::Uuid;

/// A saga, and the epoch of the lease of whoever calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SagaEpoch {
    pub id: Uuid,
    pub epoch: i64,
}

/// A saga as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromQueryResult)]
pub struct Saga {
    pub id: Uuid,
    /// The highest that it has called with.
    pub epoch: i64,
    /// Its payment is cancelled: it pays no more.
    pub cancelled: bool,
}

/// Raises epochs on PostgreSQL: of the sagas `$1`, which must be sorted and each be there once, to `$2`. They stay locked until the end of the transaction.
/// With [`Lock::Skip`] those that somebody else has locked are left out.
pub(in crate::store) const fn raise_many(lock: Lock) -> &'static str {
    match lock {
        Lock::Wait => {
            "INSERT INTO sagas (id, epoch) SELECT u.id, u.epoch FROM unnest($1::uuid[], $2::bigint[]) AS u (id, epoch) ORDER BY u.id \
             ON CONFLICT (id) DO UPDATE SET epoch = greatest(sagas.epoch, excluded.epoch) RETURNING id, epoch, cancelled"
        }
        Lock::Skip => {
            "WITH known AS (SELECT id FROM sagas WHERE id = ANY($1)), \
             locked AS (SELECT id FROM sagas WHERE id = ANY($1) ORDER BY id FOR UPDATE SKIP LOCKED) \
             INSERT INTO sagas (id, epoch) SELECT u.id, u.epoch FROM unnest($1::uuid[], $2::bigint[]) AS u (id, epoch) \
             WHERE u.id NOT IN (SELECT id FROM known) OR u.id IN (SELECT id FROM locked) ORDER BY u.id \
             ON CONFLICT (id) DO UPDATE SET epoch = greatest(sagas.epoch, excluded.epoch) RETURNING id, epoch, cancelled"
        }
    }
}

/// Raises the epoch of a saga; both databases read it. `$3` is whether its payment is cancelled from now on.
pub(in crate::store) const RAISE: &str = "INSERT INTO sagas (id, epoch, cancelled) VALUES ($1, $2, $3) ON CONFLICT (id) DO UPDATE SET \
                                epoch = CASE WHEN excluded.epoch > sagas.epoch THEN excluded.epoch ELSE sagas.epoch END, \
                                cancelled = sagas.cancelled OR (excluded.cancelled AND excluded.epoch >= sagas.epoch) RETURNING id, epoch, cancelled";

/// Raises the epoch of a saga; as it is then.
pub async fn raise(on: &impl ConnectionTrait, saga: SagaEpoch) -> Result<Saga, Error> {
    run(on, saga, false).await
}

/// Raises the epoch of a saga and cancels its payment, unless the epoch is lower than one before; as it is then.
pub async fn cancel(on: &impl ConnectionTrait, saga: SagaEpoch) -> Result<Saga, Error> {
    run(on, saga, true).await
}

async fn run(on: &impl ConnectionTrait, saga: SagaEpoch, cancels: bool) -> Result<Saga, Error> {
    let found = one(on, RAISE, [saga.id.into(), saga.epoch.into(), cancels.into()]).await?;
    found.ok_or_else(|| Error::corrupt("a saga that is not there after it was written"))
}
