//! Deciding a batch of operations against the balances that it has locked: pure, checked, in order. What one operation does is seen by
//! the next one, and what one leg of an operation brings a later one may use.
//!
//! Invariants of what comes out: the postings of an operation sum to zero; an account's versions have no gap; `posted - held` of an
//! account with a floor is never below zero; no balance leaves 64 bits. What comes in must hold as well, and is asserted: a leg moves more than
//! nothing, and between two accounts.

use lastro_money::Minor;
use smallvec::SmallVec;
use uuid::Uuid;

use super::rejection::Rejection;

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

/// Money that moves from one account to another. An operation is a list of these, posted whole or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    pub debit: Uuid,
    pub credit: Uuid,
    /// More than zero.
    pub amount: Minor,
}

/// The legs of an operation: one, so far.
pub type Legs = SmallVec<[Leg; 1]>;
/// Two a leg: the debit, then the credit.
pub type Postings = SmallVec<[Posting; 2]>;

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

/// What becomes of an operation's legs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// They are posted.
    Completed(Postings),
    /// They are refused, because of this leg, and nothing changes.
    Rejected {
        /// Counted from 0.
        leg: usize,
        /// Why.
        reason: Rejection,
    },
    /// An account is not among those that were locked.
    NotLocked,
    /// A system account on this side has no room for a leg; another one of its kind may have. Nothing changes.
    SystemFull {
        /// Counted from 0.
        leg: usize,
        /// The side without room.
        side: Side,
    },
}

/// Something that must hold does not: a defect, or a hand in the tables. The operation is not settled, and others are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an invariant of the ledger is broken: {0}")]
pub struct Broken(&'static str);

/// Balances as they were before an operation changed them.
type Before = SmallVec<[(Uuid, Balance); 2]>;

/// Decides the legs of one operation, in their order, and changes the balances if all of them are posted.
pub fn decide(balances: &mut Balances, legs: &[Leg]) -> Result<Decision, Broken> {
    let (mut before, mut postings) = (Before::new(), Postings::new());
    let decided = decide_legs(balances, legs, &mut before, &mut postings);
    if decided != Ok(None) {
        // The last change first: an account may stand there twice.
        while let Some((account_id, balance)) = before.pop() {
            balances.insert(account_id, balance);
        }
    }
    Ok(decided?.unwrap_or(Decision::Completed(postings)))
}

/// What refuses the legs; None when all of them are posted.
fn decide_legs(balances: &mut Balances, legs: &[Leg], before: &mut Before, postings: &mut Postings) -> Result<Option<Decision>, Broken> {
    for (index, leg) in legs.iter().enumerate() {
        if let Some(refused) = decide_leg(balances, index, leg, before, postings)? {
            return Ok(Some(refused));
        }
    }
    let sum: i128 = postings.iter().map(|posting| i128::from(posting.amount.get())).sum();
    if legs.is_empty() || sum != 0 {
        return Err(Broken("the postings of an operation must sum to zero, and be some"));
    }
    Ok(None)
}

fn decide_leg(balances: &mut Balances, index: usize, leg: &Leg, before: &mut Before, postings: &mut Postings) -> Result<Option<Decision>, Broken> {
    // With equal accounts the credit would be counted from a balance without the debit: it would make money.
    if leg.debit == leg.credit {
        return Err(Broken("a leg must have two accounts"));
    }
    if leg.amount <= Minor::ZERO {
        return Err(Broken("a leg must move more than zero"));
    }
    let (Some(debit), Some(credit)) = (balances.get(&leg.debit).copied(), balances.get(&leg.credit).copied()) else {
        return Ok(Some(Decision::NotLocked));
    };
    let rejected = |reason| Ok(Some(Decision::Rejected { leg: index, reason }));
    if debit.closed || credit.closed {
        return rejected(Rejection::AccountClosed);
    }
    // An i128 holds any difference of two i64.
    let available = i128::from(debit.posted.get()) - i128::from(debit.held.get());
    if !debit.system && available < i128::from(leg.amount.get()) {
        return rejected(Rejection::InsufficientFunds);
    }
    let full = |system: bool, side| if system { Ok(Some(Decision::SystemFull { leg: index, side })) } else { rejected(Rejection::BalanceOverflow) };
    let Some(debited) = debit.posted.checked_sub(leg.amount) else { return full(debit.system, Side::Debit) };
    let Some(credited) = credit.posted.checked_add(leg.amount) else { return full(credit.system, Side::Credit) };
    let negated = leg.amount.checked_neg().ok_or(Broken("an amount without a counterpart"))?;
    for (account_id, was, amount, balance) in [(leg.debit, debit, negated, debited), (leg.credit, credit, leg.amount, credited)] {
        let account_version = was.version.checked_add(1).ok_or(Broken("an account without a next version"))?;
        before.push((account_id, was));
        balances.insert(account_id, Balance { posted: balance, version: account_version, ..was });
        postings.push(Posting { account_id, amount, account_version, balance });
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u8) -> Uuid {
        Uuid::from_u128(u128::from(number))
    }

    fn balance(posted: i64) -> Balance {
        Balance { posted: Minor::new(posted), held: Minor::ZERO, version: 0, system: false, closed: false }
    }

    fn leg(debit: u8, credit: u8, amount: i64) -> Leg {
        Leg { debit: id(debit), credit: id(credit), amount: Minor::new(amount) }
    }

    /// Of one leg.
    fn decided(balances: &mut Balances, debit: u8, credit: u8, amount: i64) -> Decision {
        decide(balances, &[leg(debit, credit, amount)]).expect("sound legs")
    }

    fn rejected(reason: Rejection) -> Decision {
        Decision::Rejected { leg: 0, reason }
    }

    #[test]
    fn funds_are_checked_against_what_is_available() {
        for (posted, held, amount, completes) in
            [(100, 0, 100, true), (100, 0, 101, false), (100, 1, 100, false), (100, 100, 1, false), (0, 0, 1, false)]
        {
            let mut balances = Balances::from_iter([(id(1), Balance { held: Minor::new(held), ..balance(posted) }), (id(2), balance(0))]);
            let decision = decided(&mut balances, 1, 2, amount);
            assert_eq!(matches!(decision, Decision::Completed(_)), completes, "{posted} {held} {amount}");
            if !completes {
                assert_eq!(decision, rejected(Rejection::InsufficientFunds));
                assert_eq!(balances[&id(1)].version, 0);
            }
        }
    }

    #[test]
    fn a_balance_never_leaves_64_bits() {
        let mut balances = Balances::from_iter([(id(1), Balance { system: true, ..balance(0) }), (id(2), balance(i64::MAX))]);
        assert_eq!(decided(&mut balances, 1, 2, 1), rejected(Rejection::BalanceOverflow));
        let system = |posted| Balance { system: true, ..balance(posted) };
        let mut balances = Balances::from_iter([(id(1), system(i64::MIN)), (id(2), balance(0))]);
        assert_eq!(decided(&mut balances, 1, 2, 1), Decision::SystemFull { leg: 0, side: Side::Debit });
        let mut balances = Balances::from_iter([(id(1), balance(1)), (id(2), system(i64::MAX))]);
        assert_eq!(decided(&mut balances, 1, 2, 1), Decision::SystemFull { leg: 0, side: Side::Credit });
    }

    #[test]
    fn nothing_is_posted_to_a_closed_account() {
        for closed in [1, 2] {
            let mut balances = Balances::from_iter([(id(1), balance(10)), (id(2), balance(0))]);
            balances.entry(id(closed)).and_modify(|balance| balance.closed = true);
            assert_eq!(decided(&mut balances, 1, 2, 1), rejected(Rejection::AccountClosed));
        }
    }

    #[test]
    fn a_leg_that_would_make_money_is_a_defect_and_changes_nothing() {
        for unsound in
            [vec![leg(1, 1, 5)], vec![leg(1, 2, 0)], vec![leg(1, 2, -5)], vec![leg(1, 2, i64::MIN)], vec![leg(1, 2, 1), leg(2, 2, 1)], vec![]]
        {
            let mut balances = Balances::from_iter([(id(1), balance(10)), (id(2), balance(10))]);
            let before = balances.clone();
            assert!(decide(&mut balances, &unsound).is_err(), "{unsound:?}");
            assert_eq!(balances, before, "{unsound:?}");
        }
    }

    #[test]
    fn legs_are_posted_together_or_not_at_all() {
        let before = Balances::from_iter([(id(1), balance(10)), (id(2), balance(0)), (id(3), balance(0))]);
        let mut balances = before.clone();
        // What the first one brings the second one uses.
        let Ok(Decision::Completed(postings)) = decide(&mut balances, &[leg(1, 2, 10), leg(2, 3, 4)]) else { panic!("they are posted") };
        assert_eq!(postings.iter().map(|posting| posting.account_version).collect::<Vec<_>>(), [1, 1, 2, 1]);
        assert_eq!([1, 2, 3].map(|number| balances[&id(number)].posted.get()), [0, 6, 4]);
        let mut balances = before.clone();
        let refused = decide(&mut balances, &[leg(1, 2, 6), leg(2, 3, 6), leg(1, 3, 5)]);
        assert_eq!(refused, Ok(Decision::Rejected { leg: 2, reason: Rejection::InsufficientFunds }));
        assert_eq!(balances, before);
        assert_eq!(decide(&mut balances, &[leg(1, 2, 6), leg(2, 9, 1)]), Ok(Decision::NotLocked));
        assert_eq!(balances, before);
    }

    proptest! {
        /// Against the simplest model there is: a map of balances in which a leg is two sums.
        #[test]
        fn the_ledger_adds_up(operations in prop::collection::vec(prop::collection::vec((0_u8..5, 0_u8..5, 1_i64..1000), 1..4), 1..100)) {
            let mut balances: Balances = (0..5).map(|number| (id(number), Balance { system: number == 0, ..balance(0) })).collect();
            let mut model: std::collections::HashMap<Uuid, i64> = (0..5).map(|number| (id(number), 0)).collect();
            let mut postings = Vec::new();
            for operation in operations {
                let legs: Vec<Leg> = operation.into_iter().filter(|(debit, credit, _)| debit != credit).map(|(debit, credit, amount)| leg(debit, credit, amount)).collect();
                if legs.is_empty() {
                    continue;
                }
                let (mut after, mut fits) = (model.clone(), true);
                for leg in &legs {
                    fits &= leg.debit == id(0) || after[&leg.debit] >= leg.amount.get();
                    *after.entry(leg.debit).or_default() -= leg.amount.get();
                    *after.entry(leg.credit).or_default() += leg.amount.get();
                }
                match decide(&mut balances, &legs).expect("sound legs") {
                    Decision::Completed(posted) => {
                        prop_assert!(fits);
                        prop_assert_eq!(posted.iter().map(|posting| posting.amount.get()).sum::<i64>(), 0);
                        model = after;
                        postings.extend(posted);
                    }
                    Decision::Rejected { .. } => prop_assert!(!fits),
                    Decision::NotLocked | Decision::SystemFull { .. } => prop_assert!(false),
                }
            }
            for (account, balance) in &balances {
                let own: Vec<_> = postings.iter().filter(|posting| posting.account_id == *account).collect();
                prop_assert_eq!(balance.posted.get(), model[account]);
                prop_assert_eq!(balance.posted.get(), own.iter().map(|posting| posting.amount.get()).sum::<i64>());
                prop_assert_eq!(balance.version, own.len() as i64);
                prop_assert!(own.iter().zip(1..).all(|(posting, version)| posting.account_version == version));
                prop_assert!(balance.system || balance.posted >= Minor::ZERO);
            }
            prop_assert_eq!(balances.values().map(|balance| balance.posted.get()).sum::<i64>(), 0);
        }
    }
}
