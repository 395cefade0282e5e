//! What the migrations of every service's database have in common: each service has its own migrator, in its own crate. Tables differ between
//! SQLite and PostgreSQL only in the names of types, which [`Dialect`] fills in; where more differs, the two statements stand side by side.
//! Migrations expand, then contract.

mod dialect;
mod events;

use std::marker::PhantomData;
use std::pin::Pin;

use async_trait::async_trait;

pub use dialect::{Dialect, lift_timeouts, run_statements};
pub use events::{
    consumer_tables, event_table, publisher_tables, reader_tables, relay_tables, reported_event_table, upgrade_publisher_tables,
    upgrade_reader_tables,
};
use lastro_database::{Database, Error};
use sea_orm_migration::sea_orm::{DbErr, FromQueryResult};
use sea_orm_migration::{MigrationName, MigrationTrait, MigratorTrait, SchemaManager};

type Future<T> = Pin<Box<dyn std::future::Future<Output = Result<T, Error>> + Send>>;

/// The migrator of one service's database, whatever its type is.
#[derive(Clone, Copy)]
pub struct Migrator {
    run: fn(Database) -> Future<()>,
    missing: fn(Database) -> Future<Vec<String>>,
}

impl Migrator {
    /// Of a sea-orm migrator.
    pub const fn of<M: MigratorTrait>() -> Self {
        Self {
            run: |database| Box::pin(async move { run::<M>(&database).await }),
            missing: |database| Box::pin(async move { missing::<M>(&database).await }),
        }
    }

    /// Brings a database to the newest version. Two that try at once take turns.
    pub async fn run(&self, database: &Database) -> Result<(), Error> {
        (self.run)(database.clone()).await
    }

    /// The migrations that a database lacks; those that it has beyond ours are of a newer version, and do no harm. Only reads.
    pub async fn missing(&self, database: &Database) -> Result<Vec<String>, Error> {
        (self.missing)(database.clone()).await
    }
}

/// The migrations of a migrator, each in one transaction, on SQLite too: one that is interrupted, by a crash or a full disk, is as if it had not begun.
struct Whole<M>(PhantomData<M>);

impl<M: MigratorTrait> MigratorTrait for Whole<M> {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        M::migrations().into_iter().map(|migration| Box::new(InTransaction(migration)) as Box<dyn MigrationTrait>).collect()
    }
}

struct InTransaction(Box<dyn MigrationTrait>);

impl MigrationName for InTransaction {
    fn name(&self) -> &str {
        self.0.name()
    }
}

#[async_trait]
impl MigrationTrait for InTransaction {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        self.0.up(manager).await
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

async fn missing<M: MigratorTrait>(database: &Database) -> Result<Vec<String>, Error> {
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

/// As [`lock`], of whoever makes the tables of a service anew. None where somebody else does.
pub async fn try_lock_replay(database: &Database) -> Result<Option<Lock>, Error> {
    let pool = database.postgres().ok_or_else(|| Error::corrupt("only PostgreSQL has advisory locks"))?;
    let mut session = pool.acquire().await?;
    let is_free: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(LOCK + 1).fetch_one(&mut *session).await?;
    Ok(is_free.then_some(Lock(session)))
}

async fn run<M: MigratorTrait>(database: &Database) -> Result<(), Error> {
    if !database.is_postgres() {
        return Ok(Whole::<M>::up(database.writer(), None).await?);
    }
    let lock = lock(database).await?;
    let migrated = Whole::<M>::up(database.writer(), None).await;
    lock.release().await;
    Ok(migrated?)
}

/// What a service's role may do with its tables. It reads and writes all rows of those that are not named here, and changes no table.
#[derive(Debug, Clone, Default)]
pub struct Rights {
    /// It reads rows and adds some, and nobody changes one once it is written: a second lock beside the triggers.
    pub append_only: Vec<&'static str>,
    /// It only reads them. What they hold is written by commands, as the owner.
    pub read_only: Vec<&'static str>,
}

/// Whether there is a role of this name, which is not the one that works here.
pub async fn is_other_role(database: &Database, role: &str) -> Result<bool, Error> {
    #[derive(FromQueryResult)]
    struct Role {
        is_there: bool,
    }
    let sql = "SELECT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = $1 AND rolname <> current_user) AS is_there";
    Ok(lastro_database::one::<Role>(database.reader(), sql, [role.into()]).await?.is_some_and(|role| role.is_there))
}

/// What only migrations write.
const MIGRATIONS: &str = "seaql_migrations";

/// Lets a service's role read and write rows, and change no table. The database's owner grants it.
pub async fn grant(database: &Database, role: &str, rights: &Rights) -> Result<(), Error> {
    #[derive(FromQueryResult)]
    struct Table {
        tablename: String,
        is_view: bool,
    }
    #[derive(FromQueryResult)]
    struct Schema {
        name: String,
    }
    let tables = "SELECT tablename::text, false AS is_view FROM pg_tables WHERE schemaname = current_schema() \
                  UNION ALL SELECT viewname::text, true FROM pg_views WHERE schemaname = current_schema() AND viewowner = current_user";
    let tables: Vec<Table> = lastro_database::all(database.writer(), tables, []).await?;
    // Where the tables were made: `public`, unless the URL says otherwise.
    let schema: Option<Schema> = lastro_database::one(database.writer(), "SELECT quote_ident(current_schema()) AS name", []).await?;
    let schema = schema.map_or_else(|| "public".to_owned(), |schema| schema.name);
    let mut statements =
        vec![format!("GRANT USAGE ON SCHEMA {schema} TO {role}"), format!("GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}")];
    // A table that is not there any more, or never was, would be left without its lock and nobody would notice.
    let unknown = rights.append_only.iter().chain(&rights.read_only).find(|named| !tables.iter().any(|table| table.tablename == **named));
    if let Some(unknown) = unknown {
        return Err(Error::corrupt(format!("there is no table {unknown}, whose rights are to be granted")));
    }
    for Table { tablename: table, is_view } in tables {
        let rights = match table.as_str() {
            _ if is_view => "SELECT",
            table if table == MIGRATIONS || rights.read_only.contains(&table) => "SELECT",
            table if rights.append_only.contains(&table) => "SELECT, INSERT",
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
