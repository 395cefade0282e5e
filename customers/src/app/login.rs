//! Opens a session. Says the same, in the same time, for an unknown user, a wrong password and a disabled user, and counts failures of
//! all of them alike.

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_proto::customers::v1::{LoginRequest, TokenResponse};

use super::attempts::{Attempt, account_of, check_password};
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
    let user = users::by_email(app.database.reader(), &email).await?.filter(|user| !user.disabled);
    let hash = user.as_ref().map(|user| user.password_hash.clone());
    let right = check_password(app, call, account_of(&email), request.password, hash).await?;
    let (attempt, user) = right.zip(user).ok_or(Error::InvalidCredentials)?;
    open_session(app, call, &user, attempt).await
}

/// `checked` is the user as its password was checked.
async fn open_session(app: &App, call: &Call, checked: &User, mut attempt: Attempt) -> Result<TokenResponse, Error> {
    let refresh = RefreshToken::new(clock::new_id());
    let now_us = clock::now_us();
    let tx = app.database.begin().await?;
    // Read again under its lock: while the password was checked, the user may have been disabled, or have got another password.
    let user_id = checked.id;
    let user = users::lock(&tx, user_id).await?.filter(|user| !user.disabled && user.password_hash == checked.password_hash);
    let user = user.ok_or(Error::InvalidCredentials)?;
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
    refresh_tokens::insert(&tx, &session.refresh_hash, session.id, session.refresh_expires_us).await?;
    let mut ended = Vec::new();
    for oldest in sessions::beyond(&tx, user_id, user.token_version, app.settings.sessions_per_user_max, ENDED_AT_ONCE_MAX).await? {
        ended.extend(revocation::revoke_session(&tx, call, user_id, oldest).await?);
    }
    attempt.succeeded(&tx).await?;
    app.commit(tx, ended).await?;
    let access = app.signer.sign(&user, session.id, &Roles::from_bits(user.roles), app.settings.access_ttl_s)?;
    Ok(tokens::response(access, &refresh, &app.settings))
}
