//! The table `signing_keys`.

use lastro_database::{Error, Transaction, all, execute};
use sea_orm::{ConnectionTrait, FromQueryResult};

/// Signs new tokens.
pub const SIGNING: &str = "SIGNING";

/// A row.
#[derive(Debug, Clone, FromQueryResult)]
pub struct SigningKey {
    pub kid: String,
    pub private_key: Vec<u8>,
    pub public_key: String,
    pub state: String,
    pub create_time_us: i64,
}

/// Every key that verifies tokens, newest first.
pub async fn list(on: &impl ConnectionTrait) -> Result<Vec<SigningKey>, Error> {
    let sql =
        "SELECT kid, private_key, public_key, state, create_time_us FROM signing_keys WHERE state <> 'RETIRED' ORDER BY create_time_us DESC, kid";
    all(on, sql, []).await
}

/// Adds a key; nothing happens when another replica was first to make the only one.
pub async fn insert_first(tx: &Transaction, key: &SigningKey) -> Result<(), Error> {
    let sql = "INSERT INTO signing_keys (kid, private_key, public_key, state, create_time_us) SELECT $1, $2, $3, $4, $5 \
               WHERE NOT EXISTS (SELECT 1 FROM signing_keys)";
    let values =
        [key.kid.clone().into(), key.private_key.clone().into(), key.public_key.clone().into(), key.state.clone().into(), key.create_time_us.into()];
    execute(tx, sql, values).await.map(|_| ())
}
