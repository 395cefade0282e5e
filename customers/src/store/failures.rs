//! The table `login_failures`.

use lastro_database::{Error, Transaction, execute, one};
use sea_orm::{ConnectionTrait, FromQueryResult};

/// Failed logins of one address since the last good one.
#[derive(Debug, FromQueryResult)]
pub struct Failures {
    pub failures: i64,
    pub last_us: i64,
}

pub async fn get(on: &impl ConnectionTrait, email_hash: &[u8; 32]) -> Result<Option<Failures>, Error> {
    one(on, "SELECT failures, last_us FROM login_failures WHERE email_hash = $1", [email_hash.to_vec().into()]).await
}

/// Counts one more; those before `since_us` are forgotten.
pub async fn add(tx: &Transaction, email_hash: &[u8; 32], now_us: i64, since_us: i64) -> Result<(), Error> {
    let sql = "INSERT INTO login_failures (email_hash, failures, last_us) VALUES ($1, 1, $2) ON CONFLICT (email_hash) DO UPDATE SET \
               failures = CASE WHEN login_failures.last_us < $3 THEN 1 ELSE login_failures.failures + 1 END, last_us = $2";
    execute(tx, sql, [email_hash.to_vec().into(), now_us.into(), since_us.into()]).await.map(|_| ())
}

pub async fn clear(tx: &Transaction, email_hash: &[u8; 32]) -> Result<(), Error> {
    execute(tx, "DELETE FROM login_failures WHERE email_hash = $1", [email_hash.to_vec().into()]).await.map(|_| ())
}

/// Deletes what is older than an instant.
pub async fn forget(tx: &Transaction, before_us: i64) -> Result<u64, Error> {
    execute(tx, "DELETE FROM login_failures WHERE last_us < $1", [before_us.into()]).await
}
