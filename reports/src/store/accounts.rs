//! Accounts, and whose they are.

use lastro_database::rows::{Type, all_of_ids, insert_rows, update_rows};
use lastro_database::{Error, Transaction, all, one};
use sea_orm::{ConnectionTrait, FromQueryResult};
use uuid::Uuid;

/// An account as its events tell.
#[derive(Debug, Clone, PartialEq, Eq, FromQueryResult)]
pub struct Account {
    /// Its id.
    pub id: Uuid,
    /// Whose it is; nil for a system account.
    pub owner_id: Uuid,
    /// ISO 4217 alphabetic code.
    pub currency_code: String,
    /// Whether it stands for the outside world.
    pub is_system: bool,
    /// When it was opened, Unix microseconds.
    pub opened_us: i64,
    /// Of its last event.
    pub version: i64,
}

#[derive(FromQueryResult)]
struct Version {
    id: Uuid,
    version: i64,
}

#[derive(FromQueryResult)]
struct Id {
    id: Uuid,
}

/// Adds new accounts.
pub async fn insert(tx: &Transaction, accounts: Vec<Account>) -> Result<(), Error> {
    let columns = [
        ("id", Type::Uuid),
        ("owner_id", Type::Uuid),
        ("currency_code", Type::Text),
        ("is_system", Type::Bool),
        ("opened_us", Type::BigInt),
        ("version", Type::BigInt),
    ];
    let row = |account: Account| {
        let Account { id, owner_id, currency_code, is_system, opened_us, version } = account;
        vec![id.into(), owner_id.into(), currency_code.into(), is_system.into(), opened_us.into(), version.into()]
    };
    insert_rows(tx, "accounts", &columns, "", accounts.into_iter().map(row).collect()).await.map(|_| ())
}

/// Notes how far the events of accounts have come.
pub async fn set_versions(tx: &Transaction, versions: Vec<(Uuid, i64)>) -> Result<(), Error> {
    let (columns, expected) = ([("id", Type::Uuid), ("version", Type::BigInt)], versions.len() as u64);
    let rows = versions.into_iter().map(|(id, version)| vec![id.into(), version.into()]).collect();
    let changed = update_rows(tx, "accounts", &columns, ("version = u.version", "t.id = u.id"), rows).await?;
    Error::expect_rows(expected, changed)
}

/// One account.
pub async fn get(on: &impl ConnectionTrait, id: Uuid) -> Result<Option<Account>, Error> {
    one(on, "SELECT id, owner_id, currency_code, is_system, opened_us, version FROM accounts WHERE id = $1", [id.into()]).await
}

/// A user's accounts in a currency, up to a limit.
pub async fn of_owner(on: &impl ConnectionTrait, owner_id: Uuid, currency_code: &str, limit: usize) -> Result<Vec<Uuid>, Error> {
    let sql = format!("SELECT id FROM accounts WHERE owner_id = $1 AND currency_code = $2 LIMIT {limit}");
    let rows: Vec<Id> = all(on, &sql, [owner_id.into(), currency_code.into()]).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// How far the events of accounts have come, as far as they are known.
pub async fn versions(on: &impl ConnectionTrait, ids: &[Uuid]) -> Result<Vec<(Uuid, i64)>, Error> {
    let rows: Vec<Version> = all_of_ids(on, "SELECT id, version FROM accounts WHERE id {ids}", ids, []).await?;
    Ok(rows.into_iter().map(|row| (row.id, row.version)).collect())
}
