//! What transactions knows of users: the tables `owners` and `revoked_sessions`.

use lastro_database::{Error, Transaction, all, execute, one};
use sea_orm::{ConnectionTrait, FromQueryResult};
use uuid::Uuid;

#[derive(FromQueryResult)]
struct MayOwn {
    may_own: bool,
}

/// Whether a user may own accounts; None when nothing is known of it yet.
pub async fn may_own(on: &impl ConnectionTrait, user_id: Uuid) -> Result<Option<bool>, Error> {
    Ok(one::<MayOwn>(on, "SELECT may_own FROM owners WHERE user_id = $1", [user_id.into()]).await?.map(|row| row.may_own))
}

/// Remembers whether a user may own accounts.
pub async fn set_may_own(tx: &Transaction, user_id: Uuid, may_own: bool) -> Result<(), Error> {
    let sql = "INSERT INTO owners (user_id, may_own) VALUES ($1, $2) ON CONFLICT (user_id) DO UPDATE SET may_own = excluded.may_own";
    execute(tx, sql, [user_id.into(), may_own.into()]).await.map(|_| ())
}

/// A session that is dead.
#[derive(Debug, Clone, Copy, FromQueryResult)]
pub struct RevokedSession {
    pub session_id: Uuid,
    pub forget_after_s: i64,
}

/// Remembers a dead session.
pub async fn add_revoked(tx: &Transaction, session: RevokedSession) -> Result<(), Error> {
    let sql = "INSERT INTO revoked_sessions (session_id, forget_after_s) VALUES ($1, $2) ON CONFLICT (session_id) DO NOTHING";
    execute(tx, sql, [session.session_id.into(), session.forget_after_s.into()]).await.map(|_| ())
}

/// Dead sessions that still matter.
pub async fn revoked(on: &impl ConnectionTrait, now_s: i64) -> Result<Vec<RevokedSession>, Error> {
    all(on, "SELECT session_id, forget_after_s FROM revoked_sessions WHERE forget_after_s >= $1", [now_s.into()]).await
}

/// Deletes those that no longer matter.
pub async fn forget_revoked(tx: &Transaction, now_s: i64) -> Result<u64, Error> {
    execute(tx, "DELETE FROM revoked_sessions WHERE forget_after_s < $1", [now_s.into()]).await
}
