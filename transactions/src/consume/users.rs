//! Owners and dead sessions, from the events of customers.

use lastro_database::Transaction;
use lastro_events::consumer::Failure;
use lastro_events::{Event, Handler};
use lastro_mesh::identity::RevokedSessions;
use lastro_proto::customers::v1::{SessionRevoked, UserEvent, user_event};
use prost::Message as _;
use uuid::Uuid;

use crate::store::users::{self, RevokedSession};

pub struct Users {
    pub revoked: RevokedSessions,
}

impl Handler for Users {
    async fn apply(&self, tx: &Transaction, event: &Event) -> Result<(), Failure> {
        let payload = UserEvent::decode(event.payload.as_slice()).map_err(|error| Failure::Event(error.to_string()))?;
        match payload.event {
            Some(user_event::Event::UserCreated(_)) => users::set_may_own(tx, event.aggregate_id, true).await?,
            Some(user_event::Event::UserDisabled(change)) => users::set_may_own(tx, event.aggregate_id, !change.disabled).await?,
            Some(user_event::Event::UserDeleted(_)) => users::set_may_own(tx, event.aggregate_id, false).await?,
            Some(user_event::Event::SessionRevoked(session)) => users::add_revoked(tx, dead_session(&session)?).await?,
            // Roles are in the tokens, names are no business of ours, and what a newer customers tells is not known here yet.
            Some(user_event::Event::RolesChanged(_) | user_event::Event::UserUpdated(_)) | None => {}
        }
        Ok(())
    }

    fn applied(&self, event: &Event) {
        if let Ok(UserEvent { event: Some(user_event::Event::SessionRevoked(session)) }) = UserEvent::decode(event.payload.as_slice())
            && let Ok(session) = dead_session(&session)
        {
            self.revoked.insert([(session.session_id, session.forget_after_s)]);
        }
    }
}

fn dead_session(session: &SessionRevoked) -> Result<RevokedSession, Failure> {
    let session_id = Uuid::parse_str(&session.session_id).map_err(|error| Failure::Event(format!("session_id: {error}")))?;
    Ok(RevokedSession { session_id, forget_after_s: session.forget_after_s })
}
