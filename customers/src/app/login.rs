//! Opens a session. Says the same, in the same time, for an unknown user, a wrong password and a disabled user, and counts failures of
//! all of them alike.

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_proto::customers::v1::{LoginRequest, TokenResponse};
use uuid::Uuid;

use super::attempts::{Attempt, account_of};
use super::tokens::{self, RefreshToken};
use super::{App, normalized_email, revocation};
use crate::Error;
use crate::domain::role::Roles;
use crate::store::sessions::NewSession;
use crate::store::users::User;
use crate::store::{refresh_tokens, sessions, users};

/// Sessions beyond the cap that one login ends. Each has an event of its own; where a lower cap was set, they go little by little.
const ENDED_AT_ONCE_MAX: u32 = 10;

/// A session and its first pair of tokens.
pub async fn login(app: &App, call: &Call, request: LoginRequest) -> Result<TokenResponse, Error> {
    let email = normalized_email(&request.email);
    let attempt = app.attempts.take(call, account_of(&email)).await?;
    let user = users::by_email(app.database.reader(), &email).await?.filter(|user| !user.disabled);
    let hash = user.as_ref().map(|user| user.password_hash.clone());
    if !app.passwords.verify(request.password, hash).await? {
        return Err(Error::InvalidCredentials);
    }
    open_session(app, call, user.ok_or(Error::InvalidCredentials)?.id, attempt).await
}

async fn open_session(app: &App, call: &Call, user_id: Uuid, mut attempt: Attempt) -> Result<TokenResponse, Error> {
    let refresh = RefreshToken::new(Uuid::now_v7());
    let now_us = clock::now_us();
    let tx = app.database.begin().await?;
    // Read again under its lock: it may have been disabled while the password was checked.
    let user: User = users::lock(&tx, user_id).await?.filter(|user| !user.disabled).ok_or(Error::InvalidCredentials)?;
    let session = NewSession {
        id: refresh.session_id,
        user_id,
        refresh_hash: refresh.hash(),
        create_time_us: now_us,
        refresh_expires_us: now_us + app.settings.refresh_ttl_s * 1_000_000,
        forget_after_s: now_us / 1_000_000 + app.settings.access_ttl_s,
        token_version: user.token_version,
    };
    sessions::insert(&tx, &session).await?;
    refresh_tokens::insert(&tx, &session.refresh_hash, session.id).await?;
    let mut ended = Vec::new();
    for oldest in sessions::beyond(&tx, user_id, user.token_version, app.settings.sessions_per_user_max, ENDED_AT_ONCE_MAX).await? {
        ended.extend(revocation::revoke_session(&tx, call, user_id, oldest).await?);
    }
    attempt.succeeded(&tx).await?;
    app.commit(tx, ended).await?;
    let access = app.signer.sign(&user, session.id, &Roles::from_bits(user.roles), app.settings.access_ttl_s)?;
    Ok(tokens::response(access, &refresh, &app.settings))
}
