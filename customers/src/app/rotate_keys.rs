//! The keys that sign access tokens: the first one, a new one in place of the old ones, and which there are. A rotation is one write:
//! from then on every replica publishes the new key, it signs when every service has had the time to learn it, and the old ones verify
//! until none of their tokens can live.

use lastro_database::Database;
use lastro_mesh::clock;

use super::tokens;
use crate::Error;
use crate::store::keys::{self, SigningKey};

const SECOND_US: i64 = 1_000_000;

/// A key, without its secret. Times are Unix microseconds.
#[derive(Debug, Clone)]
pub struct KeyInfo {
    /// Its id, as in the header of its tokens.
    pub kid: String,
    /// Signs from then on, until a newer one does.
    pub sign_from_us: i64,
    /// Verifies until then; None while no newer one takes its place.
    pub retire_us: Option<i64>,
}

impl From<SigningKey> for KeyInfo {
    fn from(key: SigningKey) -> Self {
        Self { kid: key.kid, sign_from_us: key.sign_from_us, retire_us: key.retire_us }
    }
}

/// Makes the first key where there is none.
pub async fn ensure_first_key(database: &Database) -> Result<(), Error> {
    let now_us = clock::now_us();
    if keys::list(database.writer(), now_us).await?.is_empty() {
        let tx = database.begin().await?;
        keys::insert_first(&tx, &tokens::generate(now_us)?).await?;
        tx.commit().await.map_err(lastro_database::Error::from)?;
    }
    Ok(())
}

/// Every key that verifies tokens.
pub async fn list_keys(database: &Database) -> Result<Vec<KeyInfo>, Error> {
    Ok(keys::list(database.writer(), clock::now_us()).await?.into_iter().map(KeyInfo::from).collect())
}

/// Publishes a new key that signs after some seconds; the others verify for some more after that. None while an earlier rotation's key
/// does not sign yet.
pub async fn rotate_keys(database: &Database, sign_after_s: i64, retire_after_s: i64) -> Result<Option<KeyInfo>, Error> {
    let now_us = clock::now_us();
    let key = tokens::generate(now_us + sign_after_s * SECOND_US)?;
    let tx = database.begin().await?;
    // Before looking, since it takes the locks.
    keys::retire_all(&tx, key.sign_from_us + retire_after_s * SECOND_US).await?;
    if keys::list(&tx, now_us).await?.first().is_some_and(|newest| newest.sign_from_us > now_us) {
        return Ok(None);
    }
    keys::insert_next(&tx, &key).await?;
    tx.commit().await.map_err(lastro_database::Error::from)?;
    Ok(Some(key.into()))
}
