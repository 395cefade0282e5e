//! Sets a new password and ends every session of the user.

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::User as Caller;
use lastro_proto::customers::events::v1::{UserUpdated, user_event::Event};
use lastro_proto::customers::v1::ChangePasswordRequest;

use super::attempts::{account_of, check_password};
use super::{App, revocation, tell};
use crate::Error;
use crate::store::users;

/// The present password is asked for again: a stolen token must not be enough, nor may it guess. Attempts count, and are throttled, as those
/// of a login.
pub async fn change_password(app: &App, call: &Call, caller: &Caller, request: ChangePasswordRequest) -> Result<(), Error> {
    let user = users::get(app.database.reader(), caller.id).await?.ok_or(Error::UserNotFound)?;
    // By the user and not by its address, which the holder of a stolen token may change, to begin counting anew.
    let account = account_of(&caller.id.to_string());
    let right = check_password(app, call, account, request.current_password, Some(user.password_hash.clone())).await?;
    let mut attempt = right.ok_or(Error::InvalidCredentials)?;
    let password_hash = match app.passwords.hash_of_changed(call.deadline, request.new_password).await {
        Ok(password_hash) => password_hash,
        Err(error) => {
            // The password was right.
            attempt.not_made(&app.database).await?;
            return Err(error);
        }
    };
    let tx = app.database.begin().await?;
    let checked = user.password_hash;
    // Of two that know the present password at once, the second one knows it no more.
    let mut user = users::lock(&tx, caller.id).await?.filter(|user| user.password_hash == checked).ok_or(Error::InvalidCredentials)?;
    user.password_hash = password_hash;
    user.update_time_us = clock::now_us();
    users::update(&tx, &user).await?;
    tell(&tx, call, user.id, "USER_UPDATED", Event::UserUpdated(UserUpdated {})).await?;
    let revoked = revocation::revoke_all(&tx, call, &user, app.settings.access_ttl_s).await?;
    attempt.succeeded(&tx).await?;
    app.commit(tx, [revoked]).await
}
