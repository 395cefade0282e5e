//! An operation and its state machine: what may follow what.

use std::collections::BTreeMap;

use lastro_money::{Amount, Minor};
use smallvec::SmallVec;
use uuid::Uuid;

use super::ledger::Postings;
use super::rejection::Reason;

/// What kind of movement an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    /// Money comes in: no source account.
    Deposit,
    /// Money goes out: no destination account.
    Withdrawal,
    /// Money moves between two accounts.
    Transfer,
    /// Made by the system for an order.
    Payment,
    /// Made by the system: gives a payment back.
    Refund,
    /// Made by the system: corrects an operation.
    Reversal,
}

impl Type {
    /// As it is written in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deposit => "DEPOSIT",
            Self::Withdrawal => "WITHDRAWAL",
            Self::Transfer => "TRANSFER",
            Self::Payment => "PAYMENT",
            Self::Refund => "REFUND",
            Self::Reversal => "REVERSAL",
        }
    }
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Stored, and to be settled: nobody has tried yet.
    Pending,
    /// To be settled again: an attempt failed.
    Retrying,
    /// Waits for somebody, such as an outside provider: there is nothing to settle until then.
    Waiting,
    /// Held, to be captured or voided.
    Authorized,
    /// Settled. Terminal.
    Completed,
    /// Refused at settlement. Terminal.
    Rejected,
    /// A hold that was given up. Terminal.
    Voided,
    /// A hold that ran out. Terminal.
    Expired,
}

/// An operation as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    pub id: Uuid,
    pub owner_id: Uuid,
    pub external_id: String,
    pub request_hash: [u8; 32],
    pub kind: Type,
    pub state: State,
    /// Why it was rejected, if it was.
    pub reason: Option<Reason>,
    /// For which of its legs it was rejected, from 0, where it has several.
    pub rejected_leg: Option<usize>,
    pub movement: Movement,
    pub settlement: Settlement,
    /// It is a hold: what it moves is authorized first.
    pub hold: Option<Hold>,
    /// Of a reversal or a refund: the operation that it corrects.
    pub original_id: Option<Uuid>,
    /// The reversal of this operation that was not rejected.
    pub reversal_id: Option<Uuid>,
    /// Of a payment: what refunds have taken of each of its legs, or hold of it; None as long as there is none. Of a refund: what it takes of each leg of its
    /// payment.
    pub refunded: Option<Refunded>,
    /// The posted balances after it, in minor units: two a leg, of the debited and of the credited account. None until it is posted.
    pub balances_after: Option<BalancesAfter>,
    pub description: String,
    pub metadata: BTreeMap<String, String>,
    /// When it counts for reports: as given, else when it was posted, and until then when it was accepted.
    pub effective_time_us: i64,
    /// Whether the submitter said when it counts.
    pub has_effective_time: bool,
    pub create_time_us: i64,
    pub update_time_us: i64,
    /// Its last event; None before its first one, when it is not stored yet.
    pub head: Option<Head>,
    /// How often settling it failed.
    pub attempts: i64,
}

/// The last event of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// 1 for the first event.
    pub version: i64,
    /// Over it and the one before.
    pub hash: [u8; 32],
}

/// What an operation moves.
#[derive(Debug, Clone, PartialEq)]
pub enum Movement {
    /// One leg: the operation's own source, destination and amount.
    Single(OperationLeg),
    /// Several, in the order in which they are judged.
    Legs(Vec<OperationLeg>),
}

/// Money that is to move from one account to another.
#[derive(Debug, Clone, PartialEq)]
pub struct OperationLeg {
    /// None: the clearing account.
    pub source: Option<Party>,
    /// None: the clearing account.
    pub destination: Option<Party>,
    /// More than zero.
    pub amount: Amount,
    /// As given; that of a single leg is its operation's.
    pub description: String,
}

/// An account, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Party {
    pub account_id: Uuid,
    pub owner_id: Uuid,
}

/// What makes an operation a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// When it ends by itself, Unix microseconds.
    pub expire_time_us: i64,
    /// What was captured of a hold of a single leg.
    pub captured: Option<Minor>,
}

/// Two a leg.
pub type BalancesAfter = SmallVec<[Minor; 2]>;

/// One a leg.
pub type Refunded = SmallVec<[Minor; 1]>;

/// Who says what becomes of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Settlement {
    /// The ledger, by its rules alone.
    Internal,
    /// An outside provider, whose word is waited for.
    External,
}

impl Movement {
    pub fn legs(&self) -> &[OperationLeg] {
        match self {
            Self::Single(leg) => std::slice::from_ref(leg),
            Self::Legs(legs) => legs,
        }
    }

    /// The one leg, where it is one.
    pub fn single(&self) -> Option<&OperationLeg> {
        match self {
            Self::Single(leg) => Some(leg),
            Self::Legs(_) => None,
        }
    }

    /// The accounts that it names, some of them several times.
    pub fn parties(&self) -> impl Iterator<Item = Party> {
        self.legs().iter().flat_map(|leg| [leg.source, leg.destination]).flatten()
    }
}

impl OperationLeg {
    pub fn concerns(&self, user_id: Uuid) -> bool {
        [self.source, self.destination].into_iter().flatten().any(|party| party.owner_id == user_id)
    }
}

impl Operation {
    /// PENDING, settled by the ledger, and with nothing beside what it moves: what else it has is said where it is made.
    pub fn new(id: Uuid, (owner_id, external_id): (Uuid, String), kind: Type, movement: Movement, now_us: i64) -> Self {
        Self {
            id,
            owner_id,
            external_id,
            request_hash: [0; 32],
            kind,
            state: State::Pending,
            reason: None,
            rejected_leg: None,
            movement,
            settlement: Settlement::Internal,
            hold: None,
            original_id: None,
            reversal_id: None,
            refunded: None,
            balances_after: None,
            description: String::new(),
            metadata: BTreeMap::new(),
            effective_time_us: now_us,
            has_effective_time: false,
            create_time_us: now_us,
            update_time_us: now_us,
            head: None,
            attempts: 0,
        }
    }

    /// Whether a user owns one of its accounts.
    pub fn concerns(&self, user_id: Uuid) -> bool {
        self.movement.legs().iter().any(|leg| leg.concerns(user_id))
    }

    /// What each leg moves: of a hold that was captured in part, that part.
    pub fn moved(&self) -> impl Iterator<Item = Minor> {
        let captured = self.hold.and_then(|hold| hold.captured);
        self.movement.legs().iter().map(move |leg| captured.unwrap_or(leg.amount.minor()))
    }

    /// Notes what was posted, and when that was.
    pub fn note_posted(&mut self, postings: &Postings, now_us: i64) {
        self.balances_after = Some(postings.iter().map(|posting| posting.balance).collect());
        if !self.has_effective_time {
            self.effective_time_us = now_us;
        }
    }

    /// How large it is in an answer, about: never less than it is.
    pub fn answer_bytes(&self) -> usize {
        let metadata: usize = self.metadata.iter().map(|(key, value)| key.len() + value.len() + 12).sum();
        let legs: usize = self.movement.legs().iter().map(|leg| 480 + leg.description.len()).sum();
        440 + self.external_id.len() + self.description.len() + metadata + legs
    }
}

/// What happens to an operation, apart from its being submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Happening {
    /// An attempt to settle it failed.
    Failed,
    /// Somebody is waited for, such as an outside provider.
    Waits,
    /// The amount is held.
    Authorized,
    /// It is settled; of a hold: captured.
    Completed,
    /// It is refused.
    Rejected,
    /// A hold is given up.
    Voided,
    /// A hold ran out.
    Expired,
}

/// The state after something happens; None where that cannot happen. A terminal state never changes: a correction is another operation.
pub fn after(state: State, happening: Happening) -> Option<State> {
    use Happening as H;
    use State as S;
    match (state, happening) {
        (S::Pending | S::Retrying, H::Failed) => Some(S::Retrying),
        (S::Pending | S::Retrying, H::Waits) => Some(S::Waiting),
        (S::Pending | S::Retrying | S::Waiting, H::Authorized) => Some(S::Authorized),
        (S::Pending | S::Retrying | S::Waiting | S::Authorized, H::Completed) => Some(S::Completed),
        (S::Pending | S::Retrying | S::Waiting, H::Rejected) => Some(S::Rejected),
        (S::Authorized, H::Voided) => Some(S::Voided),
        // A hold that could not be decided before its time was over holds nothing.
        (S::Pending | S::Retrying | S::Authorized, H::Expired) => Some(S::Expired),
        (S::Waiting, H::Failed | H::Waits | H::Voided | H::Expired)
        | (S::Authorized, H::Failed | H::Waits | H::Authorized | H::Rejected)
        | (S::Pending | S::Retrying, H::Voided)
        | (S::Completed | S::Rejected | S::Voided | S::Expired, _) => None,
    }
}

/// Whether the outcome is final.
pub fn is_terminal(state: State) -> bool {
    match state {
        State::Completed | State::Rejected | State::Voided | State::Expired => true,
        State::Pending | State::Retrying | State::Waiting | State::Authorized => false,
    }
}

/// Whether workers have to settle it. What waits for somebody they leave alone.
pub fn is_to_be_settled(state: State) -> bool {
    match state {
        State::Pending | State::Retrying => true,
        State::Waiting | State::Authorized | State::Completed | State::Rejected | State::Voided | State::Expired => false,
    }
}

/// Whether one who waits for the outcome has it: it is settled, refused or authorized.
pub fn is_decided(state: State) -> bool {
    is_terminal(state) || state == State::Authorized
}

#[cfg(test)]
mod tests {
    use super::*;

    const HAPPENINGS: [Happening; 7] = [
        Happening::Failed,
        Happening::Waits,
        Happening::Authorized,
        Happening::Completed,
        Happening::Rejected,
        Happening::Voided,
        Happening::Expired,
    ];
    const STATES: [State; 8] =
        [State::Pending, State::Retrying, State::Waiting, State::Authorized, State::Completed, State::Rejected, State::Voided, State::Expired];

    #[test]
    fn nothing_follows_a_terminal_state() {
        for state in STATES.into_iter().filter(|state| is_terminal(*state)) {
            assert!(HAPPENINGS.iter().all(|happening| after(state, *happening).is_none()), "{state:?}");
        }
    }

    #[test]
    fn every_state_is_reached_and_every_open_state_can_end() {
        let mut reached = vec![State::Pending];
        for _ in STATES {
            let next: Vec<_> = reached.iter().flat_map(|state| HAPPENINGS.iter().filter_map(|happening| after(*state, *happening))).collect();
            reached.extend(next);
        }
        assert!(STATES.iter().all(|state| reached.contains(state)));
        for state in STATES.into_iter().filter(|state| !is_terminal(*state)) {
            assert!(HAPPENINGS.iter().any(|happening| after(state, *happening).is_some_and(is_terminal)), "{state:?}");
        }
    }

    #[test]
    fn an_attempt_can_fail_exactly_where_there_is_something_to_settle() {
        for state in STATES {
            assert_eq!(after(state, Happening::Failed).is_some(), is_to_be_settled(state), "{state:?}");
        }
    }
}
