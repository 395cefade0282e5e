//! The state machine of an operation: what may follow what.

use lastro_proto::transactions::v1::transaction;

pub use transaction::{State, Type};

/// What happens to an operation, apart from its being submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(dead_code, reason = "the table of the state machine is whole before everything that drives it exists")]
pub enum Happening {
    /// Something is waited for: an outside provider, a hold, another attempt.
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
    match (state, happening) {
        (State::Pending | State::Processing, Happening::Waits) => Some(State::Processing),
        (State::Pending | State::Processing, Happening::Authorized) => Some(State::Authorized),
        (State::Pending | State::Processing | State::Authorized, Happening::Completed) => Some(State::Completed),
        (State::Pending | State::Processing, Happening::Rejected) => Some(State::Rejected),
        (State::Authorized, Happening::Voided) => Some(State::Voided),
        (State::Authorized, Happening::Expired) => Some(State::Expired),
        (State::Authorized, Happening::Waits | Happening::Authorized | Happening::Rejected)
        | (State::Pending | State::Processing, Happening::Voided | Happening::Expired)
        | (State::Unspecified | State::Completed | State::Rejected | State::Voided | State::Expired, _) => None,
    }
}

/// Whether the outcome is final.
pub fn is_terminal(state: State) -> bool {
    match state {
        State::Completed | State::Rejected | State::Voided | State::Expired => true,
        State::Unspecified | State::Pending | State::Processing | State::Authorized => false,
    }
}

/// Whether one who waits for the outcome has it: it is settled, refused or authorized.
pub fn is_decided(state: State) -> bool {
    is_terminal(state) || state == State::Authorized
}

#[cfg(test)]
mod tests {
    use super::*;

    const HAPPENINGS: [Happening; 6] =
        [Happening::Waits, Happening::Authorized, Happening::Completed, Happening::Rejected, Happening::Voided, Happening::Expired];
    const STATES: [State; 7] =
        [State::Pending, State::Processing, State::Authorized, State::Completed, State::Rejected, State::Voided, State::Expired];

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
}
