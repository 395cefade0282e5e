//! What transactions knows of users: the tables `owners`, `revoked_sessions` and `revoked_users`.

use std::collections::BTreeMap;

use lastro_database::rows::{Type, insert_rows};
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

/// Remembers which users may own accounts.
pub async fn set_may_own(tx: &Transaction, users: &BTreeMap<Uuid, bool>) -> Result<(), Error> {
    let columns = [("user_id", Type::Uuid), ("may_own", Type::Bool)];
    let rows = users.iter().map(|(user_id, may_own)| vec![(*user_id).into(), (*may_own).into()]).collect();
    insert_rows(tx, "owners", &columns, "ON CONFLICT (user_id) DO UPDATE SET may_own = excluded.may_own", rows).await.map(|_| ())
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
pub async fn add_revocations(tx: &Transaction, revocations: &[Revocation]) -> Result<(), Error> {
    // One row each: a statement does not change the same row twice.
    let (mut sessions, mut users) = (BTreeMap::new(), BTreeMap::new());
    for revocation in revocations {
        match *revocation {
            Revocation::Session { session_id, forget_after_s } => drop(sessions.insert(session_id, forget_after_s)),
            Revocation::User { user_id, token_version, forget_after_s } => {
                let newest = users.entry(user_id).or_insert((token_version, forget_after_s));
                *newest = (*newest).max((token_version, forget_after_s));
            }
        }
    }
    let columns = [("session_id", Type::Uuid), ("forget_after_s", Type::BigInt)];
    let rows = sessions.into_iter().map(|(session_id, forget_after_s)| vec![session_id.into(), forget_after_s.into()]).collect();
    insert_rows(tx, "revoked_sessions", &columns, "ON CONFLICT (session_id) DO NOTHING", rows).await?;
    let columns = [("user_id", Type::Uuid), ("token_version", Type::BigInt), ("forget_after_s", Type::BigInt)];
    let newer = "ON CONFLICT (user_id) DO UPDATE SET token_version = excluded.token_version, forget_after_s = excluded.forget_after_s \
                 WHERE revoked_users.token_version < excluded.token_version";
    let rows = users.into_iter().map(|(user_id, (version, forget_after_s))| vec![user_id.into(), version.into(), forget_after_s.into()]).collect();
    insert_rows(tx, "revoked_users", &columns, newer, rows).await.map(|_| ())
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
