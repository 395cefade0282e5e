//! One sea-orm migrator per service database. Tables differ between SQLite and PostgreSQL only in the names of types, which [`Dialect`]
//! fills in; where more differs, the two statements stand side by side. Migrations expand, then contract.

mod customers;
mod dialect;
mod events;
mod transactions;

use lastro_database::{Database, Error};
pub use sea_orm_migration::MigratorTrait;
use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::FromQueryResult;

use dialect::Dialect;

/// The migrations of `lastro_customers`.
pub struct CustomersMigrator;

#[async_trait::async_trait]
impl MigratorTrait for CustomersMigrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(customers::m0001_identity::Migration),
            Box::new(customers::m0002_key_rotation::Migration),
            Box::new(customers::m0003_events_may_repeat::Migration),
            Box::new(customers::m0004_revocations_and_refresh_tokens::Migration),
            Box::new(customers::m0005_refresh_tokens_expire::Migration),
            Box::new(customers::m0006_known_addresses::Migration),
        ]
    }
}

/// The migrations of `lastro_transactions`.
pub struct TransactionsMigrator;

#[async_trait::async_trait]
impl MigratorTrait for TransactionsMigrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(transactions::m0001_ledger::Migration),
            Box::new(transactions::m0002_owners_and_keys::Migration),
            Box::new(transactions::m0003_operations_by_owner::Migration),
        ]
    }
}

/// The migrations that a database lacks; those that it has beyond ours are of a newer version, and do no harm. Only reads.
pub async fn missing<M: MigratorTrait>(database: &Database) -> Result<Vec<String>, Error> {
    #[derive(FromQueryResult)]
    struct Applied {
        version: String,
    }
    let applied: Vec<Applied> = lastro_database::all(database.reader(), "SELECT version FROM seaql_migrations", []).await?;
    let all = M::migrations().into_iter().map(|migration| migration.name().to_owned());
    Ok(all.filter(|name| !applied.iter().any(|applied| applied.version == *name)).collect())
}

/// Any number: it only has to be ours.
const LOCK: i64 = 0x6c61_7374_726f;

/// A database's advisory lock, held by a session of its own: whoever else wants it waits, and gets it when that session ends, however.
pub struct Lock(sqlx::pool::PoolConnection<sqlx::Postgres>);

impl Lock {
    /// Lets the next one in.
    pub async fn release(self) {
        // The session had its timeouts lifted: it does not go back to the pool.
        let _ = self.0.close().await;
    }
}

/// Waits for the lock of a PostgreSQL database.
pub async fn lock(database: &Database) -> Result<Lock, Error> {
    let pool = database.postgres().ok_or_else(|| Error::corrupt("only PostgreSQL has advisory locks"))?;
    let mut session = pool.acquire().await?;
    sqlx::query("SET statement_timeout = 0").execute(&mut *session).await?;
    sqlx::query("SET lock_timeout = 0").execute(&mut *session).await?;
    sqlx::query("SELECT pg_advisory_lock($1)").bind(LOCK).execute(&mut *session).await?;
    Ok(Lock(session))
}

/// Brings a database to the newest version. Two that try at once take turns.
pub async fn run<M: MigratorTrait>(database: &Database) -> Result<(), Error> {
    if !database.is_postgres() {
        return Ok(M::up(database.writer(), None).await?);
    }
    let lock = lock(database).await?;
    let migrated = M::up(database.writer(), None).await;
    lock.release().await;
    Ok(migrated?)
}

/// What nobody changes once it is written. That a service's role may not is a second lock beside the triggers.
const APPEND_ONLY: &[&str] = &["user_events", "operation_events", "postings"];
/// What only the owner writes, by commands.
const READ_ONLY: &[&str] = &["seaql_migrations", "signing_keys"];

/// Lets a service's role read and write rows, and change no table. The database's owner grants it.
pub async fn grant(database: &Database, role: &str) -> Result<(), Error> {
    #[derive(FromQueryResult)]
    struct Table {
        tablename: String,
    }
    #[derive(FromQueryResult)]
    struct Schema {
        name: String,
    }
    let tables: Vec<Table> =
        lastro_database::all(database.writer(), "SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema()", []).await?;
    // Where the tables were made: `public`, unless the URL says otherwise.
    let schema: Option<Schema> = lastro_database::one(database.writer(), "SELECT quote_ident(current_schema()) AS name", []).await?;
    let schema = schema.map_or_else(|| "public".to_owned(), |schema| schema.name);
    let mut statements =
        vec![format!("GRANT USAGE ON SCHEMA {schema} TO {role}"), format!("GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}")];
    for Table { tablename: table } in tables {
        let rights = match table.as_str() {
            table if READ_ONLY.contains(&table) => "SELECT",
            table if APPEND_ONLY.contains(&table) => "SELECT, INSERT",
            _ => "SELECT, INSERT, UPDATE, DELETE",
        };
        statements.push(format!("REVOKE ALL ON {table} FROM {role}"));
        statements.push(format!("GRANT {rights} ON {table} TO {role}"));
    }
    // Together: a service that runs meanwhile must not see a moment without its rights.
    let tx = database.begin().await?;
    for statement in statements {
        lastro_database::execute(&tx, &statement, []).await?;
    }
    Ok(tx.commit().await?)
}
