//! The table `sessions`.

use lastro_database::{Error, Transaction, all, execute, one};
use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use uuid::Uuid;

/// A session about to be stored.
#[derive(Debug)]
pub struct NewSession {
    pub id: Uuid,
    pub user_id: Uuid,
    pub refresh_hash: [u8; 32],
    pub create_time_us: i64,
    pub refresh_expires_us: i64,
    pub forget_after_s: i64,
}

/// Trades one refresh token for the next.
#[derive(Debug)]
pub struct Rotation {
    pub session_id: Uuid,
    pub old_hash: [u8; 32],
    pub new_hash: [u8; 32],
    pub now_us: i64,
    pub refresh_expires_us: i64,
    pub forget_after_s: i64,
}

/// A session that is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromQueryResult)]
pub struct Revoked {
    pub id: Uuid,
    pub forget_after_s: i64,
}

#[derive(FromQueryResult)]
struct Owner {
    user_id: Uuid,
}

pub async fn insert(tx: &Transaction, session: &NewSession) -> Result<(), Error> {
    let sql = "INSERT INTO sessions (id, user_id, refresh_hash, create_time_us, refresh_expires_us, forget_after_s) VALUES ($1, $2, $3, $4, $5, $6)";
    let values: [Value; 6] = [
        session.id.into(),
        session.user_id.into(),
        session.refresh_hash.to_vec().into(),
        session.create_time_us.into(),
        session.refresh_expires_us.into(),
        session.forget_after_s.into(),
    ];
    execute(tx, sql, values).await.map(|_| ())
}

/// One compare-and-set; whose session it is, or None when the old token is not the session's present one.
pub async fn rotate(tx: &Transaction, rotation: &Rotation) -> Result<Option<Uuid>, Error> {
    let sql = "UPDATE sessions SET refresh_hash = $3, refresh_expires_us = $4, forget_after_s = $5 \
               WHERE id = $1 AND refresh_hash = $2 AND revoked_us IS NULL AND refresh_expires_us > $6 RETURNING user_id";
    let values: [Value; 6] = [
        rotation.session_id.into(),
        rotation.old_hash.to_vec().into(),
        rotation.new_hash.to_vec().into(),
        rotation.refresh_expires_us.into(),
        rotation.forget_after_s.into(),
        rotation.now_us.into(),
    ];
    Ok(one::<Owner>(tx, sql, values).await?.map(|owner| owner.user_id))
}

/// Whose session it is, if it still lives.
pub async fn owner(on: &impl ConnectionTrait, id: Uuid) -> Result<Option<Uuid>, Error> {
    let sql = "SELECT user_id FROM sessions WHERE id = $1 AND revoked_us IS NULL";
    Ok(one::<Owner>(on, sql, [id.into()]).await?.map(|owner| owner.user_id))
}

/// Kills one session, or all of a user's; those that lived.
pub async fn revoke(tx: &Transaction, user_id: Uuid, only: Option<Uuid>, now_us: i64) -> Result<Vec<Revoked>, Error> {
    let sql =
        "UPDATE sessions SET revoked_us = $1 WHERE user_id = $2 AND revoked_us IS NULL AND (id = $3 OR $3 IS NULL) RETURNING id, forget_after_s";
    all(tx, sql, [now_us.into(), user_id.into(), only.into()]).await
}

/// Sessions revoked at or after an instant that still matter.
pub async fn revoked_since(on: &impl ConnectionTrait, since_us: i64, now_s: i64) -> Result<Vec<Revoked>, Error> {
    let sql = "SELECT id, forget_after_s FROM sessions WHERE revoked_us >= $1 AND forget_after_s >= $2 ORDER BY revoked_us LIMIT 10000";
    all(on, sql, [since_us.into(), now_s.into()]).await
}

/// Deletes sessions whose refresh token has expired and whose tokens cannot live any more.
pub async fn forget(tx: &Transaction, now_us: i64) -> Result<u64, Error> {
    execute(tx, "DELETE FROM sessions WHERE refresh_expires_us < $1 AND forget_after_s < $2", [now_us.into(), (now_us / 1_000_000).into()]).await
}
