//! What happened to one transaction.

use lastro_events::Event;
use lastro_mesh::identity::User as Caller;
use lastro_proto::transactions::events::v1::{OperationEvent, operation_event};
use prost::Message as _;
use uuid::Uuid;

use super::get_transaction::get_transaction;
use super::{App, sees_all};
use crate::domain::operation::Operation;
use crate::{EVENTS, Error};

/// One of its events, as its caller may see it.
pub struct ShownEvent {
    pub event: Event,
    /// Without what is only others' to know.
    pub payload: OperationEvent,
    /// Nothing of it, or of an event before it, was left out. Else its hash, which covers all of them, would let the caller try out what was.
    pub is_whole: bool,
}

/// Its event stream, oldest first, without what is only others' to know.
pub async fn list_transaction_events(app: &App, caller: &Caller, id: &str) -> Result<Vec<ShownEvent>, Error> {
    let operation = get_transaction(app, caller, id).await?;
    let mut events = Vec::new();
    let mut is_whole = true;
    for event in EVENTS.stream(&app.database, operation.id).await? {
        let mut payload = OperationEvent::decode(event.payload.as_slice()).map_err(lastro_database::Error::corrupt)?;
        let stored = payload.clone();
        redact(caller, &operation, &mut payload);
        is_whole = is_whole && payload == stored;
        events.push(ShownEvent { event, payload, is_whole });
    }
    Ok(events)
}

/// The key and the metadata are the submitter's, and the key of a capture or a void is its caller's. Whoever did not submit it sees the legs and postings of its own accounts alone; the submitter sees of
/// others' postings neither version nor balance, which are their owners'.
fn redact(caller: &Caller, operation: &Operation, payload: &mut OperationEvent) {
    let is_submitter = operation.owner_id == caller.id;
    let is_own = |account_id: &str| {
        let id = Uuid::parse_str(account_id).ok();
        operation.movement.parties().any(|party| Some(party.account_id) == id && party.owner_id == caller.id)
    };
    let resolution = match &mut payload.event {
        Some(operation_event::Event::Completed(completed)) => completed.resolution.as_mut(),
        Some(operation_event::Event::Voided(voided)) => voided.resolution.as_mut(),
        _ => None,
    };
    if let Some(resolution) = resolution.filter(|resolution| resolution.caller_id != caller.id.to_string()) {
        resolution.external_id.clear();
        resolution.request_hash.clear();
    }
    match &mut payload.event {
        Some(operation_event::Event::Submitted(submitted)) if !is_submitter => {
            submitted.external_id.clear();
            submitted.metadata.clear();
            submitted.refunded_minor.clear();
            if !sees_all(caller) {
                submitted.legs.retain(|leg| is_own(&leg.source_account_id) || is_own(&leg.destination_account_id));
            }
        }
        Some(operation_event::Event::Completed(completed)) if !sees_all(caller) => {
            completed.postings.retain(|posting| is_submitter || is_own(&posting.account_id));
            for posting in completed.postings.iter_mut().filter(|posting| !is_own(&posting.account_id)) {
                (posting.account_version, posting.balance_minor, posting.record_time_us) = (0, 0, None);
            }
        }
        // It counts among all legs, of which whoever sees only its own does not know.
        Some(operation_event::Event::Rejected(rejected)) if !is_submitter && !sees_all(caller) => rejected.leg = None,
        _ => {}
    }
}
