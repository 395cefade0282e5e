//! What transactions knows of users: the tables `owners`, `revoked_sessions` and `revoked_users`.

use lastro_database::{Error, Transaction, all, execute, one};
use lastro_mesh::identity::Revocation;
use sea_orm::{ConnectionTrait, DbBackend, FromQueryResult};
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

/// Locks what is known of a user as an owner until the transaction ends; whether the user may own accounts. Who opens an account and who closes
/// all that a user has take turns here, so that none is opened behind the back of the other.
pub async fn lock_owner(tx: &Transaction, user_id: Uuid) -> Result<bool, Error> {
    execute(tx, "INSERT INTO owners (user_id, may_own) VALUES ($1, $2) ON CONFLICT (user_id) DO NOTHING", [user_id.into(), true.into()]).await?;
    let for_update = if tx.get_database_backend() == DbBackend::Postgres { " FOR UPDATE" } else { "" };
    let row: Option<MayOwn> = one(tx, &format!("SELECT may_own FROM owners WHERE user_id = $1{for_update}"), [user_id.into()]).await?;
    Ok(row.is_some_and(|row| row.may_own))
}

#[derive(FromQueryResult)]
struct RevokedSession {
    session_id: Uuid,
    forget_after_s: i64,
}

#[derive(FromQueryResult)]
struct RevokedUser {
    user_id: Uuid,
    token_version: i64,
    forget_after_s: i64,
}

/// Remembers tokens that are dead. What is known of a user is never replaced by something older.
pub async fn add_revocation(tx: &Transaction, revocation: &Revocation) -> Result<(), Error> {
    match *revocation {
        Revocation::Session { session_id, forget_after_s } => {
            let sql = "INSERT INTO revoked_sessions (session_id, forget_after_s) VALUES ($1, $2) ON CONFLICT (session_id) DO NOTHING";
            execute(tx, sql, [session_id.into(), forget_after_s.into()]).await?;
        }
        Revocation::User { user_id, token_version, forget_after_s } => {
            let sql = "INSERT INTO revoked_users (user_id, token_version, forget_after_s) VALUES ($1, $2, $3) ON CONFLICT (user_id) DO UPDATE SET \
                       token_version = excluded.token_version, forget_after_s = excluded.forget_after_s \
                       WHERE revoked_users.token_version < excluded.token_version";
            execute(tx, sql, [user_id.into(), token_version.into(), forget_after_s.into()]).await?;
        }
    }
    Ok(())
}

/// All tokens that are dead and might otherwise still live. Decides who gets in: never cut.
pub async fn revoked(on: &impl ConnectionTrait, now_s: i64) -> Result<Vec<Revocation>, Error> {
    let sessions: Vec<RevokedSession> =
        all(on, "SELECT session_id, forget_after_s FROM revoked_sessions WHERE forget_after_s >= $1", [now_s.into()]).await?;
    let users: Vec<RevokedUser> =
        all(on, "SELECT user_id, token_version, forget_after_s FROM revoked_users WHERE forget_after_s >= $1", [now_s.into()]).await?;
    let sessions = sessions.into_iter().map(|row| Revocation::Session { session_id: row.session_id, forget_after_s: row.forget_after_s });
    let users =
        users.into_iter().map(|row| Revocation::User { user_id: row.user_id, token_version: row.token_version, forget_after_s: row.forget_after_s });
    Ok(sessions.chain(users).collect())
}

/// Deletes those that no longer matter.
pub async fn forget_revoked(tx: &Transaction, now_s: i64) -> Result<(), Error> {
    execute(tx, "DELETE FROM revoked_sessions WHERE forget_after_s < $1", [now_s.into()]).await?;
    execute(tx, "DELETE FROM revoked_users WHERE forget_after_s < $1", [now_s.into()]).await.map(|_| ())
}
