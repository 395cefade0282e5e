//! The first administrator, and the way back for one who has forgotten the password.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_proto::customers::events::v1::{UserUpdated, user_event::Event};
use lastro_proto::customers::v1::CreateUserRequest;
use lastro_proto::customers::v1::user::Role;

use super::attempts::forget_account;
use super::create_user::create_with_roles;
use super::{App, normalized_email, revocation, tell};
use crate::Error;
use crate::domain::role::Roles;
use crate::store::users;

const EMAIL: &str = "admin@lastro.local";
/// Administrators that are listed, to choose one of them.
const LISTED_MAX: i64 = 100;

/// Its credentials, known where it is made.
#[derive(Debug)]
pub struct Administrator {
    /// Its address.
    pub email: String,
    /// Random; change it.
    pub password: String,
}

impl Administrator {
    /// With a random password of 144 bits.
    pub fn generate() -> Self {
        Self::with_random_password(EMAIL.to_owned())
    }

    /// As above, with an address.
    pub fn with_random_password(email: String) -> Self {
        Self { email, password: URL_SAFE_NO_PAD.encode(rand::random::<[u8; 18]>()) }
    }
}

/// Whether there is an administrator who may log in.
pub async fn has_administrator(app: &App) -> Result<bool, Error> {
    let admin_bit = Roles::only(Role::Admin).bits();
    Ok(users::any_with_role(app.database.reader(), admin_bit).await?)
}

/// The addresses of the first administrators who may log in.
pub async fn administrators(app: &App) -> Result<Vec<String>, Error> {
    let admin_bit = Roles::only(Role::Admin).bits();
    let all = users::with_role(app.database.writer(), admin_bit, LISTED_MAX).await?;
    Ok(all.into_iter().filter_map(|user| user.email).collect())
}

/// Whether an address is that of an administrator who may log in.
pub async fn is_administrator(app: &App, email: &str) -> Result<bool, Error> {
    let user = users::by_email(app.database.writer(), &normalized_email(email)).await?;
    Ok(user.is_some_and(|user| Roles::from_bits(user.roles).contains(Role::Admin) && !user.disabled))
}

/// Gives an administrator another password, ends its sessions, and forgets its failed logins. For who has the machine; no caller gets here.
pub async fn reset_administrator(app: &App, administrator: &Administrator) -> Result<(), Error> {
    let call = Call::start(Duration::from_secs(10));
    let found = users::by_email(app.database.writer(), &normalized_email(&administrator.email)).await?.ok_or(Error::UserNotFound)?;
    let password_hash = app.passwords.hash_of_changed(call.deadline, administrator.password.clone()).await?;
    let tx = app.database.begin().await?;
    let mut user = users::lock(&tx, found.id).await?.ok_or(Error::UserNotFound)?;
    user.password_hash = password_hash;
    user.update_time_us = clock::now_us();
    users::update(&tx, &user).await?;
    forget_account(&tx, &user).await?;
    tell(&tx, &call, user.id, "USER_UPDATED", Event::UserUpdated(UserUpdated {})).await?;
    let revoked = revocation::revoke_all(&tx, &call, &user, app.settings.access_ttl_s).await?;
    app.commit(tx, [revoked]).await
}

/// Makes an administrator with these credentials. Nothing happens where another replica was first.
pub async fn create_administrator(app: &App, administrator: &Administrator) -> Result<(), Error> {
    let request = CreateUserRequest {
        name: "Administrator".to_owned(),
        email: administrator.email.clone(),
        password: administrator.password.clone(),
        external_id: String::new(),
    };
    match create_with_roles(app, &Call::start(Duration::from_secs(10)), request, &Roles::only(Role::Admin)).await {
        Ok(_) | Err(Error::EmailTaken) => Ok(()),
        Err(error) => Err(error),
    }
}
