//! Opens a session. Says the same, in the same time, for an unknown user, a wrong password and a disabled user, and counts failures of
//! all of them alike.

use std::sync::atomic::Ordering;

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_proto::customers::v1::{LoginRequest, TokenResponse};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::tokens::{self, RefreshToken};
use super::{App, normalized_email};
use crate::Error;
use crate::domain::role::Roles;
use crate::store::sessions::NewSession;
use crate::store::users::User;
use crate::store::{failures, sessions, users};

/// A session and its first pair of tokens.
pub async fn login(app: &App, call: &Call, request: LoginRequest) -> Result<TokenResponse, Error> {
    let email = normalized_email(&request.email);
    let email_hash = account_of(&email);
    throttle(app, call, &email_hash).await?;

    let user = users::by_email(app.database.reader(), &email).await?.filter(|user| !user.disabled);
    let hash = user.as_ref().map(|user| user.password_hash.clone());
    if !app.passwords.verify(request.password, hash).await? {
        fail(app, call, &email_hash).await?;
        return Err(Error::InvalidCredentials);
    }
    open_session(app, user.ok_or(Error::InvalidCredentials)?.id, &email_hash).await
}

/// Under what failures of an account are counted, by its normalized address.
pub(super) fn account_of(email: &str) -> [u8; 32] {
    Sha256::digest(email.as_bytes()).into()
}

pub(super) async fn throttle(app: &App, call: &Call, email_hash: &[u8; 32]) -> Result<(), Error> {
    let pause_s = app.settings.login_pause_s;
    let by_address = call.address.and_then(|address| app.failures_by_address.get(&address));
    if by_address.is_some_and(|failures| failures.load(Ordering::Relaxed) >= app.settings.login_failures_per_address) {
        return Err(Error::LoginThrottled { retry_after_s: 60 });
    }
    let Some(failed) = failures::get(app.database.reader(), email_hash).await? else { return Ok(()) };
    let again_s = failed.last_us / 1_000_000 + pause_s - clock::now_s();
    if failed.failures >= app.settings.login_failures_max && again_s > 0 {
        return Err(Error::LoginThrottled { retry_after_s: again_s as u64 });
    }
    Ok(())
}

/// Committed although the call fails.
pub(super) async fn fail(app: &App, call: &Call, email_hash: &[u8; 32]) -> Result<(), Error> {
    if let Some(address) = call.address {
        app.failures_by_address.get_with(address, Default::default).fetch_add(1, Ordering::Relaxed);
    }
    let now_us = clock::now_us();
    let tx = app.database.begin().await?;
    failures::add(&tx, email_hash, now_us, now_us - app.settings.login_pause_s * 1_000_000).await?;
    Ok(tx.commit().await.map_err(lastro_database::Error::from)?)
}

async fn open_session(app: &App, user_id: Uuid, email_hash: &[u8; 32]) -> Result<TokenResponse, Error> {
    let refresh = RefreshToken::new(Uuid::now_v7());
    let now_us = clock::now_us();
    let tx = app.database.begin().await?;
    // Read again while it is held: it may have been disabled while the password was checked.
    let user: User = users::lock(&tx, user_id).await?.filter(|user| !user.disabled).ok_or(Error::InvalidCredentials)?;
    let session = NewSession {
        id: refresh.session_id,
        user_id,
        refresh_hash: refresh.hash(),
        create_time_us: now_us,
        refresh_expires_us: now_us + app.settings.refresh_ttl_s * 1_000_000,
        forget_after_s: now_us / 1_000_000 + app.settings.access_ttl_s,
    };
    sessions::insert(&tx, &session).await?;
    failures::clear(&tx, email_hash).await?;
    tx.commit().await.map_err(lastro_database::Error::from)?;
    let access = app.signer.sign(user_id, session.id, &Roles::from_bits(user.roles), app.settings.access_ttl_s)?;
    Ok(tokens::response(access, &refresh, &app.settings))
}
