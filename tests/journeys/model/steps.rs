//! What is done in a sequence, and how often.

use proptest::prelude::*;

/// What is done next. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// A transfer, or where `to` says so a withdrawal.
    Move(Movement),
    /// By the administrator.
    Deposit {
        to: u8,
        amount: u16,
    },
    Resolve {
        hold: u8,
        by: u8,
        captures: bool,
        part: u8,
        dry: bool,
    },
    Reverse {
        of: u8,
        by: u8,
    },
    Freeze {
        account: u8,
        frozen: bool,
    },
    Limit {
        account: u8,
        limit: u16,
    },
    Rename {
        account: u8,
        name: u8,
    },
    Close {
        account: u8,
    },
    Batch {
        user: u8,
        members: Vec<Movement>,
        atomic: bool,
        dry: bool,
        twice: bool,
    },
    /// An earlier request of a transaction again, as it was or otherwise.
    Again {
        of: u8,
        changed: bool,
    },
    /// From an account, or by a card that the sandbox approves or not.
    Pay {
        movement: Movement,
        card: bool,
        declined: bool,
    },
    /// Some of a payment, or all that is left.
    Refund {
        of: u8,
        by: u8,
        part: u8,
    },
    /// Time passes until every short hold has run out.
    Wait,
    /// kill -9, and a start on what is stored; a move is under way meanwhile.
    Crash(Movement),
}

#[derive(Debug, Clone)]
pub(super) struct Movement {
    pub user: u8,
    pub legs: Vec<(u8, u8, u16)>,
    pub as_legs: bool,
    pub hold: bool,
    pub short: bool,
    pub dry: bool,
}

pub(super) fn movement() -> impl Strategy<Value = Movement> {
    let legs = prop::collection::vec((any::<u8>(), any::<u8>(), 1_u16..3000), 1..5);
    let flags = (prop::bool::weighted(0.35), prop::bool::weighted(0.35), prop::bool::weighted(0.2), prop::bool::weighted(0.1));
    (any::<u8>(), legs, flags).prop_map(|(user, legs, (as_legs, hold, short, dry))| Movement { user, legs, as_legs, hold, short, dry })
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let (any, flag) = (any::<u8>, any::<bool>);
    prop_oneof![
        30 => movement().prop_map(Step::Move),
        8 => (any(), 1_u16..6000).prop_map(|(to, amount)| Step::Deposit { to, amount }),
        16 => (any(), any(), prop::bool::weighted(0.7), any(), prop::bool::weighted(0.1))
            .prop_map(|(hold, by, captures, part, dry)| Step::Resolve { hold, by, captures, part, dry }),
        9 => (any(), any()).prop_map(|(of, by)| Step::Reverse { of, by }),
        5 => (any(), prop::bool::weighted(0.35)).prop_map(|(account, frozen)| Step::Freeze { account, frozen }),
        5 => (any(), 0_u16..4000).prop_map(|(account, limit)| Step::Limit { account, limit }),
        2 => (any(), any()).prop_map(|(account, name)| Step::Rename { account, name }),
        3 => any().prop_map(|account| Step::Close { account }),
        8 => (any(), prop::collection::vec(movement(), 1..6), flag(), prop::bool::weighted(0.15), prop::bool::weighted(0.2))
            .prop_map(|(user, members, atomic, dry, twice)| Step::Batch { user, members, atomic, dry, twice }),
        8 => (any(), prop::bool::weighted(0.3)).prop_map(|(of, changed)| Step::Again { of, changed }),
        10 => (movement(), flag(), prop::bool::weighted(0.2)).prop_map(|(movement, card, declined)| Step::Pay { movement, card, declined }),
        12 => (any(), any(), any()).prop_map(|(of, by, part)| Step::Refund { of, by, part }),
        2 => Just(Step::Wait),
        2 => movement().prop_map(Step::Crash),
    ]
}
