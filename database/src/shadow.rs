//! A second set of a service's tables beside those that it works with, to be filled and then put in their place while everybody goes on. On PostgreSQL a
//! schema of the same database, on SQLite a file of its own. Knows no table by name, except the list of migrations, which stays.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sea_orm::{ConnectionTrait as _, FromQueryResult};
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Executor as _, Sqlite};
use tokio::time::{Instant, sleep, timeout};

use crate::{Database, Error, Kind, PostgresUrl, Transaction, all, one};

/// The schema of the second set.
pub const SCHEMA: &str = "lastro_replay";
/// What migrations keep of themselves.
const MIGRATIONS: &str = "seaql_migrations";
/// Who reads holds a lock for as long as a statement takes. The exchange waits for it only so long, shorter than PostgreSQL's `deadlock_timeout` of 1 s, so that
/// no reader is ever taken for one half of a deadlock; then it lets all of them go and tries again.
const LOCK_TIMEOUT: &str = "200ms";
/// Autovacuum gives its lock up to whoever has waited for it for `deadlock_timeout`, 1 s: so the exchange waits longer for the lock that keeps it out.
const VACUUM_TIMEOUT: &str = "10s";
/// While every reader waits for the locks, a connection that was cut off silently is not waited for.
const ALIVE_WITHIN: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// For so long it tries: consumers stand still meanwhile.
const LOCK_MAX: Duration = Duration::from_secs(60);

#[derive(FromQueryResult)]
struct Name {
    name: String,
}

impl Database {
    /// The second set of tables in the database `name`, empty and without a table, whatever was left of an earlier one. They belong to the owner of the first
    /// set, as whom the user of the URL has to be able to act.
    pub async fn make_shadow_postgres(url: &PostgresUrl, name: &str, connections_max: u32) -> Result<Self, Error> {
        let live = Self::connect_postgres(url, name, 1)?;
        let owner = "SELECT tableowner::text AS name FROM pg_tables WHERE schemaname = current_schema() ORDER BY 1 LIMIT 1";
        let owner: Option<Name> = one(live.reader(), owner, []).await?;
        let owner = owner.ok_or_else(|| Error::corrupt("a database without tables"))?.name;
        live.close().await;
        let as_owner = Self::connect_postgres(&url.with_settings(&[("role", &owner)]), name, 1)?;
        drop_schema(as_owner.writer()).await?;
        as_owner.writer().execute_unprepared(&format!("CREATE SCHEMA {SCHEMA}")).await?;
        as_owner.close().await;
        Self::connect_postgres(&url.with_settings(&[("role", &owner), ("search_path", SCHEMA)]), name, connections_max)
    }
}

/// Where the second set is.
#[derive(Debug, Clone)]
pub enum Place {
    /// In [`SCHEMA`], of the same database.
    Schema,
    /// In this file.
    File(PathBuf),
}

/// Nobody writes to the first set while this is held, once the caller has locked what writers lock.
pub struct Held(How);

enum How {
    /// The transaction keeps what the caller has locked; each attempt to exchange is one of its own.
    Postgres {
        tx: Transaction,
        database: Database,
        live: String,
    },
    Sqlite(PoolConnection<Sqlite>),
}

/// Begins the exchange. On SQLite, where one writes at a time, nobody else does from now on. On PostgreSQL writers go on until the caller has locked what they
/// lock, in [`Held::transaction`].
pub async fn hold(live: &Database, place: &Place) -> Result<Held, Error> {
    match place {
        Place::Schema => {
            let tx = live.begin().await?;
            // The caller fills the rest of the second set while this is held.
            let patient = "SET LOCAL lock_timeout = '30s'; SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0";
            tx.execute_unprepared(patient).await?;
            let schema: Option<Name> = one(&tx, "SELECT quote_ident(current_schema()) AS name", []).await?;
            let live_schema = schema.ok_or_else(|| Error::corrupt("a session without a schema"))?.name;
            Ok(Held(How::Postgres { tx, database: live.clone(), live: live_schema }))
        }
        Place::File(file) => {
            let pool = live.sqlite().ok_or_else(|| Error::corrupt("only SQLite keeps its tables in a file"))?;
            let mut connection = pool.acquire().await?;
            sqlx::query("ATTACH DATABASE $1 AS shadow").bind(path_of(file)).execute(&mut *connection).await?;
            // The first set is locked, the second one is not: it is written to until it is complete.
            connection.execute(AssertSqlSafe(format!("BEGIN; DELETE FROM main.{MIGRATIONS} WHERE false"))).await?;
            Ok(Held(How::Sqlite(connection)))
        }
    }
}

fn path_of(file: &Path) -> String {
    file.to_string_lossy().into_owned()
}

impl Held {
    /// On PostgreSQL, to lock what writers lock.
    pub fn transaction(&self) -> Option<&Transaction> {
        match &self.0 {
            How::Postgres { tx, .. } => Some(tx),
            How::Sqlite(_) => None,
        }
    }

    /// Puts the second set in the place of the first one, all of it at once.
    pub async fn exchange(self) -> Result<(), Error> {
        match self.0 {
            How::Postgres { tx, database, live } => {
                exchange_schemas(&database, &live, &tx).await?;
                // Consumers go on, and find the new tables. It is done, whether or not this is answered.
                let _ = tx.rollback().await;
                Ok(())
            }
            How::Sqlite(connection) => copy_file(connection).await,
        }
    }
}

/// Tries until it has all locks. Each attempt is a transaction of its own, and let go whole: one that has once asked for an exclusive lock has a number, and
/// every reader of an event store waits for the oldest transaction that has one.
async fn exchange_schemas(database: &Database, live: &str, holding: &Transaction) -> Result<(), Error> {
    let begun = Instant::now();
    loop {
        let tx = database.begin().await?;
        match exchange_in(&tx, live, holding).await {
            Ok(()) => return Ok(tx.commit().await?),
            Err(error) if error.kind == Kind::Conflict && begun.elapsed() < LOCK_MAX => drop(tx),
            Err(error) => return Err(error),
        }
        sleep(LOCK_PAUSE).await;
    }
}

async fn exchange_in(tx: &Transaction, live: &str, holding: &Transaction) -> Result<(), Error> {
    let names = async |relations: &str| -> Result<Vec<String>, Error> {
        let rows: Vec<Name> = all(tx, relations, []).await?;
        Ok(rows.into_iter().map(|row| row.name).collect())
    };
    // The session's timeout of statements is for what callers wait for. A process that is frozen lets go of its locks.
    tx.execute_unprepared("SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = '5s'").await?;
    let tables =
        format!("SELECT quote_ident(tablename) AS name FROM pg_tables WHERE schemaname = '{SCHEMA}' AND tablename <> '{MIGRATIONS}' ORDER BY 1");
    let tables = names(&tables).await?;
    let views = names(&format!("SELECT quote_ident(viewname) AS name FROM pg_views WHERE schemaname = '{SCHEMA}' ORDER BY 1")).await?;
    if tables.is_empty() {
        return Err(Error::corrupt("a second set of tables without a table"));
    }
    let within = |schema: &str, names: &[String]| names.iter().map(|name| format!("{schema}.{name}")).collect::<Vec<_>>().join(", ");
    // Keeps autovacuum away from both sets, and nobody else.
    let (live_tables, new_tables) = (within(live, &tables), within(SCHEMA, &tables));
    let statement = format!("SET LOCAL lock_timeout = '{VACUUM_TIMEOUT}'; LOCK TABLE {live_tables}, {new_tables} IN SHARE UPDATE EXCLUSIVE MODE");
    tx.execute_unprepared(&statement).await?;
    // Views first, as readers do: PostgreSQL locks what they name along with them.
    let relations = [&views, &tables].into_iter().filter(|names| !names.is_empty()).map(|names| within(live, names)).collect::<Vec<_>>().join(", ");
    tx.execute_unprepared(&format!("SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; LOCK TABLE {relations} IN ACCESS EXCLUSIVE MODE")).await?;
    // From here on nobody writes to the first set, and until here nobody has, if the session that kept consumers from it still lives.
    let alive = timeout(ALIVE_WITHIN, holding.execute_unprepared("SELECT 1")).await;
    let silent = "the session that keeps consumers away does not answer; nothing was exchanged, run it again";
    alive.map_err(|_| Error::given_up(silent))??;
    let newer = names(&format!("SELECT version AS name FROM {live}.{MIGRATIONS} EXCEPT SELECT version FROM {SCHEMA}.{MIGRATIONS}")).await?;
    refuse_newer(&newer)?;
    let mut statements = Vec::new();
    if !views.is_empty() {
        statements.push(format!("DROP VIEW {}", within(live, &views)));
    }
    statements.push(format!("DROP TABLE {live_tables}"));
    statements.extend(tables.iter().map(|table| format!("ALTER TABLE {SCHEMA}.{table} SET SCHEMA {live}")));
    statements.extend(views.iter().map(|view| format!("ALTER VIEW {SCHEMA}.{view} SET SCHEMA {live}")));
    // Fails where anything is left that was not moved.
    statements.push(format!("DROP TABLE {SCHEMA}.{MIGRATIONS}; DROP SCHEMA {SCHEMA}"));
    for statement in statements {
        tx.execute_unprepared(&statement).await?;
    }
    Ok(())
}

/// The first set may have been brought to a newer version meanwhile: the second one would take it back.
fn refuse_newer(migrations: &[String]) -> Result<(), Error> {
    if migrations.is_empty() {
        return Ok(());
    }
    Err(Error::corrupt(format!("the tables were migrated meanwhile ({}), and the new ones were not", migrations.join(", "))))
}

async fn copy_file(mut connection: PoolConnection<Sqlite>) -> Result<(), Error> {
    let tables = format!(
        "SELECT '\"' || replace(name, '\"', '\"\"') || '\"' FROM shadow.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
         AND name <> '{MIGRATIONS}' ORDER BY 1"
    );
    let tables: Vec<String> = sqlx::query_scalar(AssertSqlSafe(tables)).fetch_all(&mut *connection).await?;
    if tables.is_empty() {
        return Err(Error::corrupt("a second set of tables without a table"));
    }
    let newer = format!("SELECT version FROM main.{MIGRATIONS} EXCEPT SELECT version FROM shadow.{MIGRATIONS}");
    refuse_newer(&sqlx::query_scalar(AssertSqlSafe(newer)).fetch_all(&mut *connection).await?)?;
    for table in tables {
        connection.execute(AssertSqlSafe(format!("DELETE FROM main.{table}; INSERT INTO main.{table} SELECT * FROM shadow.{table}"))).await?;
    }
    connection.execute("COMMIT; DETACH DATABASE shadow").await?;
    Ok(())
}

/// Removes what was left of a second set.
async fn drop_schema(on: &sea_orm::DatabaseConnection) -> Result<(), Error> {
    Ok(on.execute_unprepared(&format!("DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")).await.map(|_| ())?)
}
