//! From an operation and the locked balances to its new state, its events and its postings.

use std::collections::HashMap;

use lastro_events::Event;
use lastro_events::event::{GENESIS, NewEvent};
use lastro_proto::transactions::v1 as wire;
use lastro_proto::transactions::v1::operation_event;
use prost::Message as _;
use uuid::Uuid;

use crate::domain::account::{clearing_account_id, stripe_of};
use crate::domain::ledger::{self, Balance, Decision, Movement, Posting};
use crate::domain::operation::{Happening, State, after};
use crate::store::operations::Operation;

/// What the events of one operation say of where they come from.
#[derive(Debug, Clone)]
pub struct Origin {
    pub correlation_id: String,
    pub causation_id: Option<Uuid>,
    pub now_us: i64,
}

/// The movement of an operation; the clearing account stands for the outside world.
pub fn movement(operation: &Operation) -> Movement {
    let clearing = || clearing_account_id(operation.currency, stripe_of(operation.id));
    Movement { debit: operation.source.unwrap_or_else(clearing), credit: operation.destination.unwrap_or_else(clearing), amount: operation.amount }
}

/// The accounts of some operations, sorted: the order in which everybody locks them.
pub fn accounts<'a>(operations: impl Iterator<Item = &'a Operation>) -> Vec<Uuid> {
    let mut ids: Vec<Uuid> = operations.map(movement).flat_map(|movement| [movement.debit, movement.credit]).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Appends an event to an operation's stream and brings the operation up to it.
pub fn record(operation: &mut Operation, origin: &Origin, kind: &'static str, payload: Vec<u8>) -> Event {
    let previous = if operation.version == 0 { GENESIS } else { operation.hash };
    let event = NewEvent {
        id: Uuid::now_v7(),
        kind,
        payload,
        correlation_id: origin.correlation_id.clone(),
        causation_id: origin.causation_id,
        recorded_us: origin.now_us,
    };
    let event = event.at(operation.id, operation.version + 1, &previous);
    operation.version = event.version;
    operation.hash = event.hash;
    operation.update_time_us = origin.now_us;
    event
}

/// Decides an operation. Empty when one of its accounts is not among those that were locked, or when its state allows no decision.
pub fn settle(operation: &mut Operation, origin: &Origin, balances: &mut HashMap<Uuid, Balance>) -> Option<(Event, Vec<Posting>)> {
    let completed = after(operation.state, Happening::Completed)?;
    let rejected = after(operation.state, Happening::Rejected)?;
    match ledger::decide(balances, movement(operation)) {
        Decision::Completed(postings) => {
            operation.state = completed;
            let lines = postings.iter().map(posting).collect();
            let payload = encode(operation_event::Event::Completed(wire::Completed { postings: lines }));
            Some((record(operation, origin, "COMPLETED", payload), postings.to_vec()))
        }
        Decision::Rejected(reason) => {
            operation.state = rejected;
            reason.clone_into(&mut operation.reason);
            let payload = encode(operation_event::Event::Rejected(wire::Rejected { reason: reason.to_owned() }));
            Some((record(operation, origin, "REJECTED", payload), Vec::new()))
        }
        Decision::NotLocked => None,
    }
}

/// Notes that settling failed and will be tried again; an event only the first time.
pub fn wait_for_retry(operation: &mut Operation, origin: &Origin) -> Option<Event> {
    operation.attempts += 1;
    operation.update_time_us = origin.now_us;
    if operation.state != State::Pending {
        return None;
    }
    operation.state = after(operation.state, Happening::Waits)?;
    let payload = encode(operation_event::Event::Processing(wire::Processing { waits_for: "RETRY".to_owned() }));
    Some(record(operation, origin, "PROCESSING", payload))
}

fn posting(posting: &Posting) -> wire::Posting {
    wire::Posting {
        account_id: posting.account_id.to_string(),
        amount_minor: posting.amount,
        account_version: posting.account_version,
        balance_minor: posting.balance,
    }
}

fn encode(event: operation_event::Event) -> Vec<u8> {
    wire::OperationEvent { event: Some(event) }.encode_to_vec()
}
