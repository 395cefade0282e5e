//! The table `refresh_tokens`: every refresh token that was given, by the SHA-256 of its secret, until it has expired.

use lastro_database::{Error, Transaction, execute, one};
use sea_orm::{ConnectionTrait, FromQueryResult};
use uuid::Uuid;

/// A token that was given.
#[derive(Debug, Clone, Copy, FromQueryResult)]
pub struct RefreshToken {
    /// Whose it is.
    pub session_id: Uuid,
    /// When it was traded first, Unix microseconds; None while it was not.
    pub used_us: Option<i64>,
    /// When it expires, Unix microseconds.
    pub expires_us: i64,
}

/// Remembers a token that is about to be given.
pub async fn insert(tx: &Transaction, hash: &[u8; 32], session_id: Uuid, expires_us: i64) -> Result<(), Error> {
    let sql = "INSERT INTO refresh_tokens (hash, session_id, expires_us) VALUES ($1, $2, $3)";
    execute(tx, sql, [hash.to_vec().into(), session_id.into(), expires_us.into()]).await.map(|_| ())
}

/// The token with this hash; None for one that was never given.
pub async fn get(on: &impl ConnectionTrait, hash: &[u8; 32]) -> Result<Option<RefreshToken>, Error> {
    one(on, "SELECT session_id, used_us, expires_us FROM refresh_tokens WHERE hash = $1", [hash.to_vec().into()]).await
}

/// Marks a token as traded for the first time.
pub async fn mark_used(tx: &Transaction, hash: &[u8; 32], now_us: i64) -> Result<(), Error> {
    let sql = "UPDATE refresh_tokens SET used_us = $2 WHERE hash = $1 AND used_us IS NULL";
    Error::expect_rows(1, execute(tx, sql, [hash.to_vec().into(), now_us.into()]).await?)
}

/// Deletes those that have expired.
pub async fn forget(tx: &Transaction, now_us: i64) -> Result<u64, Error> {
    execute(tx, "DELETE FROM refresh_tokens WHERE expires_us < $1", [now_us.into()]).await
}
