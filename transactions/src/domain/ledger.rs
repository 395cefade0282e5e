//! Deciding a batch of operations against the balances that it has locked: pure, checked, in order. What one operation does is seen by
//! the next one.
//!
//! Invariants of what comes out: the postings of an operation sum to zero; an account's versions have no gap; `posted - held` of an
//! account with a floor is never below zero; no balance leaves 64 bits.

use lastro_money::Minor;
use lastro_proto::reasons::rejections;
use uuid::Uuid;

/// Balances by the id of their account. Ids are our own, so that nobody chooses them for their hashes.
pub type Balances = foldhash::HashMap<Uuid, Balance>;

/// What an account has, as locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balance {
    /// The sum of all postings, in minor units.
    pub posted: Minor,
    /// What is authorized but not captured, in minor units.
    pub held: Minor,
    /// How many postings there are.
    pub version: i64,
    /// No floor.
    pub system: bool,
    /// Nothing may be posted any more.
    pub closed: bool,
}

/// A movement of money between two accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Movement {
    pub debit: Uuid,
    pub credit: Uuid,
    /// More than zero, in minor units.
    pub amount: Minor,
}

/// One line of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Posting {
    pub account_id: Uuid,
    /// Negative debits, positive credits; in minor units.
    pub amount: Minor,
    /// The account's version after it.
    pub account_version: i64,
    /// The posted balance after it.
    pub balance: Minor,
}

/// One side of a movement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    Debit,
    Credit,
}

/// What becomes of a movement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is posted: the debit, then the credit.
    Completed([Posting; 2]),
    /// It is refused, and nothing changes.
    Rejected(&'static str),
    /// One of its accounts is not among those that were locked.
    NotLocked,
    /// The system account on this side has no room for it; another one of its kind may have. Nothing changes.
    SystemFull(Side),
}

/// Decides one movement and, if it is posted, changes the balances.
pub fn decide(balances: &mut Balances, movement: Movement) -> Decision {
    let (Some(debit), Some(credit)) = (balances.get(&movement.debit).copied(), balances.get(&movement.credit).copied()) else {
        return Decision::NotLocked;
    };
    if debit.closed || credit.closed {
        return Decision::Rejected(rejections::ACCOUNT_CLOSED);
    }
    // An i128 holds any difference of two i64.
    let available = i128::from(debit.posted) - i128::from(debit.held);
    if !debit.system && available < i128::from(movement.amount) {
        return Decision::Rejected(rejections::INSUFFICIENT_FUNDS);
    }
    let Some(debited) = debit.posted.checked_sub(movement.amount) else {
        return if debit.system { Decision::SystemFull(Side::Debit) } else { Decision::Rejected(rejections::BALANCE_OVERFLOW) };
    };
    let Some(credited) = credit.posted.checked_add(movement.amount) else {
        return if credit.system { Decision::SystemFull(Side::Credit) } else { Decision::Rejected(rejections::BALANCE_OVERFLOW) };
    };
    let mut post = |account_id, before: Balance, amount, balance| {
        let account_version = before.version + 1;
        balances.insert(account_id, Balance { posted: balance, version: account_version, ..before });
        Posting { account_id, amount, account_version, balance }
    };
    Decision::Completed([post(movement.debit, debit, -movement.amount, debited), post(movement.credit, credit, movement.amount, credited)])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u8) -> Uuid {
        Uuid::from_u128(u128::from(number))
    }

    fn balance(posted: Minor) -> Balance {
        Balance { posted, held: 0, version: 0, system: false, closed: false }
    }

    fn movement(debit: u8, credit: u8, amount: Minor) -> Movement {
        Movement { debit: id(debit), credit: id(credit), amount }
    }

    #[test]
    fn funds_are_checked_against_what_is_available() {
        for (posted, held, amount, completes) in
            [(100, 0, 100, true), (100, 0, 101, false), (100, 1, 100, false), (100, 100, 1, false), (0, 0, 1, false)]
        {
            let mut balances = Balances::from_iter([(id(1), Balance { held, ..balance(posted) }), (id(2), balance(0))]);
            let decision = decide(&mut balances, movement(1, 2, amount));
            assert_eq!(matches!(decision, Decision::Completed(_)), completes, "{posted} {held} {amount}");
            if !completes {
                assert_eq!(decision, Decision::Rejected("INSUFFICIENT_FUNDS"));
                assert_eq!(balances[&id(1)].version, 0);
            }
        }
    }

    #[test]
    fn a_balance_never_leaves_64_bits() {
        let mut balances = Balances::from_iter([(id(1), Balance { system: true, ..balance(0) }), (id(2), balance(Minor::MAX))]);
        assert_eq!(decide(&mut balances, movement(1, 2, 1)), Decision::Rejected("BALANCE_OVERFLOW"));
        let system = |posted| Balance { system: true, ..balance(posted) };
        let mut balances = Balances::from_iter([(id(1), system(Minor::MIN)), (id(2), balance(0))]);
        assert_eq!(decide(&mut balances, movement(1, 2, 1)), Decision::SystemFull(Side::Debit));
        let mut balances = Balances::from_iter([(id(1), balance(1)), (id(2), system(Minor::MAX))]);
        assert_eq!(decide(&mut balances, movement(1, 2, 1)), Decision::SystemFull(Side::Credit));
    }

    #[test]
    fn nothing_is_posted_to_a_closed_account() {
        for closed in [1, 2] {
            let mut balances = Balances::from_iter([(id(1), balance(10)), (id(2), balance(0))]);
            balances.entry(id(closed)).and_modify(|balance| balance.closed = true);
            assert_eq!(decide(&mut balances, movement(1, 2, 1)), Decision::Rejected("ACCOUNT_CLOSED"));
        }
    }

    proptest! {
        /// Against the simplest model there is: a map of balances in which a movement is two sums.
        #[test]
        fn the_ledger_adds_up(movements in prop::collection::vec((0_u8..5, 0_u8..5, 1_i64..1000), 1..200)) {
            let mut balances: Balances = (0..5).map(|number| (id(number), Balance { system: number == 0, ..balance(0) })).collect();
            let mut model: std::collections::HashMap<Uuid, i64> = (0..5).map(|number| (id(number), 0)).collect();
            let mut postings = Vec::new();
            for (debit, credit, amount) in movements.into_iter().filter(|(debit, credit, _)| debit != credit) {
                let fits = debit == 0 || model[&id(debit)] >= amount;
                match decide(&mut balances, movement(debit, credit, amount)) {
                    Decision::Completed(posted) => {
                        prop_assert!(fits);
                        prop_assert_eq!(posted.iter().map(|posting| posting.amount).sum::<i64>(), 0);
                        *model.entry(id(debit)).or_default() -= amount;
                        *model.entry(id(credit)).or_default() += amount;
                        postings.extend(posted);
                    }
                    Decision::Rejected(_) => prop_assert!(!fits),
                    Decision::NotLocked | Decision::SystemFull(_) => prop_assert!(false),
                }
            }
            for (account, balance) in &balances {
                let own: Vec<_> = postings.iter().filter(|posting| posting.account_id == *account).collect();
                prop_assert_eq!(balance.posted, model[account]);
                prop_assert_eq!(balance.posted, own.iter().map(|posting| posting.amount).sum::<i64>());
                prop_assert_eq!(balance.version, own.len() as i64);
                prop_assert!(own.iter().zip(1..).all(|(posting, version)| posting.account_version == version));
                prop_assert!(balance.system || balance.posted >= 0);
            }
            prop_assert_eq!(balances.values().map(|balance| balance.posted).sum::<i64>(), 0);
        }
    }
}
