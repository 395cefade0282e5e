//! What happened to one transaction.

use lastro_events::Event;
use lastro_mesh::identity::User as Caller;
use lastro_proto::transactions::events::v1::{Completed, OperationEvent, Submitted, operation_event};
use prost::Message as _;
use uuid::Uuid;

use super::get_transaction::get_transaction;
use super::{App, sees_all};
use crate::domain::operation::Operation;
use crate::{EVENTS, Error};

/// Its event stream, oldest first, without what is only others' to know.
pub async fn list_transaction_events(app: &App, caller: &Caller, id: &str) -> Result<Vec<(Event, OperationEvent)>, Error> {
    let operation = get_transaction(app, caller, id).await?;
    let mut events = Vec::new();
    for event in EVENTS.stream(&app.database, operation.id).await? {
        let mut payload = OperationEvent::decode(event.payload.as_slice()).map_err(lastro_database::Error::corrupt)?;
        redact(app, caller, &operation, &mut payload).await?;
        events.push((event, payload));
    }
    Ok(events)
}

/// The key and the metadata are the submitter's; an account's version and balance are its owner's.
async fn redact(app: &App, caller: &Caller, operation: &Operation, payload: &mut OperationEvent) -> Result<(), Error> {
    match &mut payload.event {
        Some(operation_event::Event::Submitted(submitted)) if operation.owner_id != caller.id => {
            *submitted = Submitted { external_id: String::new(), metadata: Vec::new(), ..std::mem::take(submitted) };
        }
        Some(operation_event::Event::Completed(Completed { postings })) if !sees_all(caller) => {
            for posting in postings {
                if !app.sees_account(caller, Uuid::parse_str(&posting.account_id).ok()).await? {
                    posting.account_version = 0;
                    posting.balance_minor = 0;
                }
            }
        }
        _ => {}
    }
    Ok(())
}
