//! The table `known_addresses`: where accounts were logged in from.

use lastro_database::{Error, Transaction, execute, one};
use sea_orm::{ConnectionTrait, FromQueryResult};

/// Whether an account was logged in from an address, both as hashes.
pub async fn is_known(on: &impl ConnectionTrait, account: &[u8; 32], address: &[u8; 32]) -> Result<bool, Error> {
    #[derive(FromQueryResult)]
    struct Known {
        last_us: i64,
    }
    let sql = "SELECT last_us FROM known_addresses WHERE account_hash = $1 AND address_hash = $2";
    let known: Option<Known> = one(on, sql, [account.to_vec().into(), address.to_vec().into()]).await?;
    Ok(known.is_some_and(|known| known.last_us > 0))
}

/// Notes a login; again only when the last one was noted before an instant.
pub async fn note(tx: &Transaction, account: &[u8; 32], address: &[u8; 32], now_us: i64, again_before_us: i64) -> Result<(), Error> {
    let sql = "INSERT INTO known_addresses (account_hash, address_hash, last_us) VALUES ($1, $2, $3) \
               ON CONFLICT (account_hash, address_hash) DO UPDATE SET last_us = excluded.last_us WHERE known_addresses.last_us < $4";
    execute(tx, sql, [account.to_vec().into(), address.to_vec().into(), now_us.into(), again_before_us.into()]).await.map(|_| ())
}

/// Forgets where an account was logged in from: it is gone, or has another e-mail address.
pub async fn clear(tx: &Transaction, account: &[u8; 32]) -> Result<(), Error> {
    execute(tx, "DELETE FROM known_addresses WHERE account_hash = $1", [account.to_vec().into()]).await.map(|_| ())
}

/// Deletes what is older than an instant.
pub async fn forget(tx: &Transaction, before_us: i64) -> Result<u64, Error> {
    execute(tx, "DELETE FROM known_addresses WHERE last_us < $1", [before_us.into()]).await
}
