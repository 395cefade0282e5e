//! The tables of inventory: statements, and nothing else.

pub mod adjustments;
pub mod products;
pub mod reservations;
pub mod sagas;
pub mod stock;

use lastro_database::Error;
use lastro_database::group_commit::Lock;
use sea_orm::{ConnectionTrait, DbBackend};

/// What follows a SELECT that locks. SQLite has one writer, and nothing to lock.
fn for_update(on: &impl ConnectionTrait, lock: Lock) -> &'static str {
    match (on.get_database_backend(), lock) {
        (DbBackend::Postgres, Lock::Skip) => " FOR UPDATE SKIP LOCKED",
        (DbBackend::Postgres, Lock::Wait) => " FOR UPDATE",
        _ => "",
    }
}

/// A hash of 32 bytes, as stored.
fn hash(bytes: Vec<u8>) -> Result<[u8; 32], Error> {
    <[u8; 32]>::try_from(bytes).map_err(|_| Error::corrupt("a hash that has not 32 bytes"))
}
