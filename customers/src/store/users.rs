//! The table `users`.

use lastro_database::batch_loader::BatchLoader;
use lastro_database::rows::all_of_ids;
use lastro_database::{Database, Error, Kind, Transaction, all, execute, one};
use lastro_mesh::page::Page;
use sea_orm::{ConnectionTrait, DbBackend, FromQueryResult, Value};
use uuid::Uuid;

/// A row.
#[derive(Debug, Clone, FromQueryResult)]
pub struct User {
    pub id: Uuid,
    pub name: String,
    pub email: Option<String>,
    pub password_hash: String,
    pub roles: i64,
    pub disabled: bool,
    pub deleted: bool,
    pub create_time_us: i64,
    pub update_time_us: i64,
    /// Tokens and sessions with a lower one are dead.
    pub token_version: i64,
    /// SHA-256 of the idempotency key that it was registered with.
    pub create_key_hash: Option<Vec<u8>>,
    /// SHA-256 of the name and the address that it was registered with.
    pub create_request_hash: Option<Vec<u8>>,
}

const COLUMNS: &str =
    "id, name, email, password_hash, roles, disabled, deleted, create_time_us, update_time_us, token_version, create_key_hash, create_request_hash";

/// Adds a user; false when the address is taken.
pub async fn insert(tx: &Transaction, user: &User) -> Result<bool, Error> {
    let sql = format!("INSERT INTO users ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT (email) DO NOTHING");
    let values: [Value; 12] = [
        user.id.into(),
        user.name.clone().into(),
        user.email.clone().into(),
        user.password_hash.clone().into(),
        user.roles.into(),
        user.disabled.into(),
        user.deleted.into(),
        user.create_time_us.into(),
        user.update_time_us.into(),
        user.token_version.into(),
        user.create_key_hash.clone().into(),
        user.create_request_hash.clone().into(),
    ];
    Ok(execute(tx, &sql, values).await? == 1)
}

/// Writes every column that may change; false when the new address is taken. The caller has locked the user's row.
pub async fn update(tx: &Transaction, user: &User) -> Result<bool, Error> {
    let sql = "UPDATE users SET name = $2, email = $3, password_hash = $4, roles = $5, disabled = $6, deleted = $7, update_time_us = $8, \
               create_key_hash = $9, create_request_hash = $10 WHERE id = $1 AND NOT deleted";
    let values: [Value; 10] = [
        user.id.into(),
        user.name.clone().into(),
        user.email.clone().into(),
        user.password_hash.clone().into(),
        user.roles.into(),
        user.disabled.into(),
        user.deleted.into(),
        user.update_time_us.into(),
        user.create_key_hash.clone().into(),
        user.create_request_hash.clone().into(),
    ];
    match execute(tx, sql, values).await {
        Ok(changed) => Error::expect_rows(1, changed).map(|()| true),
        Err(error) if error.kind == Kind::Unique => Ok(false),
        Err(error) => Err(error),
    }
}

/// Users that are not deleted by their ids, as they are now.
pub fn loader(database: &Database) -> BatchLoader<User> {
    let database = database.clone();
    BatchLoader::new(move |ids| {
        let database = database.clone();
        Box::pin(async move {
            let sql = format!("SELECT {COLUMNS} FROM users WHERE id {{ids}} AND NOT deleted");
            let users: Vec<User> = all_of_ids(database.reader(), &sql, &ids, []).await?;
            Ok(users.into_iter().map(|user| (user.id, Ok(user))).collect())
        })
    })
}

/// One user that is not deleted.
pub async fn get(on: &impl ConnectionTrait, id: Uuid) -> Result<Option<User>, Error> {
    one(on, &format!("SELECT {COLUMNS} FROM users WHERE id = $1 AND NOT deleted"), [id.into()]).await
}

/// As [`get`], and locks the user's row until the transaction ends: whoever appends to its events has to.
pub async fn lock(tx: &Transaction, id: Uuid) -> Result<Option<User>, Error> {
    let for_update = if tx.get_database_backend() == DbBackend::Postgres { " FOR UPDATE" } else { "" };
    one(tx, &format!("SELECT {COLUMNS} FROM users WHERE id = $1 AND NOT deleted{for_update}"), [id.into()]).await
}

/// Raises a user's token version from the one that was read: every token and session that it had is dead.
pub async fn revoke_tokens(tx: &Transaction, user: &User, forget_after_s: i64) -> Result<i64, Error> {
    let (before, after) = (user.token_version, user.token_version + 1);
    let sql = "UPDATE users SET token_version = $2, tokens_forget_after_s = $3 WHERE id = $1 AND token_version = $4";
    let changed = execute(tx, sql, [user.id.into(), after.into(), forget_after_s.into(), before.into()]).await?;
    Error::expect_rows(1, changed).map(|()| after)
}

/// A user whose older tokens are dead.
#[derive(Debug, Clone, Copy, FromQueryResult)]
pub struct Revoked {
    pub id: Uuid,
    pub token_version: i64,
    pub tokens_forget_after_s: i64,
}

/// A page of the users whose older tokens are dead and might otherwise still live, after one of them, by id. Deleted ones are among them.
pub async fn revoked_after(on: &impl ConnectionTrait, after: Uuid, now_s: i64, limit: u32) -> Result<Vec<Revoked>, Error> {
    let sql = format!(
        "SELECT id, token_version, tokens_forget_after_s FROM users WHERE tokens_forget_after_s IS NOT NULL AND id > $1 AND tokens_forget_after_s >= $2 \
         ORDER BY id LIMIT {limit}"
    );
    all(on, &sql, [after.into(), now_s.into()]).await
}

/// The user with this address, in lower case.
pub async fn by_email(on: &impl ConnectionTrait, email: &str) -> Result<Option<User>, Error> {
    one(on, &format!("SELECT {COLUMNS} FROM users WHERE email = $1 AND NOT deleted"), [email.into()]).await
}

/// A page of users, newest first.
pub async fn list(on: &impl ConnectionTrait, page: Page) -> Result<Vec<User>, Error> {
    let before = page.before.unwrap_or(Uuid::max());
    let sql = format!("SELECT {COLUMNS} FROM users WHERE NOT deleted AND id < $1 ORDER BY id DESC LIMIT {}", page.limit());
    all(on, &sql, [before.into()]).await
}

/// Whether a user other than `id` is an administrator who may log in. Locks its row until the transaction ends, so that two
/// administrators cannot remove each other at once.
pub async fn another_administrator(tx: &Transaction, id: Uuid, admin_bit: i64) -> Result<bool, Error> {
    let for_update = if tx.get_database_backend() == DbBackend::Postgres { " FOR UPDATE" } else { "" };
    let sql =
        format!("SELECT {COLUMNS} FROM users WHERE id <> $1 AND roles & $2 <> 0 AND NOT disabled AND NOT deleted ORDER BY id LIMIT 1{for_update}");
    Ok(one::<User>(tx, &sql, [id.into(), admin_bit.into()]).await?.is_some())
}

/// Whether any user with a role may log in.
pub async fn any_with_role(on: &impl ConnectionTrait, role_bit: i64) -> Result<bool, Error> {
    Ok(!with_role(on, role_bit, 1).await?.is_empty())
}

/// The first users who have a role and may log in.
pub async fn with_role(on: &impl ConnectionTrait, role_bit: i64, limit: i64) -> Result<Vec<User>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM users WHERE roles & $1 <> 0 AND NOT disabled AND NOT deleted ORDER BY id LIMIT $2");
    all(on, &sql, [role_bit.into(), limit.into()]).await
}
