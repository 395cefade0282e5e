//! Registers a user. Whoever registers has no token yet, so that an idempotency key belongs to the address that is registered with it.

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_proto::customers::events::v1::{UserCreated, user_event::Event};
use lastro_proto::customers::v1::CreateUserRequest;
use lastro_proto::customers::v1::user::Role;
use sha2::{Digest as _, Sha256};

use super::attempts::{account_of, check_password};
use super::{App, normalized_email, tell};
use crate::Error;
use crate::domain::role::Roles;
use crate::store::users::{self, User};

/// A user, and whether an earlier call registered it.
pub struct Registered {
    pub user: User,
    pub replayed: bool,
}

/// With the role USER.
pub async fn create_user(app: &App, call: &Call, request: CreateUserRequest) -> Result<Registered, Error> {
    app.registrations.take(call)?;
    create_with_roles(app, call, request, &Roles::only(Role::User)).await
}

/// With any roles; only for what the system itself makes.
pub async fn create_with_roles(app: &App, call: &Call, request: CreateUserRequest, roles: &Roles) -> Result<Registered, Error> {
    let email = normalized_email(&request.email);
    let key_hash = (!request.external_id.is_empty()).then(|| Sha256::digest(request.external_id.as_bytes()).to_vec());
    let request_hash = request_hash(&request.name, &email);
    // Before the expensive hash; the insert below decides.
    if let Some(existing) = users::by_email(app.database.reader(), &email).await? {
        return repeat(app, call, existing, key_hash.as_deref(), &request_hash, request.password).await;
    }
    let now_us = clock::now_us();
    let user = User {
        id: clock::new_id(),
        name: request.name,
        email: Some(email.clone()),
        password_hash: app.passwords.hash_of_new(call.deadline, request.password.clone()).await?,
        roles: roles.bits(),
        disabled: false,
        deleted: false,
        create_time_us: now_us,
        update_time_us: now_us,
        token_version: 0,
        create_request_hash: key_hash.is_some().then(|| request_hash.to_vec()),
        create_key_hash: key_hash.clone(),
    };
    let tx = app.database.begin().await?;
    if !users::insert(&tx, &user).await? {
        tx.rollback().await.map_err(lastro_database::Error::from)?;
        let existing = users::by_email(app.database.reader(), &email).await?.ok_or(Error::EmailTaken)?;
        return repeat(app, call, existing, key_hash.as_deref(), &request_hash, request.password).await;
    }
    tell(&tx, call, user.id, "USER_CREATED", Event::UserCreated(UserCreated { roles: roles.numbers() })).await?;
    app.commit(tx, []).await?;
    Ok(Registered { user, replayed: false })
}

/// What the key stands for besides the password, of which no fast hash may be kept.
fn request_hash(name: &str, email: &str) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for text in [name, email] {
        hasher.update((text.len() as u64).to_be_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.finalize().into()
}

/// The address has a user: it is answered to who repeats the call that registered it. The password is looked at only for somebody who knows the
/// key, and as often as a login may: this is no way to guess it.
async fn repeat(app: &App, call: &Call, user: User, key: Option<&[u8]>, request: &[u8; 32], password: String) -> Result<Registered, Error> {
    if key.is_none() || user.create_key_hash.as_deref() != key {
        return Err(Error::EmailTaken);
    }
    if user.create_request_hash.as_deref() != Some(request.as_slice()) {
        return Err(Error::IdempotencyKeyReused);
    }
    let account = account_of(user.email.as_deref().unwrap_or_default());
    let right = check_password(app, call, account, password, Some(user.password_hash.clone())).await?;
    let mut attempt = right.ok_or(Error::IdempotencyKeyReused)?;
    let tx = app.database.begin().await?;
    attempt.succeeded(&tx).await?;
    app.commit(tx, []).await?;
    Ok(Registered { user, replayed: true })
}
