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
    /// The user's, now.
    pub token_version: i64,
}

/// A session as it stands.
#[derive(Debug, Clone, FromQueryResult)]
pub struct Session {
    pub id: Uuid,
    pub user_id: Uuid,
    /// When its refresh tokens expire, Unix microseconds.
    pub refresh_expires_us: i64,
    /// When it was ended by itself, Unix microseconds. It is dead as well when its user has a higher token version.
    pub revoked_us: Option<i64>,
    /// Unix seconds after which none of its access tokens can live.
    pub forget_after_s: i64,
    /// The user's, when the session was opened.
    pub token_version: i64,
    /// The refresh token that was traded last.
    pub last_used_hash: Option<Vec<u8>>,
}

/// A session that is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromQueryResult)]
pub struct Revoked {
    pub id: Uuid,
    pub revoked_us: i64,
    pub forget_after_s: i64,
}

const COLUMNS: &str = "id, user_id, refresh_expires_us, revoked_us, forget_after_s, token_version, last_used_hash";

pub async fn insert(tx: &Transaction, session: &NewSession) -> Result<(), Error> {
    let sql = "INSERT INTO sessions (id, user_id, refresh_hash, create_time_us, refresh_expires_us, forget_after_s, token_version) \
               VALUES ($1, $2, $3, $4, $5, $6, $7)";
    let values: [Value; 7] = [
        session.id.into(),
        session.user_id.into(),
        session.refresh_hash.to_vec().into(),
        session.create_time_us.into(),
        session.refresh_expires_us.into(),
        session.forget_after_s.into(),
        session.token_version.into(),
    ];
    execute(tx, sql, values).await.map(|_| ())
}

/// One session, dead or alive.
pub async fn get(on: &impl ConnectionTrait, id: Uuid) -> Result<Option<Session>, Error> {
    one(on, &format!("SELECT {COLUMNS} FROM sessions WHERE id = $1"), [id.into()]).await
}

/// Notes that a refresh token of the session was traded; the caller has locked the user's row and found that the session lives.
pub async fn note_trade(tx: &Transaction, session: &Session) -> Result<(), Error> {
    let sql = "UPDATE sessions SET refresh_expires_us = $2, forget_after_s = $3, last_used_hash = $4 \
               WHERE id = $1 AND revoked_us IS NULL AND token_version = $5";
    let values: [Value; 5] = [
        session.id.into(),
        session.refresh_expires_us.into(),
        session.forget_after_s.into(),
        session.last_used_hash.clone().into(),
        session.token_version.into(),
    ];
    Error::expect_rows(1, execute(tx, sql, values).await?)
}

/// Ends one session of a user; None when it is over already, or none of the user's.
pub async fn revoke(tx: &Transaction, user_id: Uuid, id: Uuid, now_us: i64) -> Result<Option<Revoked>, Error> {
    let sql =
        "UPDATE sessions SET revoked_us = $1 WHERE user_id = $2 AND id = $3 AND revoked_us IS NULL RETURNING id, $1 AS revoked_us, forget_after_s";
    one(tx, sql, [now_us.into(), user_id.into(), id.into()]).await
}

/// The newest sessions of a user that live, without the first `keep` of them: at most `limit`.
pub async fn beyond(tx: &Transaction, user_id: Uuid, token_version: i64, keep: u32, limit: u32) -> Result<Vec<Uuid>, Error> {
    #[derive(FromQueryResult)]
    struct Id {
        id: Uuid,
    }
    // Ids are UUIDv7: in the order in which the sessions were opened.
    let sql = format!(
        "SELECT id FROM sessions WHERE user_id = $1 AND revoked_us IS NULL AND token_version = $2 ORDER BY id DESC LIMIT {limit} OFFSET {keep}"
    );
    Ok(all::<Id>(tx, &sql, [user_id.into(), token_version.into()]).await?.into_iter().map(|row| row.id).collect())
}

/// Unix seconds after which no access token of any session that a user has had can live.
pub async fn forget_after_s(tx: &Transaction, user_id: Uuid) -> Result<i64, Error> {
    #[derive(FromQueryResult)]
    struct Latest {
        latest: Option<i64>,
    }
    let latest: Option<Latest> = one(tx, "SELECT max(forget_after_s) AS latest FROM sessions WHERE user_id = $1", [user_id.into()]).await?;
    Ok(latest.and_then(|row| row.latest).unwrap_or_default())
}

/// A page of the sessions that were ended by themselves and still matter, after one of them, in the order in which they were ended.
pub async fn revoked_after(on: &impl ConnectionTrait, after: (i64, Uuid), now_s: i64, limit: u32) -> Result<Vec<Revoked>, Error> {
    let sql = format!(
        "SELECT id, revoked_us, forget_after_s FROM sessions WHERE revoked_us IS NOT NULL AND (revoked_us, id) > ($1, $2) AND forget_after_s >= $3 \
         ORDER BY revoked_us, id LIMIT {limit}"
    );
    all(on, &sql, [after.0.into(), after.1.into(), now_s.into()]).await
}

/// Deletes sessions whose refresh token has expired and whose tokens cannot live any more.
pub async fn forget(tx: &Transaction, now_us: i64) -> Result<u64, Error> {
    execute(tx, "DELETE FROM sessions WHERE refresh_expires_us < $1 AND forget_after_s < $2", [now_us.into(), (now_us / 1_000_000).into()]).await
}
