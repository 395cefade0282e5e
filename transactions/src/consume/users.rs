//! Owners and dead sessions, from the events of customers.

use lastro_database::Transaction;
use lastro_events::consumer::Failure;
use lastro_events::{Event, Handler};
use lastro_mesh::identity::{Revocation, Revocations};
use lastro_proto::customers::v1::{UserEvent, user_event};
use prost::Message as _;
use uuid::Uuid;

use crate::store::{accounts, users};

pub struct Users {
    pub revoked: Revocations,
}

impl Handler for Users {
    async fn apply(&self, tx: &Transaction, event: &Event) -> Result<(), Failure> {
        let payload = UserEvent::decode(event.payload.as_slice()).map_err(|error| Failure::Event(error.to_string()))?;
        if let Some(revocation) = revocation_of(event.aggregate_id, &payload)? {
            users::add_revocation(tx, &revocation).await?;
        }
        match payload.event {
            Some(user_event::Event::UserCreated(_)) => users::set_may_own(tx, event.aggregate_id, true).await?,
            Some(user_event::Event::UserDisabled(change)) => users::set_may_own(tx, event.aggregate_id, !change.disabled).await?,
            Some(user_event::Event::UserDeleted(_)) => {
                users::set_may_own(tx, event.aggregate_id, false).await?;
                close_what_was_opened_meanwhile(tx, event.aggregate_id).await?;
            }
            // Roles are in the tokens, names are no business of ours, and what a newer customers tells is not known here yet.
            Some(
                user_event::Event::RolesChanged(_)
                | user_event::Event::UserUpdated(_)
                | user_event::Event::SessionRevoked(_)
                | user_event::Event::TokensRevoked(_),
            )
            | None => {}
        }
        Ok(())
    }

    fn applied(&self, event: &Event) {
        if let Ok(payload) = UserEvent::decode(event.payload.as_slice())
            && let Ok(revocation) = revocation_of(event.aggregate_id, &payload)
        {
            self.revoked.insert(revocation);
        }
    }
}

/// All of a user's accounts were closed before it was deleted, but for those that were opened in between. Nobody opens one after this.
async fn close_what_was_opened_meanwhile(tx: &Transaction, user_id: Uuid) -> Result<(), Failure> {
    let (empty, others): (Vec<_>, Vec<_>) = accounts::lock_open(tx, user_id).await?.into_iter().partition(accounts::OpenBalance::is_empty);
    for balance in others {
        tracing::error!(account = %balance.account_id, "an account of a deleted user has money, and stays open");
    }
    accounts::close_empty(tx, user_id, empty.len()).await?;
    Ok(())
}

/// The tokens that an event kills.
fn revocation_of(user_id: Uuid, payload: &UserEvent) -> Result<Option<Revocation>, Failure> {
    Ok(match &payload.event {
        Some(user_event::Event::SessionRevoked(session)) => {
            let session_id = Uuid::parse_str(&session.session_id).map_err(|error| Failure::Event(format!("session_id: {error}")))?;
            Some(Revocation::Session { session_id, forget_after_s: session.forget_after_s })
        }
        Some(user_event::Event::TokensRevoked(revoked)) => {
            Some(Revocation::User { user_id, token_version: revoked.token_version, forget_after_s: revoked.forget_after_s })
        }
        _ => None,
    })
}
