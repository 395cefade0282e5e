//! From an operation and the locked balances to its new state, its events and its postings.

use lastro_database::Error;
use lastro_events::Event;
use lastro_events::event::{GENESIS, NewEvent};
use smallvec::smallvec;
use uuid::Uuid;

use super::stripes::Stripes;
use crate::contract;
use crate::domain::ledger::{self, Balances, Decision, Leg, Legs, Postings, Side};
use crate::domain::operation::{Happening, Head, Operation, after, is_to_be_settled};
use crate::domain::rejection::Rejection;

/// What the events of one operation say of where they come from.
#[derive(Debug, Clone)]
pub struct Origin {
    pub correlation_id: String,
    pub causation_id: Option<Uuid>,
    pub now_us: i64,
}

/// The legs of an operation; the clearing account stands for the outside world.
pub fn legs(operation: &Operation, stripes: &Stripes) -> Legs {
    let clearing = |side| stripes.pick(operation.amount.currency(), operation.id, side);
    smallvec![Leg {
        debit: operation.source.unwrap_or_else(|| clearing(Side::Debit)),
        credit: operation.destination.unwrap_or_else(|| clearing(Side::Credit)),
        amount: operation.amount.minor(),
    }]
}

/// The accounts of some operations, sorted: the order in which everybody locks them.
pub fn accounts<'a>(operations: impl Iterator<Item = &'a Operation>, stripes: &Stripes) -> Vec<Uuid> {
    let mut ids: Vec<Uuid> = operations.flat_map(|operation| legs(operation, stripes)).flat_map(|leg| [leg.debit, leg.credit]).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Appends an event to an operation's stream and brings the operation up to it.
pub fn record(operation: &mut Operation, origin: &Origin, kind: &'static str, payload: Vec<u8>) -> Event {
    let (version, previous) = operation.head.map_or((1, GENESIS), |head| (head.version + 1, head.hash));
    let event = NewEvent {
        id: Uuid::now_v7(),
        kind,
        payload,
        correlation_id: origin.correlation_id.clone(),
        causation_id: origin.causation_id,
        recorded_us: origin.now_us,
    };
    let event = event.at(operation.id, version, &previous);
    operation.head = Some(Head { version, hash: event.hash });
    operation.update_time_us = origin.now_us;
    event
}

/// What became of an operation. Almost always the largest variant, and never kept.
#[allow(clippy::large_enum_variant, reason = "a box for each operation that ends would cost more than the room")]
pub enum Settled {
    /// It has come to its end, with this event and these postings.
    Ended(Event, Postings),
    /// One of its accounts is not among those that were locked, or its state allows no decision.
    Open,
    /// The clearing account that it was to use has no room, and another one may have: everything is to be decided anew.
    ElsewhereFirst,
}

/// Decides an operation. An error where an invariant is broken: then nothing is changed, and the operation is at fault.
pub fn settle(operation: &mut Operation, origin: &Origin, balances: &mut Balances, stripes: &Stripes) -> Result<Settled, Error> {
    let (Some(completed), Some(rejected)) = (after(operation.state, Happening::Completed), after(operation.state, Happening::Rejected)) else {
        return Ok(Settled::Open);
    };
    if !is_to_be_settled(operation.state) {
        return Ok(Settled::Open);
    }
    let legs = legs(operation, stripes);
    let reason = match ledger::decide(balances, &legs).map_err(Error::corrupt)? {
        Decision::Completed(postings) => {
            operation.state = completed;
            let payload = contract::completed(&postings);
            return Ok(Settled::Ended(record(operation, origin, "COMPLETED", payload), postings));
        }
        Decision::NotLocked => return Ok(Settled::Open),
        Decision::SystemFull { leg, side } => {
            let account_id = match side {
                Side::Debit => legs[leg].debit,
                Side::Credit => legs[leg].credit,
            };
            if stripes.note_full(operation.amount.currency(), account_id, side) {
                return Ok(Settled::ElsewhereFirst);
            }
            Rejection::BalanceOverflow
        }
        Decision::Rejected { reason, .. } => reason,
    };
    operation.state = rejected;
    operation.reason = Some(reason);
    Ok(Settled::Ended(record(operation, origin, "REJECTED", contract::rejected(reason)), Postings::new()))
}

/// Notes that settling failed and will be tried again; an event only the first time.
pub fn wait_for_retry(operation: &mut Operation, origin: &Origin) -> Option<Event> {
    let (before, after) = (operation.state, after(operation.state, Happening::Failed)?);
    operation.attempts += 1;
    operation.update_time_us = origin.now_us;
    operation.state = after;
    (before != after).then(|| record(operation, origin, "PROCESSING", contract::waits_for_retry()))
}
