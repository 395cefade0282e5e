//! From an operation and the locked balances to its new state, its events and its postings.

use lastro_database::Error;
use lastro_events::Event;
use lastro_events::event::{GENESIS, NewEvent};
use lastro_mesh::clock;
use lastro_money::{Currency, Minor};
use smallvec::SmallVec;
use uuid::Uuid;

use super::job::{NewResolution, Refused, Verb};
use super::stripes::Stripes;
use crate::contract::{self, Resolution};
use crate::domain::ledger::{self, Balances, Decision, Leg, Legs, Postings, Side};
use crate::domain::operation::{Happening, Head, Movement, Operation, OperationLeg, Settlement, State, after, is_to_be_settled};
use crate::domain::rejection::{Reason, Rejection};
use crate::domain::report::Word;

/// What the events of one operation say of where they come from.
#[derive(Debug, Clone)]
pub struct Origin {
    pub correlation_id: String,
    pub causation_id: Option<Uuid>,
    pub now_us: i64,
}

/// What is decided against.
pub struct Table<'a> {
    pub balances: Balances,
    pub stripes: &'a Stripes,
    /// By the clock of this replica, when it had its locks.
    pub now_us: i64,
    /// Accounts that somebody was refused for who would have funds if less were held there.
    pub short: Vec<Uuid>,
    /// Accounts with holds that have run out and could not be released: who lacks funds there is not decided now.
    pub unsure: &'a [Uuid],
}

impl<'a> Table<'a> {
    pub fn new(balances: Balances, stripes: &'a Stripes, now_us: i64) -> Self {
        Self { balances, stripes, now_us, short: Vec::new(), unsure: &[] }
    }

    /// Whether another stripe of a clearing account is to be used; then the operation is decided anew.
    fn is_room_elsewhere(&self, movement: &Movement, legs: &[Leg], leg: usize, side: Side) -> bool {
        let account_id = match side {
            Side::Debit => legs[leg].debit,
            Side::Credit => legs[leg].credit,
        };
        self.stripes.note_full(currency_of(movement, leg), account_id, side)
    }
}

fn currency_of(movement: &Movement, leg: usize) -> Currency {
    movement.legs()[leg].amount.currency()
}

/// The legs of an operation; the clearing account stands for the outside world.
pub fn legs(movement: &Movement, operation_id: Uuid, stripes: &Stripes) -> Legs {
    let leg = |leg: &OperationLeg| {
        let clearing = |side| stripes.pick(leg.amount.currency(), operation_id, side);
        Leg {
            debit: leg.source.map_or_else(|| clearing(Side::Debit), |party| party.account_id),
            credit: leg.destination.map_or_else(|| clearing(Side::Credit), |party| party.account_id),
            amount: leg.amount.minor(),
        }
    };
    movement.legs().iter().map(leg).collect()
}

/// The accounts of some legs, sorted: the order in which everybody locks them.
pub fn accounts(legs: impl Iterator<Item = Leg>) -> Vec<Uuid> {
    let mut ids: Vec<Uuid> = legs.flat_map(|leg| [leg.debit, leg.credit]).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Appends an event to an operation's stream and brings the operation up to it.
pub fn record(operation: &mut Operation, origin: &Origin, kind: &'static str, payload: Vec<u8>) -> Event {
    let (version, previous) = operation.head.map_or((1, GENESIS), |head| (head.version + 1, head.hash));
    let event = NewEvent {
        id: clock::new_id(),
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
    /// It is settled, refused or authorized, with this event and these postings.
    Ended(Event, Postings),
    /// One of its accounts is not among those that were locked, or its state allows no decision.
    Open,
    /// It lacks funds, and holds of its account that have run out could not be released: nobody knows whether it would have them.
    Unsure,
    /// The clearing account that it was to use has no room, and another one may have: everything is to be decided anew.
    ElsewhereFirst,
}

/// Decides an operation. An error where an invariant is broken: then nothing is changed, and the operation is at fault.
pub fn settle(operation: &mut Operation, origin: &Origin, table: &mut Table<'_>) -> Result<Settled, Error> {
    if !is_to_be_settled(operation.state) {
        return Ok(Settled::Open);
    }
    if operation.settlement == Settlement::External {
        // Nobody is asked for what the ledger would not take: that would only have to be given back.
        let parties = |leg: &OperationLeg| [leg.source, leg.destination].into_iter().flatten().map(|party| table.balances.get(&party.account_id));
        if operation.movement.legs().iter().flat_map(parties).any(|balance| balance.is_none()) {
            return Ok(Settled::Open);
        }
        let is_closed = |leg: &OperationLeg| parties(leg).flatten().any(|balance| balance.closed);
        if let Some(leg) = operation.movement.legs().iter().position(is_closed) {
            let event = reject(operation, Reason::Ledger(Rejection::AccountClosed), Some(leg), origin)?;
            return Ok(Settled::Ended(event, Postings::new()));
        }
        let event = happen(operation, Happening::Waits, origin, "PROCESSING", contract::waits_for_provider())?;
        return Ok(Settled::Ended(event, Postings::new()));
    }
    // One that could not be decided before its time was over holds nothing any more.
    if operation.hold.is_some_and(|hold| table.now_us >= hold.expire_time_us) {
        let event = happen(operation, Happening::Expired, origin, "EXPIRED", contract::expired())?;
        return Ok(Settled::Ended(event, Postings::new()));
    }
    let legs = legs(&operation.movement, operation.id, table.stripes);
    let decision = match operation.hold {
        Some(hold) => ledger::hold(&mut table.balances, &legs).map(|decision| decision.map(|()| Agreed::Held(hold.expire_time_us))),
        None => ledger::post(&mut table.balances, &legs, table.now_us).map(|decision| decision.map(Agreed::Posted)),
    };
    let (leg, reason) = match decision.map_err(Error::corrupt)? {
        Decision::Agreed(Agreed::Posted(postings)) => {
            operation.note_posted(&postings, table.now_us);
            let payload = contract::completed(&postings, table.now_us, operation.effective_time_us, None, None);
            return Ok(Settled::Ended(happen(operation, Happening::Completed, origin, "COMPLETED", payload)?, postings));
        }
        Decision::Agreed(Agreed::Held(expire_time_us)) => {
            let event = happen(operation, Happening::Authorized, origin, "AUTHORIZED", contract::authorized(expire_time_us))?;
            return Ok(Settled::Ended(event, Postings::new()));
        }
        Decision::NotLocked => return Ok(Settled::Open),
        Decision::SystemFull { leg, side } => {
            if table.is_room_elsewhere(&operation.movement, &legs, leg, side) {
                return Ok(Settled::ElsewhereFirst);
            }
            (leg, Rejection::BalanceOverflow)
        }
        Decision::Refused { leg, reason } => (leg, reason),
    };
    let short = legs[leg].debit;
    if reason == Rejection::InsufficientFunds && table.unsure.contains(&short) {
        return Ok(Settled::Unsure);
    }
    if reason == Rejection::InsufficientFunds && table.balances.get(&short).is_some_and(|balance| balance.held > Minor::ZERO) {
        table.short.push(short);
    }
    Ok(Settled::Ended(reject(operation, Reason::Ledger(reason), Some(leg), origin)?, Postings::new()))
}

/// Ends an operation without any posting, because of one of its legs where it has several.
fn reject(operation: &mut Operation, reason: Reason, leg: Option<usize>, origin: &Origin) -> Result<Event, Error> {
    operation.rejected_leg = leg.filter(|_| operation.movement.single().is_none());
    let payload = contract::rejected(&reason, operation.rejected_leg);
    operation.reason = Some(reason);
    happen(operation, Happening::Rejected, origin, "REJECTED", payload)
}

enum Agreed {
    Posted(Postings),
    Held(i64),
}

fn happen(operation: &mut Operation, happening: Happening, origin: &Origin, kind: &'static str, payload: Vec<u8>) -> Result<Event, Error> {
    operation.state = after(operation.state, happening).ok_or_else(|| Error::corrupt("a change of state that cannot be"))?;
    Ok(record(operation, origin, kind, payload))
}

/// What became of a hold that is captured, voided, or has run out.
#[allow(clippy::large_enum_variant, reason = "as of `Settled`")]
pub enum Resolved {
    /// It has come to its end, with this event and these postings.
    Ended(Event, Postings),
    Refused(Refused),
    /// One of its accounts is not among those that were locked.
    NotLocked,
    /// As of [`Settled`].
    ElsewhereFirst,
}

/// What became of an operation that waited for a provider.
#[allow(clippy::large_enum_variant, reason = "as of `Settled`")]
pub enum Concluded {
    /// As the provider said.
    AsSaid(Event, Postings),
    /// The ledger could not do as the provider said, and refused it.
    Refused(Event),
    /// As of [`Settled`].
    ElsewhereFirst,
}

/// Ends an operation that waits for a provider, as that says. The rules of accounts are the ledger's still.
pub fn conclude(operation: &mut Operation, word: Word, origin: &Origin, table: &mut Table<'_>) -> Result<Concluded, Error> {
    if let Word::Failed(reason) = word {
        let event = reject(operation, Reason::Provider(reason), None, origin)?;
        return Ok(Concluded::AsSaid(event, Postings::new()));
    }
    let legs = legs(&operation.movement, operation.id, table.stripes);
    let (leg, reason) = match ledger::post(&mut table.balances, &legs, table.now_us).map_err(Error::corrupt)? {
        Decision::Agreed(postings) => {
            operation.note_posted(&postings, table.now_us);
            let payload = contract::completed(&postings, table.now_us, operation.effective_time_us, None, None);
            return Ok(Concluded::AsSaid(happen(operation, Happening::Completed, origin, "COMPLETED", payload)?, postings));
        }
        Decision::NotLocked => return Err(Error::corrupt("an account without a balance")),
        Decision::SystemFull { leg, side } if table.is_room_elsewhere(&operation.movement, &legs, leg, side) => return Ok(Concluded::ElsewhereFirst),
        Decision::SystemFull { leg, .. } => (leg, Rejection::BalanceOverflow),
        Decision::Refused { leg, reason } => (leg, reason),
    };
    Ok(Concluded::Refused(reject(operation, Reason::Ledger(reason), Some(leg), origin)?))
}

/// Ends a charge that waits for its provider, since the saga that asked for it has cancelled it. Should the provider approve it later, it is given back.
pub fn cancel(operation: &mut Operation, origin: &Origin) -> Result<Event, Error> {
    reject(operation, Reason::Cancelled, None, origin)
}

/// Captures or voids a hold.
pub fn resolve(hold: &mut Operation, new: &NewResolution, origin: &Origin, table: &mut Table<'_>) -> Result<Resolved, Error> {
    let Some(terms) = hold.hold.filter(|_| hold.state == State::Authorized) else { return Ok(Resolved::Refused(Refused::ResolvedMeanwhile)) };
    // Dead exactly at its expiry, whether or not its release was written yet.
    if table.now_us >= terms.expire_time_us {
        return Ok(Resolved::Refused(Refused::HoldExpired));
    }
    match new.verb {
        Verb::Capture(amount) => capture(hold, amount, Some(new.resolution()), origin, table),
        Verb::Void => release(hold, Happening::Voided, ("VOIDED", contract::voided(Some(new.resolution()), None)), origin, table),
    }
}

/// Releases a hold that has run out.
pub fn expire(hold: &mut Operation, origin: &Origin, table: &mut Table<'_>) -> Result<Resolved, Error> {
    let is_expired = hold.hold.is_some_and(|terms| table.now_us >= terms.expire_time_us);
    if hold.state != State::Authorized || !is_expired {
        return Ok(Resolved::Refused(Refused::ResolvedMeanwhile));
    }
    release(hold, Happening::Expired, ("EXPIRED", contract::expired()), origin, table)
}

fn release(
    hold: &mut Operation,
    happening: Happening,
    (kind, payload): (&'static str, Vec<u8>),
    origin: &Origin,
    table: &mut Table<'_>,
) -> Result<Resolved, Error> {
    let legs = legs(&hold.movement, hold.id, table.stripes);
    match ledger::release(&mut table.balances, &legs).map_err(Error::corrupt)? {
        Decision::Agreed(()) => {}
        Decision::NotLocked => return Ok(Resolved::NotLocked),
        Decision::Refused { .. } | Decision::SystemFull { .. } => return Err(Error::corrupt("a release that is refused")),
    }
    Ok(Resolved::Ended(happen(hold, happening, origin, kind, payload)?, Postings::new()))
}

/// Ends what is held for a refund, as the payment provider says.
pub fn resolve_refund(refund: &mut Operation, word: Word, origin: &Origin, table: &mut Table<'_>) -> Result<Resolved, Error> {
    match word {
        Word::Settled => capture(refund, None, None, origin, table),
        Word::Failed(reason) => {
            let reason = Reason::Provider(reason);
            let payload = contract::voided(None, Some(&reason));
            refund.reason = Some(reason);
            release(refund, Happening::Voided, ("VOIDED", payload), origin, table)
        }
    }
}

fn capture(
    hold: &mut Operation,
    amount: Option<Minor>,
    resolution: Option<Resolution>,
    origin: &Origin,
    table: &mut Table<'_>,
) -> Result<Resolved, Error> {
    let legs = legs(&hold.movement, hold.id, table.stripes);
    let captured: SmallVec<[Minor; 1]> = legs.iter().map(|leg| amount.unwrap_or(leg.amount)).collect();
    let postings = match ledger::capture(&mut table.balances, &legs, &captured, table.now_us).map_err(Error::corrupt)? {
        Decision::Agreed(postings) => postings,
        Decision::NotLocked => return Ok(Resolved::NotLocked),
        Decision::SystemFull { leg, side } if table.is_room_elsewhere(&hold.movement, &legs, leg, side) => return Ok(Resolved::ElsewhereFirst),
        Decision::SystemFull { .. } => return Ok(Resolved::Refused(Refused::NotCaptured(Rejection::BalanceOverflow))),
        Decision::Refused { reason, .. } => return Ok(Resolved::Refused(Refused::NotCaptured(reason))),
    };
    if let (Some(terms), Some(leg)) = (&mut hold.hold, hold.movement.single()) {
        terms.captured = Some(amount.unwrap_or(leg.amount.minor()));
    }
    hold.note_posted(&postings, table.now_us);
    let captured = hold.hold.and_then(|terms| terms.captured);
    let payload = contract::completed(&postings, table.now_us, hold.effective_time_us, captured, resolution);
    Ok(Resolved::Ended(happen(hold, Happening::Completed, origin, "COMPLETED", payload)?, postings))
}

/// Notes that settling failed and will be tried again; an event only the first time.
pub fn wait_for_retry(operation: &mut Operation, origin: &Origin) -> Option<Event> {
    let (before, after) = (operation.state, after(operation.state, Happening::Failed)?);
    operation.attempts += 1;
    operation.update_time_us = origin.now_us;
    operation.state = after;
    (before != after).then(|| record(operation, origin, "PROCESSING", contract::waits_for_retry()))
}
