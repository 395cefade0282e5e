//! One sea-orm migrator per service database. Tables differ between SQLite and PostgreSQL only in the names of types, which [`Dialect`]
//! fills in; where more differs, the two statements stand side by side. Migrations expand, then contract.

mod customers;
mod dialect;
mod events;
mod transactions;

use lastro_database::{Database, Error};
use sea_orm_migration::prelude::*;

use dialect::Dialect;

/// The migrations of `lastro_customers`.
pub struct CustomersMigrator;

#[async_trait::async_trait]
impl MigratorTrait for CustomersMigrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(customers::m0001_identity::Migration)]
    }
}

/// The migrations of `lastro_transactions`.
pub struct TransactionsMigrator;

#[async_trait::async_trait]
impl MigratorTrait for TransactionsMigrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(transactions::m0001_ledger::Migration)]
    }
}

/// Brings a database to the newest version. Two that try at once take turns.
pub async fn run<M: MigratorTrait>(database: &Database) -> Result<(), Error> {
    // Any number: it only has to be ours. Held by the session that has it until it ends.
    const LOCK: i64 = 0x6c61_7374_726f;
    let Some(pool) = database.postgres() else {
        return Ok(M::up(database.writer(), None).await?);
    };
    let mut lock = pool.acquire().await?;
    sqlx::query("SET statement_timeout = 0").execute(&mut *lock).await?;
    sqlx::query("SET lock_timeout = 0").execute(&mut *lock).await?;
    sqlx::query("SELECT pg_advisory_lock($1)").bind(LOCK).execute(&mut *lock).await?;
    let migrated = M::up(database.writer(), None).await;
    // The session had its timeouts lifted: it does not go back to the pool.
    lock.close().await?;
    Ok(migrated?)
}
