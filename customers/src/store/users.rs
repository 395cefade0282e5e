//! The table `users`.

use lastro_database::{Error, Kind, Transaction, all, execute, one};
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
}

const COLUMNS: &str = "id, name, email, password_hash, roles, disabled, deleted, create_time_us, update_time_us";

/// Adds a user; false when the address is taken.
pub async fn insert(tx: &Transaction, user: &User) -> Result<bool, Error> {
    let sql = format!("INSERT INTO users ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (email) DO NOTHING");
    let values: [Value; 9] = [
        user.id.into(),
        user.name.clone().into(),
        user.email.clone().into(),
        user.password_hash.clone().into(),
        user.roles.into(),
        user.disabled.into(),
        user.deleted.into(),
        user.create_time_us.into(),
        user.update_time_us.into(),
    ];
    Ok(execute(tx, &sql, values).await? == 1)
}

/// Writes every column that may change; false when the new address is taken.
pub async fn update(tx: &Transaction, user: &User) -> Result<bool, Error> {
    let sql =
        "UPDATE users SET name = $2, email = $3, password_hash = $4, roles = $5, disabled = $6, deleted = $7, update_time_us = $8 WHERE id = $1";
    let values: [Value; 8] = [
        user.id.into(),
        user.name.clone().into(),
        user.email.clone().into(),
        user.password_hash.clone().into(),
        user.roles.into(),
        user.disabled.into(),
        user.deleted.into(),
        user.update_time_us.into(),
    ];
    match execute(tx, sql, values).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind == Kind::Unique => Ok(false),
        Err(error) => Err(error),
    }
}

/// One user that is not deleted.
pub async fn get(on: &impl ConnectionTrait, id: Uuid) -> Result<Option<User>, Error> {
    one(on, &format!("SELECT {COLUMNS} FROM users WHERE id = $1 AND NOT deleted"), [id.into()]).await
}

/// As [`get`], and holds the user until the transaction ends: whoever appends to its events does.
pub async fn lock(tx: &Transaction, id: Uuid) -> Result<Option<User>, Error> {
    let for_update = if tx.get_database_backend() == DbBackend::Postgres { " FOR UPDATE" } else { "" };
    one(tx, &format!("SELECT {COLUMNS} FROM users WHERE id = $1 AND NOT deleted{for_update}"), [id.into()]).await
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

/// Whether a user other than `id` is an administrator who may log in. Holds those until the transaction ends, so that two
/// administrators cannot remove each other at once.
pub async fn another_administrator(tx: &Transaction, id: Uuid, admin_bit: i64) -> Result<bool, Error> {
    let for_update = if tx.get_database_backend() == DbBackend::Postgres { " FOR UPDATE" } else { "" };
    let sql =
        format!("SELECT {COLUMNS} FROM users WHERE id <> $1 AND roles & $2 <> 0 AND NOT disabled AND NOT deleted ORDER BY id LIMIT 1{for_update}");
    Ok(one::<User>(tx, &sql, [id.into(), admin_bit.into()]).await?.is_some())
}

/// Whether any user with a role may log in.
pub async fn any_with_role(on: &impl ConnectionTrait, role_bit: i64) -> Result<bool, Error> {
    let sql = format!("SELECT {COLUMNS} FROM users WHERE roles & $1 <> 0 AND NOT disabled AND NOT deleted LIMIT 1");
    Ok(one::<User>(on, &sql, [role_bit.into()]).await?.is_some())
}
