//! Ending sessions, and telling everybody. One session ends by itself; all that a user has end by one mark, however many there are.

use lastro_database::Transaction;
use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::Revocation;
use lastro_proto::customers::events::v1::{SessionRevoked, TokensRevoked, user_event::Event};
use uuid::Uuid;

use super::{App, tell};
use crate::EVENTS;
use crate::Error;
use crate::store::sessions;
use crate::store::users::{self, User};

/// Ends one session of a user, if it is not over already. The caller has locked the user's row.
pub async fn revoke_session(tx: &Transaction, call: &Call, user_id: Uuid, session_id: Uuid) -> Result<Option<Revocation>, Error> {
    let Some(revoked) = sessions::revoke(tx, user_id, session_id, clock::now_us()).await? else { return Ok(None) };
    let event = SessionRevoked { session_id: session_id.to_string(), forget_after_s: revoked.forget_after_s };
    tell(tx, call, user_id, "SESSION_REVOKED", Event::SessionRevoked(event)).await?;
    Ok(Some(Revocation::Session { session_id, forget_after_s: revoked.forget_after_s }))
}

/// Ends every session of a user. The caller has locked the user's row.
pub async fn revoke_all(tx: &Transaction, call: &Call, user: &User, access_ttl_s: i64) -> Result<Revocation, Error> {
    // Tokens may have been signed when they lived longer than they do now.
    let forget_after_s = sessions::forget_after_s(tx, user.id).await?.max(clock::now_s() + access_ttl_s);
    let token_version = users::revoke_tokens(tx, user, forget_after_s).await?;
    tell(tx, call, user.id, "TOKENS_REVOKED", Event::TokensRevoked(TokensRevoked { token_version, forget_after_s })).await?;
    Ok(Revocation::User { user_id: user.id, token_version, forget_after_s })
}

impl App {
    /// Commits, then remembers here what is dead and wakes whoever listens. In a task of its own: a caller that leaves meanwhile must not leave a
    /// dead token alive.
    pub(super) async fn commit(&self, tx: Transaction, revoked: impl IntoIterator<Item = Revocation>) -> Result<(), Error> {
        let (known, bus, revoked) = (self.revoked.clone(), self.bus.clone(), revoked.into_iter().collect::<Vec<_>>());
        let committed = tokio::spawn(async move {
            tx.commit().await.map_err(lastro_database::Error::from)?;
            known.insert(revoked);
            bus.wake(EVENTS.topic);
            Ok(())
        });
        committed.await.map_err(lastro_database::Error::corrupt)?
    }
}
