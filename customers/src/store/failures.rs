//! The table `login_failures`.

use lastro_database::{Error, Transaction, execute, one};
use sea_orm::{ConnectionTrait, FromQueryResult};

#[derive(FromQueryResult)]
struct Failures {
    last_us: i64,
}

/// Counts one more attempt as failed, before it is tried, unless there are too many; whether it may be tried. Those before `since_us` are
/// forgotten. In one statement, so that of any number at once no more than `max` get through.
pub async fn take(tx: &Transaction, email_hash: &[u8; 32], now_us: i64, since_us: i64, max: i64) -> Result<bool, Error> {
    let sql = "INSERT INTO login_failures (email_hash, failures, last_us) VALUES ($1, 1, $2) ON CONFLICT (email_hash) DO UPDATE SET \
               failures = CASE WHEN login_failures.last_us < $3 THEN 1 ELSE login_failures.failures + 1 END, last_us = $2 \
               WHERE login_failures.failures < $4 OR login_failures.last_us < $3";
    Ok(execute(tx, sql, [email_hash.to_vec().into(), now_us.into(), since_us.into(), max.into()]).await? == 1)
}

/// When an attempt was counted last, Unix microseconds.
pub async fn last_us(on: &impl ConnectionTrait, email_hash: &[u8; 32]) -> Result<Option<i64>, Error> {
    let row: Option<Failures> = one(on, "SELECT last_us FROM login_failures WHERE email_hash = $1", [email_hash.to_vec().into()]).await?;
    Ok(row.map(|row| row.last_us))
}

/// Takes back one attempt that was counted and not made.
pub async fn give_back(tx: &Transaction, email_hash: &[u8; 32]) -> Result<(), Error> {
    let sql = "UPDATE login_failures SET failures = failures - 1 WHERE email_hash = $1 AND failures > 0";
    // None where a right password has cleared them meanwhile.
    execute(tx, sql, [email_hash.to_vec().into()]).await.map(|_| ())
}

/// An account has a new address, whose failures are those of the old one from now on: a new address is no way to try more often.
pub async fn carry(tx: &Transaction, old: &[u8; 32], new: &[u8; 32]) -> Result<(), Error> {
    let sql = "INSERT INTO login_failures (email_hash, failures, last_us) SELECT $2, failures, last_us FROM login_failures WHERE email_hash = $1 \
               ON CONFLICT (email_hash) DO UPDATE SET failures = CASE WHEN login_failures.failures < excluded.failures THEN excluded.failures \
               ELSE login_failures.failures END, last_us = CASE WHEN login_failures.last_us < excluded.last_us THEN excluded.last_us \
               ELSE login_failures.last_us END";
    execute(tx, sql, [old.to_vec().into(), new.to_vec().into()]).await.map(|_| ())
}

/// Forgets the failures of an account: its password was right, or it is gone.
pub async fn clear(tx: &Transaction, email_hash: &[u8; 32]) -> Result<(), Error> {
    execute(tx, "DELETE FROM login_failures WHERE email_hash = $1", [email_hash.to_vec().into()]).await.map(|_| ())
}

/// Deletes what is older than an instant.
pub async fn forget(tx: &Transaction, before_us: i64) -> Result<u64, Error> {
    execute(tx, "DELETE FROM login_failures WHERE last_us < $1", [before_us.into()]).await
}
