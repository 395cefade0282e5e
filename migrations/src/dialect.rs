//! The few words in which the two databases differ.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

/// Writes one text of SQL for either database.
#[derive(Clone, Copy)]
pub struct Dialect(DbBackend);

impl Dialect {
    /// The dialect of the database that is migrated.
    pub fn of(manager: &SchemaManager<'_>) -> Self {
        Self(manager.get_database_backend())
    }

    /// True on PostgreSQL.
    pub fn is_postgres(self) -> bool {
        self.0 == DbBackend::Postgres
    }

    /// Fills in the words in braces.
    pub fn write(self, sql: &str) -> String {
        let words: [(&str, &str, &str); 6] = [
            ("{uuid}", "uuid", "BLOB"),
            ("{bytes}", "bytea", "BLOB"),
            ("{bigint}", "bigint", "INTEGER"),
            ("{text}", "text", "TEXT"),
            ("{bool}", "boolean", "INTEGER"),
            // Ends a table.
            ("{strict}", "", " STRICT"),
        ];
        words.iter().fold(sql.to_owned(), |sql, (word, postgres, sqlite)| sql.replace(word, if self.is_postgres() { postgres } else { sqlite }))
    }
}

/// Runs statements one after the other.
pub async fn run_statements(manager: &SchemaManager<'_>, statements: &[&str]) -> Result<(), DbErr> {
    let dialect = Dialect::of(manager);
    lift_timeouts(manager).await?;
    for statement in statements {
        manager.get_connection().execute_unprepared(&dialect.write(statement)).await?;
    }
    Ok(())
}

/// A large table takes the time that it takes; the session's timeouts are for what callers wait for. Until the migration ends.
pub async fn lift_timeouts(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    if Dialect::of(manager).is_postgres() {
        let lifted = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '30s'; SET LOCAL idle_in_transaction_session_timeout = 0";
        manager.get_connection().execute_unprepared(lifted).await?;
    }
    Ok(())
}
