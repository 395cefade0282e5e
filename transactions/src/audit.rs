//! The ledger as whoever checks something against it reads it: accounts and their postings, past every other service, a page at a time.

use lastro_database::{Database, Error, all};
use sea_orm::FromQueryResult;
use uuid::Uuid;

/// An account, and what was posted to it so far.
#[derive(Debug, Clone, PartialEq, Eq, FromQueryResult)]
pub struct LedgerAccount {
    /// Its id.
    pub id: Uuid,
    /// Whose it is; nil for a system account.
    pub owner_id: Uuid,
    /// ISO 4217 alphabetic code.
    pub currency_code: String,
    /// How many postings it has.
    pub version: i64,
    /// What they sum up to, in minor units.
    pub balance: i64,
}

/// A posting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromQueryResult)]
pub struct LedgerPosting {
    /// Its place in the history of its account, from 1.
    pub account_version: i64,
    /// The transaction.
    pub operation_id: Uuid,
    /// In minor units: negative debits, positive credits.
    pub amount: i64,
    /// The balance after it.
    pub balance: i64,
    /// When it was recorded, Unix microseconds; None where a version before 0.1.0 recorded it.
    pub recorded_us: Option<i64>,
    /// When it counts, Unix microseconds.
    pub effective_us: i64,
}

/// Accounts in the order of their ids, after one, up to a limit.
pub async fn accounts(database: &Database, after: Uuid, limit: u32) -> Result<Vec<LedgerAccount>, Error> {
    let sql = format!(
        "SELECT a.id, a.owner_id, a.currency_code, b.version, b.posted AS balance FROM accounts a JOIN balances b ON b.account_id = a.id \
         WHERE a.id > $1 ORDER BY a.id LIMIT {limit}"
    );
    all(database.reader(), &sql, [after.into()]).await
}

/// The postings of an account after a version and up to another one, in their order, up to a limit.
pub async fn postings(database: &Database, account_id: Uuid, after: i64, up_to: i64, limit: u32) -> Result<Vec<LedgerPosting>, Error> {
    let sql = format!(
        "SELECT p.account_version, p.operation_id, p.amount, p.balance, p.recorded_us, o.effective_time_us AS effective_us FROM postings p \
         JOIN operations o ON o.id = p.operation_id WHERE p.account_id = $1 AND p.account_version > $2 AND p.account_version <= $3 \
         ORDER BY p.account_version LIMIT {limit}"
    );
    all(database.reader(), &sql, [account_id.into(), after.into(), up_to.into()]).await
}
