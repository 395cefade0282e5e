//! The table `login_failures`.

use lastro_database::{Error, Transaction, execute, one};
use sea_orm::{ConnectionTrait, FromQueryResult};

/// Attempts that were counted as failed.
#[derive(Debug, Clone, Copy, FromQueryResult)]
pub struct Failures {
    pub failures: i64,
    /// When one was counted last, Unix microseconds.
    pub last_us: i64,
}

/// A wait doubles so often at most: 64 minutes, beginning with one.
const DOUBLED_MAX: i64 = 6;

/// How long an account with so many failures beyond the limit waits for its next attempt, in microseconds.
pub fn wait_us(beyond: i64, pause_us: i64) -> i64 {
    pause_us << beyond.clamp(0, DOUBLED_MAX)
}

/// Counts one more attempt as failed, before it is tried, unless there are `max` and the wait is not over; whether it may be tried. In one statement,
/// so that of any number at once no more than `max` get through, or one after a wait.
pub async fn take(tx: &Transaction, email_hash: &[u8; 32], now_us: i64, pause_us: i64, max: i64) -> Result<bool, Error> {
    let waits: Vec<String> = (0..DOUBLED_MAX).map(|beyond| format!("WHEN {beyond} THEN {}", wait_us(beyond, pause_us))).collect();
    let sql = format!(
        "INSERT INTO login_failures (email_hash, failures, last_us) VALUES ($1, 1, $2) ON CONFLICT (email_hash) DO UPDATE SET \
         failures = login_failures.failures + 1, last_us = $2 WHERE login_failures.failures < $3 \
         OR login_failures.last_us < $2 - CASE login_failures.failures - $3 {} ELSE {} END",
        waits.join(" "),
        wait_us(DOUBLED_MAX, pause_us)
    );
    Ok(execute(tx, &sql, [email_hash.to_vec().into(), now_us.into(), max.into()]).await? == 1)
}

/// The failures of an account.
pub async fn get(on: &impl ConnectionTrait, email_hash: &[u8; 32]) -> Result<Option<Failures>, Error> {
    one(on, "SELECT failures, last_us FROM login_failures WHERE email_hash = $1", [email_hash.to_vec().into()]).await
}

/// Takes back one attempt that was counted and not made.
pub async fn give_back(tx: &Transaction, email_hash: &[u8; 32]) -> Result<(), Error> {
    let sql = "UPDATE login_failures SET failures = failures - 1 WHERE email_hash = $1 AND failures > 0";
    // None where a right password has cleared them meanwhile.
    execute(tx, sql, [email_hash.to_vec().into()]).await.map(|_| ())
}

/// An account has a new address, whose failures are those of the old one from now on, wherever they were counted: a new address is no way to try more
/// often. To be called before the known addresses of the old one are forgotten.
pub async fn carry(tx: &Transaction, old: &[u8; 32], new: &[u8; 32]) -> Result<(), Error> {
    let sql = "INSERT INTO login_failures (email_hash, failures, last_us) SELECT $2, max(failures), max(last_us) FROM login_failures WHERE email_hash = $1 \
               OR email_hash IN (SELECT address_hash FROM known_addresses WHERE account_hash = $1) HAVING count(*) > 0 \
               ON CONFLICT (email_hash) DO UPDATE SET failures = CASE WHEN login_failures.failures < excluded.failures THEN excluded.failures \
               ELSE login_failures.failures END, last_us = CASE WHEN login_failures.last_us < excluded.last_us THEN excluded.last_us \
               ELSE login_failures.last_us END";
    execute(tx, sql, [old.to_vec().into(), new.to_vec().into()]).await.map(|_| ())
}

/// Forgets the failures of an account wherever they were counted: it is gone. To be called before its known addresses are forgotten.
pub async fn clear_everywhere(tx: &Transaction, account: &[u8; 32]) -> Result<(), Error> {
    let sql = "DELETE FROM login_failures WHERE email_hash = $1 OR email_hash IN (SELECT address_hash FROM known_addresses WHERE account_hash = $1)";
    execute(tx, sql, [account.to_vec().into()]).await.map(|_| ())
}

/// Forgets the failures that were counted under a hash: the password was right.
pub async fn clear(tx: &Transaction, email_hash: &[u8; 32]) -> Result<(), Error> {
    execute(tx, "DELETE FROM login_failures WHERE email_hash = $1", [email_hash.to_vec().into()]).await.map(|_| ())
}

/// Deletes what is older than an instant.
pub async fn forget(tx: &Transaction, before_us: i64) -> Result<u64, Error> {
    execute(tx, "DELETE FROM login_failures WHERE last_us < $1", [before_us.into()]).await
}
