//! Reservations: what they go through, how what is asked for is shared among stores, and how they are named.

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::derived_id;

/// What has become of a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The pieces are kept until it expires.
    Reserved,
    /// The pieces have left their stores.
    Confirmed,
    /// The pieces were given back, or never kept.
    Released,
    /// The time was over, and the pieces were given back.
    Expired,
    /// The pieces had left, and are back.
    Returned,
}

/// What is to become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Confirm,
    Release,
    /// Brings back what has left; what is only kept is released.
    Return,
    /// The time is over.
    Expire,
}

/// What a verb does to a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// Each item has this happen to it, and the reservation is in this state afterwards.
    To(State, Stocks),
    /// Nothing: it is so already, or has come to an end that is as good.
    Nothing,
    /// It has ended otherwise.
    Refused,
}

/// What happens to the stock of each item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stocks {
    Released,
    Committed,
    Returned,
}

/// What a verb does at this time. A reservation is dead exactly when its time is over, whether or not that is written yet.
pub const fn moved(state: State, verb: Verb, is_over: bool) -> Move {
    match (verb, state) {
        // Releasing what has run out finds it so: it never depends on who wrote it down first.
        (_, State::Reserved) if is_over => Move::To(State::Expired, Stocks::Released),
        (Verb::Confirm, State::Reserved) => Move::To(State::Confirmed, Stocks::Committed),
        (Verb::Confirm, State::Confirmed) => Move::Nothing,
        (Verb::Release | Verb::Return, State::Reserved) => Move::To(State::Released, Stocks::Released),
        (Verb::Release, State::Confirmed) => Move::Refused,
        (Verb::Return, State::Confirmed) => Move::To(State::Returned, Stocks::Returned),
        (Verb::Confirm, State::Released | State::Expired | State::Returned) => Move::Refused,
        (Verb::Release | Verb::Return, State::Released | State::Expired | State::Returned) | (Verb::Expire, _) => Move::Nothing,
    }
}

/// How many pieces of a product are asked for of which stores, with what each has available: from the fullest store first, of equals by name. None where all
/// of them together have too few.
pub fn allocate(available: &[(&str, i64)], quantity: i64) -> Option<Vec<(usize, i64)>> {
    let mut order: Vec<usize> = (0..available.len()).filter(|index| available[*index].1 > 0).collect();
    order.sort_by(|a, b| available[*b].1.cmp(&available[*a].1).then(available[*a].0.cmp(available[*b].0)));
    let (mut left, mut shares) = (quantity, Vec::new());
    for index in order {
        let share = left.min(available[index].1);
        shares.push((index, share));
        left -= share;
        if left == 0 {
            return Some(shares);
        }
    }
    None
}

/// Reservations that callers name: their names are unique.
pub const PUBLIC: Uuid = Uuid::nil();

/// The id of a reservation: a UUIDv8 (RFC 9562) of SHA-256 over where its name is unique, [`PUBLIC`] or a saga, and the name.
pub fn reservation_id(namespace: Uuid, name: &str) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(b"lastro reservation 1\0");
    hash.update(namespace);
    hash.update(name);
    derived_id(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_store_first_and_of_equals_by_name() {
        let stores = [("b", 3), ("a", 3), ("c", 5), ("d", 0)];
        assert_eq!(allocate(&stores, 4), Some(vec![(2, 4)]));
        assert_eq!(allocate(&stores, 7), Some(vec![(2, 5), (1, 2)]));
        assert_eq!(allocate(&stores, 11), Some(vec![(2, 5), (1, 3), (0, 3)]));
        assert_eq!(allocate(&stores, 12), None);
        assert_eq!(allocate(&[], 1), None);
    }

    #[test]
    fn every_verb_in_every_state() {
        use State::{Confirmed, Expired, Released, Reserved, Returned};
        let moves = |verb, is_over| [Reserved, Confirmed, Released, Expired, Returned].map(|state| moved(state, verb, is_over));
        let to = Move::To;
        let confirm = [to(Confirmed, Stocks::Committed), Move::Nothing, Move::Refused, Move::Refused, Move::Refused];
        assert_eq!(moves(Verb::Confirm, false), confirm);
        assert_eq!(moves(Verb::Confirm, true), [to(Expired, Stocks::Released), Move::Nothing, Move::Refused, Move::Refused, Move::Refused]);
        for (is_over, released) in [(false, to(Released, Stocks::Released)), (true, to(Expired, Stocks::Released))] {
            assert_eq!(moves(Verb::Release, is_over), [released, Move::Refused, Move::Nothing, Move::Nothing, Move::Nothing]);
            let returned = to(Returned, Stocks::Returned);
            assert_eq!(moves(Verb::Return, is_over), [released, returned, Move::Nothing, Move::Nothing, Move::Nothing]);
        }
        assert_eq!(moves(Verb::Expire, false), [Move::Nothing; 5]);
        assert_eq!(moves(Verb::Expire, true), [to(Expired, Stocks::Released), Move::Nothing, Move::Nothing, Move::Nothing, Move::Nothing]);
    }
}
