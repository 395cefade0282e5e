//! Trades a refresh token for a new pair, by one compare-and-set. A token that was traded before is in two hands: its session ends, and
//! that commits although the call fails.

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_proto::customers::v1::{RefreshRequest, TokenResponse};
use uuid::Uuid;

use super::tokens::{self, RefreshToken};
use super::{App, revocation};
use crate::Error;
use crate::domain::role::Roles;
use crate::store::sessions::Rotation;
use crate::store::{sessions, users};

/// The next pair.
pub async fn refresh(app: &App, call: &Call, request: &RefreshRequest) -> Result<TokenResponse, Error> {
    let old = RefreshToken::parse(&request.refresh_token).ok_or(Error::InvalidRefreshToken)?;
    let new = RefreshToken::new(old.session_id);
    let now_us = clock::now_us();
    let tx = app.database.begin().await?;
    let rotation = Rotation {
        session_id: old.session_id,
        old_hash: old.hash(),
        new_hash: new.hash(),
        now_us,
        refresh_expires_us: now_us + app.settings.refresh_ttl_s * 1_000_000,
        forget_after_s: now_us / 1_000_000 + app.settings.access_ttl_s,
    };
    let Some(user_id) = sessions::rotate(&tx, &rotation).await? else {
        tx.rollback().await.map_err(lastro_database::Error::from)?;
        end_session(app, call, old.session_id).await?;
        return Err(Error::InvalidRefreshToken);
    };
    let user = users::get(&tx, user_id).await?.filter(|user| !user.disabled).ok_or(Error::InvalidRefreshToken)?;
    tx.commit().await.map_err(lastro_database::Error::from)?;
    let access = app.signer.sign(user_id, old.session_id, &Roles::from_bits(user.roles), app.settings.access_ttl_s)?;
    Ok(tokens::response(access, &new, &app.settings))
}

/// In the order of every other use case, the user first, so that two never wait for each other.
async fn end_session(app: &App, call: &Call, session_id: Uuid) -> Result<(), Error> {
    let Some(user_id) = sessions::owner(app.database.reader(), session_id).await? else { return Ok(()) };
    let tx = app.database.begin().await?;
    if users::lock(&tx, user_id).await?.is_none() {
        return Ok(());
    }
    let revoked = revocation::revoke(&tx, call, user_id, Some(session_id)).await?;
    app.commit(tx, revoked).await
}
