//! Trades a refresh token for a new pair. Every token that was given works once: when one comes a second time it is in two hands, and its
//! session ends, which commits although the call fails. A token that was never given ends nothing, whatever session it names.
//!
//! The answer to a trade may be lost, or two windows of one browser may trade the same token at once. So the token that was traded last may be
//! traded again for a few seconds (`refresh_reuse_grace_s`), as long as nothing that came of it was traded on. Each trade then gives a pair of its
//! own. What this costs: a thief who has the token within these seconds gets a session that the owner does not notice.

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_proto::customers::v1::{RefreshRequest, TokenResponse};

use super::tokens::{self, RefreshToken};
use super::{App, revocation};
use crate::Error;
use crate::domain::role::Roles;
use crate::store::refresh_tokens;
use crate::store::sessions::{self, Session};
use crate::store::users;

/// The next pair.
pub async fn refresh(app: &App, call: &Call, request: &RefreshRequest) -> Result<TokenResponse, Error> {
    let given = RefreshToken::parse(&request.refresh_token).ok_or(Error::InvalidRefreshToken)?;
    let (reader, hash) = (app.database.reader(), given.hash());
    let known = refresh_tokens::get(reader, &hash).await?.filter(|known| known.session_id == given.session_id);
    let session_id = known.ok_or(Error::InvalidRefreshToken)?.session_id;
    let user_id = sessions::get(reader, session_id).await?.ok_or(Error::InvalidRefreshToken)?.user_id;

    // In the order of every other use case, the user first, so that two never wait for each other.
    let tx = app.database.begin().await?;
    let user = users::lock(&tx, user_id).await?.filter(|user| !user.disabled).ok_or(Error::InvalidRefreshToken)?;
    let session = sessions::get(&tx, session_id).await?.ok_or(Error::InvalidRefreshToken)?;
    let now_us = clock::now_us();
    let lives = session.revoked_us.is_none() && session.token_version == user.token_version;
    let token = refresh_tokens::get(&tx, &hash).await?.filter(|token| lives && token.expires_us > now_us).ok_or(Error::InvalidRefreshToken)?;
    match token.used_us {
        None => refresh_tokens::mark_used(&tx, &hash, now_us).await?,
        Some(used_us) if may_come_again(&session, &hash, used_us, now_us, app.settings.refresh_reuse_grace_s) => {}
        Some(_) => {
            let ended = revocation::revoke_session(&tx, call, user_id, session_id).await?;
            app.commit(tx, ended).await?;
            return Err(Error::InvalidRefreshToken);
        }
    }
    let next = RefreshToken::new(session_id);
    let refresh_expires_us = now_us + app.settings.refresh_ttl_s * 1_000_000;
    refresh_tokens::insert(&tx, &next.hash(), session_id, refresh_expires_us).await?;
    let session = Session {
        refresh_expires_us: session.refresh_expires_us.max(refresh_expires_us),
        // A token that was signed before may live longer than the one that is signed now.
        forget_after_s: session.forget_after_s.max(now_us / 1_000_000 + app.settings.access_ttl_s),
        last_used_hash: Some(hash.to_vec()),
        ..session
    };
    sessions::note_trade(&tx, &session).await?;
    app.commit(tx, []).await?;
    let access = app.signer.sign(&user, session_id, &Roles::from_bits(user.roles), app.settings.access_ttl_s)?;
    Ok(tokens::response(access, &next, &app.settings))
}

/// Clocks of replicas may differ a little, so that a trade may seem to lie ahead.
fn may_come_again(session: &Session, hash: &[u8; 32], used_us: i64, now_us: i64, grace_s: i64) -> bool {
    session.last_used_hash.as_deref() == Some(hash.as_slice()) && now_us.abs_diff(used_us) <= grace_s.unsigned_abs() * 1_000_000
}
