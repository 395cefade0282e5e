//! Changes a user. New roles and disabling end every session of the user: its tokens say what it could do before.

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::User as Caller;
use lastro_proto::customers::events::v1::{RolesChanged, UserDisabled, UserUpdated, user_event::Event};
use lastro_proto::customers::v1::UpdateUserRequest;
use lastro_proto::customers::v1::user::Role;
use lastro_proto::permissions::Permission;

use super::attempts::{self, account_of};
use super::{App, normalized_email, reachable, revocation, tell};
use crate::Error;
use crate::domain::role::Roles;
use crate::store::users::{self, User};

/// Only the fields that are given.
pub async fn update_user(app: &App, call: &Call, caller: &Caller, request: UpdateUserRequest) -> Result<User, Error> {
    let id = reachable(caller, &request.id, Permission::WriteUsers)?;
    if !caller.may(Permission::WriteUsers) {
        if !request.roles.is_empty() {
            return Err(Error::AdministratorsOnly("roles"));
        }
        if request.disabled.is_some() {
            return Err(Error::AdministratorsOnly("disabled"));
        }
    }
    let tx = app.database.begin().await?;
    let before = users::lock(&tx, id).await?.ok_or(Error::UserNotFound)?;
    let mut user = before.clone();
    if let Some(name) = request.name {
        user.name = name;
    }
    if let Some(email) = request.email {
        user.email = Some(normalized_email(&email));
    }
    if !request.roles.is_empty() {
        user.roles = Roles::new(request.roles).bits();
    }
    user.disabled = request.disabled.unwrap_or(before.disabled);
    keep_an_administrator(&tx, &before, &user).await?;

    user.update_time_us = clock::now_us();
    if !users::update(&tx, &user).await? {
        return Err(Error::EmailTaken);
    }
    if user.name != before.name || user.email != before.email {
        tell(&tx, call, id, "USER_UPDATED", Event::UserUpdated(UserUpdated {})).await?;
    }
    if let (Some(old), Some(new)) = (&before.email, &user.email)
        && old != new
    {
        attempts::carry(&tx, call, &account_of(old), &account_of(new)).await?;
    }
    if user.roles != before.roles {
        let roles = Roles::from_bits(user.roles).numbers();
        tell(&tx, call, id, "ROLES_CHANGED", Event::RolesChanged(RolesChanged { roles })).await?;
    }
    if user.disabled != before.disabled {
        tell(&tx, call, id, "USER_DISABLED", Event::UserDisabled(UserDisabled { disabled: user.disabled })).await?;
    }
    let mut revoked = None;
    if user.roles != before.roles || user.disabled != before.disabled {
        revoked = Some(revocation::revoke_all(&tx, call, &user, app.settings.access_ttl_s).await?);
    }
    app.commit(tx, revoked).await?;
    Ok(user)
}

/// Refuses a change after which nobody could administer.
pub(super) async fn keep_an_administrator(tx: &lastro_database::Transaction, before: &User, after: &User) -> Result<(), Error> {
    let administers = |user: &User| Roles::from_bits(user.roles).contains(Role::Admin) && !user.disabled && !user.deleted;
    let admin_bit = Roles::only(Role::Admin).bits();
    if administers(before) && !administers(after) && !users::another_administrator(tx, after.id, admin_bit).await? {
        return Err(Error::LastAdministrator);
    }
    Ok(())
}
