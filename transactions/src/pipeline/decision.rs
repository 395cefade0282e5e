//! From an operation and the locked balances to its new state, its events and its postings.

use lastro_events::Event;
use lastro_events::event::{GENESIS, NewEvent};
use lastro_proto::reasons::rejections;
use lastro_proto::transactions::events::v1 as wire;
use lastro_proto::transactions::events::v1::operation_event;
use prost::Message as _;
use uuid::Uuid;

use super::stripes::Stripes;
use crate::domain::ledger::{self, Balances, Decision, Movement, Posting, Side};
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
pub fn movement(operation: &Operation, stripes: &Stripes) -> Movement {
    let clearing = |side| stripes.pick(operation.currency, operation.id, side);
    Movement {
        debit: operation.source.unwrap_or_else(|| clearing(Side::Debit)),
        credit: operation.destination.unwrap_or_else(|| clearing(Side::Credit)),
        amount: operation.amount,
    }
}

/// The accounts of some operations, sorted: the order in which everybody locks them.
pub fn accounts<'a>(operations: impl Iterator<Item = &'a Operation>, stripes: &Stripes) -> Vec<Uuid> {
    let mut ids: Vec<Uuid> =
        operations.map(|operation| movement(operation, stripes)).flat_map(|movement| [movement.debit, movement.credit]).collect();
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

/// What became of an operation. Almost always the largest variant, and never kept.
#[allow(clippy::large_enum_variant, reason = "a box for each operation that ends would cost more than the room")]
pub enum Settled {
    /// It has come to its end, with this event and these postings.
    Ended(Event, Vec<Posting>),
    /// One of its accounts is not among those that were locked, or its state allows no decision.
    Open,
    /// The clearing account that it was to use has no room, and another one may have: everything is to be decided anew.
    ElsewhereFirst,
}

/// Decides an operation.
pub fn settle(operation: &mut Operation, origin: &Origin, balances: &mut Balances, stripes: &Stripes) -> Settled {
    let (Some(completed), Some(rejected)) = (after(operation.state, Happening::Completed), after(operation.state, Happening::Rejected)) else {
        return Settled::Open;
    };
    let movement = movement(operation, stripes);
    let reason = match ledger::decide(balances, movement) {
        Decision::Completed(postings) => {
            operation.state = completed;
            let lines = postings.iter().map(posting).collect();
            let payload = encode(operation_event::Event::Completed(wire::Completed { postings: lines }));
            return Settled::Ended(record(operation, origin, "COMPLETED", payload), postings.to_vec());
        }
        Decision::NotLocked => return Settled::Open,
        Decision::SystemFull(side) => {
            let account_id = match side {
                Side::Debit => movement.debit,
                Side::Credit => movement.credit,
            };
            if stripes.note_full(operation.currency, account_id, side) {
                return Settled::ElsewhereFirst;
            }
            rejections::BALANCE_OVERFLOW
        }
        Decision::Rejected(reason) => reason,
    };
    operation.state = rejected;
    reason.clone_into(&mut operation.reason);
    let payload = encode(operation_event::Event::Rejected(wire::Rejected { reason: reason.to_owned() }));
    Settled::Ended(record(operation, origin, "REJECTED", payload), Vec::new())
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
