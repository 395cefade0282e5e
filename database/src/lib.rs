//! Opening a service's database, SQLite or PostgreSQL, with the settings that the rest of the code counts on, and the one place
//! where transactions begin. Knows no table.

pub mod batch_loader;
pub mod error;
pub mod group_commit;
pub mod pipelined;
mod read_only;
pub mod rows;
pub mod shadow;
pub mod url;

use std::path::Path;
use std::time::Duration;

pub use error::{Error, Kind};
pub use sea_orm::DatabaseTransaction as Transaction;
use sea_orm::sea_query::{PostgresQueryBuilder, SelectStatement};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, FromQueryResult, SqliteTransactionMode, SqlxPostgresConnector, SqlxSqliteConnector, Statement,
    TransactionOptions, TransactionTrait as _, Value,
};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio_postgres::types::ToSql;
pub use url::{PostgresUrl, UrlError};
use uuid::Uuid;

/// How long a caller waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(1);

/// A service's database. Cheap to clone; all clones share their connections.
#[derive(Clone)]
pub struct Database {
    /// On SQLite the one connection that writes.
    writer: DatabaseConnection,
    /// On PostgreSQL the same pool.
    reader: DatabaseConnection,
    /// On PostgreSQL, for the statements that money waits for.
    pipelined: Option<pipelined::Pool>,
    /// On PostgreSQL, for reads by id that go together.
    reads: Option<pipelined::Pool>,
    /// On PostgreSQL, for pages of lists.
    pages: Option<pipelined::Pool>,
}

impl Database {
    /// Opens, and makes where it is missing, the SQLite file at `path`: WAL, `synchronous=FULL`, one writer, four readers.
    pub async fn open_sqlite(path: &Path) -> Result<Self, Error> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(5))
            .statement_cache_capacity(256)
            .disable_statement_logging();
        // The writer first: it makes the file.
        let pool = SqlitePoolOptions::new().acquire_timeout(Duration::from_secs(5)).test_before_acquire(false).idle_timeout(None).max_lifetime(None);
        let writer = pool.clone().max_connections(1).connect_with(options.clone()).await?;
        let reader = pool.max_connections(4).connect_with(options.read_only(true)).await?;
        Ok(Self {
            writer: SqlxSqliteConnector::from_sqlx_sqlite_pool(writer),
            reader: SqlxSqliteConnector::from_sqlx_sqlite_pool(reader),
            pipelined: None,
            reads: None,
            pages: None,
        })
    }

    /// Opens the database `name` on the PostgreSQL server of `url`, and makes it where it is missing and the role may.
    pub async fn open_postgres(url: &PostgresUrl, name: &str, connections_max: u32) -> Result<Self, Error> {
        make_if_missing(url, name).await?;
        Self::connect_postgres(url, name, connections_max)
    }

    /// As [`open_postgres`](Self::open_postgres), of a database that somebody else makes. Connects when first used.
    pub fn connect_postgres(url: &PostgresUrl, name: &str, connections_max: u32) -> Result<Self, Error> {
        // A frozen replica must not hold its locks, and a caller gets its answer within its deadline.
        let options = url.for_sqlx(name).options(url::SESSION).disable_statement_logging();
        let pool = PgPoolOptions::new()
            .max_connections(connections_max)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(|_, connection| Box::pin(std::future::ready(Ok(read_only::may_be_used(connection.age)))))
            .connect_lazy_with(options);
        let pool = SqlxPostgresConnector::from_sqlx_postgres_pool(pool);
        let pipelined = Some(pipelined::pool(url, name, pipelined::FOR_BATCHES)?);
        let reads = Some(pipelined::pool(url, name, pipelined::FOR_READS)?);
        let pages = Some(pipelined::pool(url, name, pipelined::FOR_PAGES)?);
        Ok(Self { writer: pool.clone(), reader: pool, pipelined, reads, pages })
    }

    /// Which of the two it is.
    pub fn backend(&self) -> DbBackend {
        self.writer.get_database_backend()
    }

    /// True on PostgreSQL.
    pub fn is_postgres(&self) -> bool {
        self.backend() == DbBackend::Postgres
    }

    /// Begins a transaction that may write: IMMEDIATE on SQLite, READ COMMITTED on PostgreSQL.
    #[allow(clippy::disallowed_methods, reason = "this is the one place where transactions begin")]
    pub async fn begin(&self) -> Result<Transaction, Error> {
        let options = TransactionOptions { sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate), ..TransactionOptions::default() };
        let options = if self.is_postgres() { TransactionOptions::default() } else { options };
        Ok(self.writer.begin_with_options(options).await?)
    }

    /// For reading outside of a transaction.
    pub fn reader(&self) -> &DatabaseConnection {
        &self.reader
    }

    /// How many statements read at once.
    pub fn connections_that_read(&self) -> u32 {
        if self.is_postgres() {
            self.reader.get_postgres_connection_pool().options().get_max_connections()
        } else {
            self.reader.get_sqlite_connection_pool().options().get_max_connections()
        }
    }

    /// For migrations, which bring their own transactions.
    pub fn writer(&self) -> &DatabaseConnection {
        &self.writer
    }

    /// The pool itself, for what only PostgreSQL has.
    pub fn postgres(&self) -> Option<&PgPool> {
        self.is_postgres().then(|| self.writer.get_postgres_connection_pool())
    }

    /// Connections that send a whole batch at once, on PostgreSQL.
    pub fn pipelined(&self) -> Option<&pipelined::Pool> {
        self.pipelined.as_ref()
    }

    /// The rows that a query finds for ids, which are its one parameter, as in `WHERE id = ANY($1)`. On PostgreSQL: None elsewhere.
    pub async fn read_by_ids(&self, sql: &str, ids: &[Uuid]) -> Option<Result<Vec<pipelined::Row>, Error>> {
        Some(pipelined::query(self.reads.as_ref()?, sql, &[&ids]).await)
    }

    /// The rows of a query that finds them by an index, such as a page of a list. On PostgreSQL: None elsewhere.
    pub async fn read_by_index(&self, select: &SelectStatement) -> Option<Result<Vec<pipelined::Row>, Error>> {
        let pool = self.pages.as_ref()?;
        let (sql, values) = select.build(PostgresQueryBuilder);
        let parameters: Result<Vec<Box<dyn ToSql + Sync + Send>>, Error> = values.into_iter().map(parameter).collect();
        Some(match parameters {
            Ok(parameters) => {
                let parameters: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(|one| &**one as &(dyn ToSql + Sync)).collect();
                pipelined::query(pool, &sql, &parameters).await
            }
            Err(error) => Err(error),
        })
    }

    /// The writer itself, for what only SQLite has.
    pub fn sqlite(&self) -> Option<&SqlitePool> {
        (!self.is_postgres()).then(|| self.writer.get_sqlite_connection_pool())
    }

    /// Whether the database answers and takes writes, on every pool that writes.
    pub async fn ping(&self) -> Result<(), Error> {
        let Some(pipelined) = &self.pipelined else {
            return Ok(self.writer.execute_unprepared("SELECT 1").await.map(|_| ())?);
        };
        #[derive(FromQueryResult)]
        struct Takes {
            writes: bool,
        }
        let takes: Option<Takes> = one(&self.writer, read_only::TAKES_WRITES, []).await?;
        let on_pipelined = pipelined::takes_writes(pipelined).await?;
        if on_pipelined && takes.is_some_and(|takes| takes.writes) { Ok(()) } else { Err(read_only::seen()) }
    }

    /// No connection that is open now is used again.
    pub fn distrust_connections(&self) {
        read_only::note();
    }

    /// Ends every connection; on SQLite the log is written back into the file.
    pub async fn close(self) {
        if let Some(pool) = self.pipelined {
            pool.close();
        }
        let _ = self.reader.close().await;
        let _ = self.writer.close().await;
    }
}

async fn make_if_missing(url: &PostgresUrl, name: &str) -> Result<(), Error> {
    const NO_SUCH_DATABASE: &str = "3D000";
    const EXISTS_ALREADY: [&str; 2] = ["42P04", "23505"];
    let code = |error: &sqlx::Error| error.as_database_error().and_then(|error| error.code().map(std::borrow::Cow::into_owned)).unwrap_or_default();
    match url.for_sqlx(name).disable_statement_logging().connect().await {
        Ok(connection) => return Ok(connection.close().await?),
        Err(error) if code(&error) == NO_SUCH_DATABASE => {}
        Err(error) => return Err(error.into()),
    }
    let mut connection = url.for_sqlx("postgres").disable_statement_logging().connect().await?;
    let made = sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\"")))).execute(&mut connection).await;
    connection.close().await?;
    match made {
        Err(error) if !EXISTS_ALREADY.contains(&code(&error).as_str()) => Err(error.into()),
        _ => Ok(()),
    }
}

/// A statement with `$1`-style placeholders, which both databases read.
pub fn statement(on: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    Statement::from_sql_and_values(on.get_database_backend(), sql, values)
}

/// Runs a statement; how many rows it changed.
pub async fn execute(on: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Result<u64, Error> {
    Ok(on.execute_raw(statement(on, sql, values)).await?.rows_affected())
}

/// Every row of a query.
pub async fn all<T: FromQueryResult>(on: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Result<Vec<T>, Error> {
    let rows = on.query_all_raw(statement(on, sql, values)).await?;
    Ok(rows.iter().map(|row| T::from_query_result(row, "")).collect::<Result<_, _>>()?)
}

/// A value of a built query as the driver of pipelines takes it.
fn parameter(value: Value) -> Result<Box<dyn ToSql + Sync + Send>, Error> {
    match value {
        Value::Uuid(value) => Ok(Box::new(value)),
        Value::BigInt(value) => Ok(Box::new(value)),
        // What limits rows.
        Value::BigUnsigned(value) => Ok(Box::new(value.map(|value| i64::try_from(value).unwrap_or(i64::MAX)))),
        Value::String(value) => Ok(Box::new(value)),
        Value::Bool(value) => Ok(Box::new(value)),
        other => Err(Error::corrupt(format!("a parameter of a kind that no page has: {other:?}"))),
    }
}

/// Every row of a query that was built.
pub async fn select_all<T: FromQueryResult>(on: &impl ConnectionTrait, select: &SelectStatement) -> Result<Vec<T>, Error> {
    let rows = on.query_all_raw(on.get_database_backend().build(select)).await?;
    Ok(rows.iter().map(|row| T::from_query_result(row, "")).collect::<Result<_, _>>()?)
}

/// The first row of a query, if there is one.
pub async fn one<T: FromQueryResult>(on: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Result<Option<T>, Error> {
    let row = on.query_one_raw(statement(on, sql, values)).await?;
    Ok(row.as_ref().map(|row| T::from_query_result(row, "")).transpose()?)
}
