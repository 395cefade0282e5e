//! Owners and dead sessions, from the events of customers.

use std::collections::BTreeMap;

use lastro_database::Transaction;
use lastro_events::consumer::Failure;
use lastro_events::{Event, Handler};
use lastro_mesh::identity::{Revocation, Revocations};
use lastro_proto::customers::events::v1::{UserEvent, user_event};
use prost::Message as _;
use uuid::Uuid;

use crate::store::account_events::Cause;
use crate::store::{accounts, users};

pub struct Users {
    pub revoked: Revocations,
}

impl Handler for Users {
    async fn apply(&self, tx: &Transaction, events: &[Event]) -> Result<(), Failure> {
        let (mut owners, mut revocations, mut deleted) = (BTreeMap::new(), Vec::new(), Vec::new());
        for event in events {
            let (user_id, payload) =
                (event.aggregate_id, UserEvent::decode(event.payload.as_slice()).map_err(|error| Failure::Event(error.to_string()))?);
            revocations.extend(revocation_of(user_id, &payload)?);
            match payload.event {
                Some(user_event::Event::UserCreated(_)) => drop(owners.insert(user_id, true)),
                Some(user_event::Event::UserDisabled(change)) => drop(owners.insert(user_id, !change.disabled)),
                Some(user_event::Event::UserDeleted(_)) => {
                    owners.insert(user_id, false);
                    deleted.push(event);
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
        }
        users::add_revocations(tx, &revocations).await?;
        users::set_may_own(tx, &owners).await?;
        for event in deleted {
            close_what_was_opened_meanwhile(tx, event).await?;
        }
        Ok(())
    }

    fn applied(&self, events: &[Event]) {
        let revoked = events.iter().filter_map(|event| revocation_of(event.aggregate_id, &UserEvent::decode(event.payload.as_slice()).ok()?).ok()?);
        self.revoked.insert(revoked);
    }
}

/// All of a user's accounts were closed before it was deleted, but for those that were opened in between. Nobody opens one after this.
async fn close_what_was_opened_meanwhile(tx: &Transaction, deleted: &Event) -> Result<(), Failure> {
    let (empty, others): (Vec<_>, Vec<_>) =
        accounts::lock_open(tx, deleted.aggregate_id).await?.into_iter().partition(accounts::OpenBalance::is_empty);
    for balance in others {
        tracing::error!(account = %balance.account_id, "an account of a deleted user has money, and stays open");
    }
    let empty: Vec<Uuid> = empty.into_iter().map(|balance| balance.account_id).collect();
    accounts::close(tx, &empty, Cause { correlation_id: &deleted.correlation_id, event_id: Some(deleted.id) }).await?;
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
