//! The table `signing_keys`.

use lastro_database::{Error, Transaction, all, execute};
use sea_orm::{ConnectionTrait, FromQueryResult};

/// A row. Times are Unix microseconds.
#[derive(Debug, Clone, FromQueryResult)]
pub struct SigningKey {
    pub kid: String,
    pub private_key: Vec<u8>,
    pub public_key: String,
    pub create_time_us: i64,
    /// Signs from then on, unless a newer one does.
    pub sign_from_us: i64,
    /// Verifies until then; None while no newer one takes its place.
    pub retire_us: Option<i64>,
}

/// Every key that verifies tokens now, the one that signs last first.
pub async fn list(on: &impl ConnectionTrait, now_us: i64) -> Result<Vec<SigningKey>, Error> {
    let sql = "SELECT kid, private_key, public_key, create_time_us, sign_from_us, retire_us FROM signing_keys \
               WHERE retire_us IS NULL OR retire_us > $1 ORDER BY sign_from_us DESC, kid DESC";
    all(on, sql, [now_us.into()]).await
}

/// Adds a key; nothing happens when another replica was first to make the only one.
pub async fn insert_first(tx: &Transaction, key: &SigningKey) -> Result<(), Error> {
    insert(tx, key, " WHERE NOT EXISTS (SELECT 1 FROM signing_keys)").await
}

/// Lets every key verify no longer than until then. Whoever does this at the same time waits for its turn.
pub async fn retire_all(tx: &Transaction, retire_us: i64) -> Result<(), Error> {
    execute(tx, "UPDATE signing_keys SET retire_us = $1 WHERE retire_us IS NULL", [retire_us.into()]).await.map(|_| ())
}

/// Adds a key.
pub async fn insert_next(tx: &Transaction, key: &SigningKey) -> Result<(), Error> {
    insert(tx, key, "").await
}

async fn insert(tx: &Transaction, key: &SigningKey, condition: &str) -> Result<(), Error> {
    // `state` is read by versions before key rotation alone.
    let sql = format!(
        "INSERT INTO signing_keys (kid, private_key, public_key, state, create_time_us, sign_from_us) SELECT $1, $2, $3, 'SIGNING', $4, $5{condition}"
    );
    let values =
        [key.kid.clone().into(), key.private_key.clone().into(), key.public_key.clone().into(), key.create_time_us.into(), key.sign_from_us.into()];
    execute(tx, &sql, values).await.map(|_| ())
}
