//! Registers a user.

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_proto::customers::v1::user::Role;
use lastro_proto::customers::v1::{CreateUserRequest, UserCreated, user_event::Event};
use uuid::Uuid;

use super::{App, normalized_email, tell};
use crate::Error;
use crate::domain::role::Roles;
use crate::store::users::{self, User};

/// With the role USER.
pub async fn create_user(app: &App, call: &Call, request: CreateUserRequest) -> Result<User, Error> {
    create_with_roles(app, call, request, &Roles::only(Role::User)).await
}

/// With any roles; only for what the system itself makes.
pub async fn create_with_roles(app: &App, call: &Call, request: CreateUserRequest, roles: &Roles) -> Result<User, Error> {
    let email = normalized_email(&request.email);
    // Before the expensive hash; the insert below decides.
    if users::by_email(app.database.reader(), &email).await?.is_some() {
        return Err(Error::EmailTaken);
    }
    let now_us = clock::now_us();
    let user = User {
        id: Uuid::now_v7(),
        name: request.name,
        email: Some(email),
        password_hash: app.passwords.hash(request.password).await?,
        roles: roles.bits(),
        disabled: false,
        deleted: false,
        create_time_us: now_us,
        update_time_us: now_us,
    };
    let tx = app.database.begin().await?;
    if !users::insert(&tx, &user).await? {
        return Err(Error::EmailTaken);
    }
    tell(&tx, call, user.id, "USER_CREATED", Event::UserCreated(UserCreated { roles: roles.numbers() })).await?;
    app.commit(tx, Vec::new()).await?;
    Ok(user)
}
