//! Killing sessions, and telling everybody.

use lastro_database::Transaction;
use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_proto::customers::v1::{SessionRevoked, user_event::Event};
use uuid::Uuid;

use super::{App, tell};
use crate::Error;
use crate::store::sessions::{self, Revoked};

/// Kills one session of a user, or all; the caller holds the user.
pub async fn revoke(tx: &Transaction, call: &Call, user_id: Uuid, only: Option<Uuid>) -> Result<Vec<Revoked>, Error> {
    let revoked = sessions::revoke(tx, user_id, only, clock::now_us()).await?;
    for session in &revoked {
        let event = SessionRevoked { session_id: session.id.to_string(), forget_after_s: session.forget_after_s };
        tell(tx, call, user_id, "SESSION_REVOKED", Event::SessionRevoked(event)).await?;
    }
    Ok(revoked)
}

impl App {
    /// Commits, then forgets the dead sessions here and wakes whoever listens.
    pub(super) async fn commit(&self, tx: Transaction, revoked: Vec<Revoked>) -> Result<(), Error> {
        tx.commit().await.map_err(lastro_database::Error::from)?;
        self.revoked.insert(revoked.into_iter().map(|session| (session.id, session.forget_after_s)));
        self.bus.wake();
        Ok(())
    }
}
