//! What went wrong in a database, by what a caller can do about it. The text stays in the log.

use sea_orm::{DbErr, RuntimeErr};

use crate::read_only;

/// What a caller can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The database is away or refuses connections: try again later. After COMMIT the outcome is unknown.
    Unavailable,
    /// Too many callers wait for a connection to read by: try again soon. That says nothing of the database.
    Crowded,
    /// The database takes no writes now: try again later. Nothing was written.
    ReadOnly,
    /// The transaction lost against another one: run it again at once.
    Conflict,
    /// The statement took longer than it may, or somebody cancelled it: the same may succeed when less is under way.
    Cancelled,
    /// A row with this key exists.
    Unique,
    /// The database is broken, or not set up for this: an operator has to do something, and what was to be written is not at fault.
    Fault,
    /// Anything else: the same statement fails again.
    Other,
}

/// An error of the database.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct Error {
    /// What a caller can do.
    pub kind: Kind,
    /// For the log.
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl Error {
    /// Whether the same work may succeed when it is done again.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, Kind::Unavailable | Kind::Crowded | Kind::ReadOnly | Kind::Conflict | Kind::Cancelled)
    }

    /// Whether no connection of a pool was free in time: that says more of the load than of the database.
    pub fn is_of_full_pool(&self) -> bool {
        matches!(self.source.downcast_ref(), Some(DbErr::ConnectionAcquire(_)))
    }

    /// The same, where doing the same work again is known to be of no use.
    pub fn not_transient(self) -> Self {
        Self { kind: Kind::Other, ..self }
    }

    /// One that says no more than that, for tests.
    #[cfg(test)]
    pub(crate) fn of_kind(kind: Kind) -> Self {
        Self { kind, source: "as it was told".into() }
    }

    /// The same for somebody else, when several waited for one statement.
    pub fn copy(&self) -> Self {
        Self { kind: self.kind, source: self.source.to_string().into() }
    }

    /// A connection that is gone, or on which something was said that is not to be understood.
    pub(crate) fn broken(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { kind: Kind::Unavailable, source: source.into() }
    }

    /// What a PostgreSQL server answered. It ends the session after what is FATAL; whether it did what it was asked to is unknown then.
    pub(crate) fn of_server(severity: &str, code: &str, text: &str) -> Self {
        let kind = if matches!(severity, "FATAL" | "PANIC") { Kind::Unavailable } else { kind_of_code(code) };
        Self { kind, source: format!("{severity} {code}: {text}").into() }
    }

    /// No connection of a pool for reads was free in time.
    pub(crate) fn crowded(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { kind: Kind::Crowded, source: source.into() }
    }

    /// A session that takes no writes.
    pub(crate) fn read_only(text: &str) -> Self {
        Self { kind: Kind::ReadOnly, source: text.into() }
    }

    /// An error of something else that a database needs.
    pub(crate) fn other(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { kind: Kind::Other, source: source.into() }
    }

    /// Whether a statement changed the rows that it was meant to change. What it meant was read under a lock before, so that anything else is a
    /// defect, and the transaction must not be committed.
    pub fn expect_rows(meant: u64, changed: u64) -> Result<(), Self> {
        if meant == changed { Ok(()) } else { Err(Self::corrupt(format!("a statement changed {changed} rows and meant {meant}"))) }
    }

    /// Somebody else does the same just now: try again later.
    pub fn busy(what: impl std::fmt::Display) -> Self {
        Self { kind: Kind::Conflict, source: what.to_string().into() }
    }

    /// Something that was given up, for this reason.
    pub(crate) fn given_up(why: &'static str) -> Self {
        Self { kind: Kind::Other, source: why.into() }
    }

    /// A row that does not read as what it should be.
    pub fn corrupt(what: impl std::fmt::Display) -> Self {
        Self { kind: Kind::Other, source: format!("the database holds something unexpected: {what}").into() }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self { kind: kind(&error), source: error.into() }
    }
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        let kind = match &error {
            DbErr::Conn(RuntimeErr::SqlxError(error)) | DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error)) => {
                kind(error)
            }
            DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => Kind::Unavailable,
            _ => Kind::Other,
        };
        Self { kind, source: error.into() }
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        let kind = match error.code() {
            Some(state) => kind_of_code(state.code()),
            // No answer of the server: the connection is gone.
            None if error.is_closed() || std::error::Error::source(&error).is_some_and(<dyn std::error::Error>::is::<std::io::Error>) => {
                Kind::Unavailable
            }
            None => Kind::Other,
        };
        Self { kind, source: error.into() }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::broken(error)
    }
}

impl From<deadpool::managed::PoolError<Error>> for Error {
    fn from(error: deadpool::managed::PoolError<Error>) -> Self {
        // Whatever keeps a connection from being opened says nothing about what is to be done with it.
        Self::broken(error)
    }
}

fn kind(error: &sqlx::Error) -> Kind {
    let error = match error {
        sqlx::Error::Database(error) => error,
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Protocol(_)
        | sqlx::Error::Tls(_) => {
            return Kind::Unavailable;
        }
        _ => return Kind::Other,
    };
    if error.is_unique_violation() {
        return Kind::Unique;
    }
    let code = error.code().unwrap_or_default();
    // SQLITE_ERROR is anything that is wrong with a statement; a table or a column that is not there is nothing that a value is at fault for.
    if code == "1" && (error.message().starts_with("no such ") || error.message().contains(" has no column named ")) {
        return Kind::Fault;
    }
    kind_of_code(&code)
}

fn kind_of_code(code: &str) -> Kind {
    match code {
        "23505" => Kind::Unique,
        read_only::SQLSTATE => {
            read_only::note();
            Kind::ReadOnly
        }
        // SQLITE_READONLY and its extended forms.
        "8" | "264" | "520" | "776" | "1032" | "1288" | "1544" => Kind::ReadOnly,
        "57014" => Kind::Cancelled,
        // Serialization failure, deadlock, lock not available. https://www.postgresql.org/docs/15/errcodes-appendix.html
        "40001" | "40P01" | "55P03" => Kind::Conflict,
        // SQLITE_BUSY, SQLITE_LOCKED and their extended forms. https://www.sqlite.org/rescode.html
        "5" | "6" | "261" | "262" | "517" => Kind::Conflict,
        // SQLITE_FULL, SQLITE_IOERR: a full disk may have room again.
        "13" | "10" | "778" | "1034" => Kind::Unavailable,
        // Connection exceptions, insufficient resources, operator intervention, idle transaction ended; and what keeps a session from being opened:
        // the role, its password, or the database.
        "3D000" => Kind::Unavailable,
        code if ["08", "28", "53", "57"].iter().any(|class| code.starts_with(class)) || code == "25P03" => Kind::Unavailable,
        // Access rights and what is not there, states of objects, system errors, internal errors. Not limits of the program (54): what is too large for
        // an index stays too large.
        code if code.len() == 5 && ["42", "55", "58", "XX", "0A", "F0"].iter().any(|class| code.starts_with(class)) => Kind::Fault,
        // SQLITE_PERM, NOMEM, CORRUPT, CANTOPEN, NOTADB, and every SQLITE_IOERR.
        code if code.parse::<u32>().is_ok_and(|code| code < 10_000 && matches!(code & 0xff, 3 | 7 | 10 | 11 | 14 | 26)) => Kind::Fault,
        _ => Kind::Other,
    }
}
