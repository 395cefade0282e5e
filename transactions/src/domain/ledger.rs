//! Deciding a batch of operations against the balances that it has locked: pure, checked, in order. What one operation does is seen by
//! the next one, and what one leg of an operation brings a later one may use.
//!
//! Invariants of what comes out: the postings of each leg sum to zero, and so do those of an operation in each of its currencies; an account's versions
//! have no gap, and its record times increase strictly; no debit or hold brings `posted - held` of an account below `-credit_limit`; no balance leaves
//! 64 bits; what is held is never negative. What comes in must hold as well, and is asserted: a leg moves more than nothing, and between two accounts.

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
    /// By how much debits and holds may bring `posted - held` below zero, in minor units.
    pub credit_limit: Minor,
    /// How many postings there are.
    pub version: i64,
    /// When the last posting was recorded, Unix microseconds; zero before the first.
    pub recorded_us: i64,
    /// A clearing account: it has no floor.
    pub system: bool,
    /// It may not be debited, and nothing of it may be held anew.
    pub frozen: bool,
    /// Nothing may be posted any more.
    pub closed: bool,
}

impl Balance {
    /// What a debit or a hold may take. Negative where the credit limit was lowered below what is used. An i128 holds any sum of three i64.
    pub fn available(&self) -> i128 {
        i128::from(self.posted.get()) - i128::from(self.held.get()) + i128::from(self.credit_limit.get())
    }
}

/// Money that moves from one account to another. An operation is a list of these, posted whole or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    pub debit: Uuid,
    pub credit: Uuid,
    /// More than zero.
    pub amount: Minor,
}

/// The legs of an operation: almost always one.
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
    /// When it was recorded, Unix microseconds: strictly increasing per account.
    pub recorded_us: i64,
}

/// One side of a movement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    Debit,
    Credit,
}

/// What becomes of an operation's legs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision<T> {
    /// All of them take effect.
    Agreed(T),
    /// They are refused, because of this leg, and nothing changes.
    Refused {
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

impl<T> Decision<T> {
    /// The same, with something else where they take effect.
    pub fn map<U>(self, of: impl FnOnce(T) -> U) -> Decision<U> {
        match self {
            Self::Agreed(agreed) => Decision::Agreed(of(agreed)),
            Self::Refused { leg, reason } => Decision::Refused { leg, reason },
            Self::NotLocked => Decision::NotLocked,
            Self::SystemFull { leg, side } => Decision::SystemFull { leg, side },
        }
    }
}

/// Why one leg stops its operation.
enum Stop {
    Rejected(Rejection),
    NotLocked,
    SystemFull(Side),
    Broken(Broken),
}

impl From<Rejection> for Stop {
    fn from(reason: Rejection) -> Self {
        Self::Rejected(reason)
    }
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// Something that must hold does not: a defect, or a hand in the tables. The operation is not settled, and others are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an invariant of the ledger is broken: {0}")]
pub struct Broken(&'static str);

/// Posts the legs of one operation, in their order, if all of them can be.
pub fn post(balances: &mut Balances, legs: &[Leg], now_us: i64) -> Result<Decision<Postings>, Broken> {
    let mut postings = Postings::new();
    let decision = each_or_none(balances, legs, |changes, leg| {
        let (debit, credit) = changes.both(leg)?;
        if debit.closed || credit.closed {
            return Err(Rejection::AccountClosed.into());
        }
        check_debit(&debit, leg.amount)?;
        changes.move_money(leg, (debit, credit), now_us, &mut postings)
    })?;
    let postings = check_sum(postings)?;
    Ok(decision.map(|()| postings))
}

/// Holds the amount of each leg on the account that it debits, if all of them can be held: none of them may use what another one would bring.
pub fn hold(balances: &mut Balances, legs: &[Leg]) -> Result<Decision<()>, Broken> {
    each_or_none(balances, legs, |changes, leg| {
        let (debit, credit) = changes.both(leg)?;
        if debit.closed || credit.closed {
            return Err(Rejection::AccountClosed.into());
        }
        check_debit(&debit, leg.amount)?;
        let held = debit.held.checked_add(leg.amount).ok_or(Rejection::BalanceOverflow)?;
        changes.set(leg.debit, Balance { held, ..debit });
        Ok(())
    })
}

/// Posts what is captured of the legs of a hold, and releases what was held. Funds were judged when it was held, and frozen accounts are captured from.
/// `captured` is what each leg moves: at most what it holds.
pub fn capture(balances: &mut Balances, legs: &[Leg], captured: &[Minor], now_us: i64) -> Result<Decision<Postings>, Broken> {
    let (mut postings, mut captured) = (Postings::new(), captured.iter());
    let decision = each_or_none(balances, legs, |changes, leg| {
        let amount = *captured.next().ok_or(Broken("a leg without what is captured of it"))?;
        if amount > leg.amount || amount <= Minor::ZERO {
            return Err(Broken("what is captured must be more than zero, and at most what is held").into());
        }
        changes.release(leg)?;
        let (debit, credit) = changes.both(leg)?;
        if debit.closed || credit.closed {
            return Err(Rejection::AccountClosed.into());
        }
        changes.move_money(&Leg { amount, ..*leg }, (debit, credit), now_us, &mut postings)
    })?;
    let postings = check_sum(postings)?;
    Ok(decision.map(|()| postings))
}

/// Releases what the legs of a hold have held. Nothing refuses it.
pub fn release(balances: &mut Balances, legs: &[Leg]) -> Result<Decision<()>, Broken> {
    #[allow(clippy::redundant_closure_for_method_calls, reason = "the method is of one lifetime, the closure of any")]
    each_or_none(balances, legs, |changes, leg| changes.release(leg))
}

fn check_debit(debit: &Balance, amount: Minor) -> Result<(), Rejection> {
    if debit.frozen {
        return Err(Rejection::AccountFrozen);
    }
    if !debit.system && debit.available() < i128::from(amount.get()) {
        return Err(Rejection::InsufficientFunds);
    }
    Ok(())
}

fn check_sum(postings: Postings) -> Result<Postings, Broken> {
    let sum: i128 = postings.iter().map(|posting| i128::from(posting.amount.get())).sum();
    if sum == 0 { Ok(postings) } else { Err(Broken("the postings of an operation must sum to zero")) }
}

/// Does something for each leg, in their order. Where one stops it, the balances are as they were before.
fn each_or_none(
    balances: &mut Balances,
    legs: &[Leg],
    mut each: impl FnMut(&mut Changes<'_>, &Leg) -> Result<(), Stop>,
) -> Result<Decision<()>, Broken> {
    if legs.is_empty() {
        return Err(Broken("an operation must have legs"));
    }
    let mut changes = Changes { balances, before: SmallVec::new() };
    for (index, leg) in legs.iter().enumerate() {
        let stop = match check_leg(leg).map_err(Stop::from).and_then(|()| each(&mut changes, leg)) {
            Ok(()) => continue,
            Err(stop) => stop,
        };
        changes.undo();
        return match stop {
            Stop::Rejected(reason) => Ok(Decision::Refused { leg: index, reason }),
            Stop::NotLocked => Ok(Decision::NotLocked),
            Stop::SystemFull(side) => Ok(Decision::SystemFull { leg: index, side }),
            Stop::Broken(broken) => Err(broken),
        };
    }
    Ok(Decision::Agreed(()))
}

fn check_leg(leg: &Leg) -> Result<(), Broken> {
    // With equal accounts the credit would be counted from a balance without the debit: it would make money.
    if leg.debit == leg.credit {
        return Err(Broken("a leg must have two accounts"));
    }
    if leg.amount <= Minor::ZERO {
        return Err(Broken("a leg must move more than zero"));
    }
    Ok(())
}

/// Balances, and what they were before an operation changed them.
struct Changes<'a> {
    balances: &'a mut Balances,
    before: SmallVec<[(Uuid, Balance); 2]>,
}

impl Changes<'_> {
    fn both(&self, leg: &Leg) -> Result<(Balance, Balance), Stop> {
        let of = |id: &Uuid| self.balances.get(id).copied().ok_or(Stop::NotLocked);
        Ok((of(&leg.debit)?, of(&leg.credit)?))
    }

    fn set(&mut self, account_id: Uuid, balance: Balance) {
        if let Some(was) = self.balances.insert(account_id, balance) {
            self.before.push((account_id, was));
        }
    }

    /// The last change first: an account may stand there twice.
    fn undo(&mut self) {
        while let Some((account_id, balance)) = self.before.pop() {
            self.balances.insert(account_id, balance);
        }
    }

    fn release(&mut self, leg: &Leg) -> Result<(), Stop> {
        let debit = *self.balances.get(&leg.debit).ok_or(Stop::NotLocked)?;
        let held = debit.held.checked_sub(leg.amount).filter(|held| *held >= Minor::ZERO);
        self.set(leg.debit, Balance { held: held.ok_or(Broken("more is released than is held"))?, ..debit });
        Ok(())
    }

    fn move_money(&mut self, leg: &Leg, (debit, credit): (Balance, Balance), now_us: i64, postings: &mut Postings) -> Result<(), Stop> {
        let full = |system: bool, side| if system { Stop::SystemFull(side) } else { Stop::Rejected(Rejection::BalanceOverflow) };
        let debited = debit.posted.checked_sub(leg.amount).ok_or_else(|| full(debit.system, Side::Debit))?;
        let credited = credit.posted.checked_add(leg.amount).ok_or_else(|| full(credit.system, Side::Credit))?;
        let negated = leg.amount.checked_neg().ok_or(Broken("an amount without a counterpart"))?;
        for (account_id, was, amount, balance) in [(leg.debit, debit, negated, debited), (leg.credit, credit, leg.amount, credited)] {
            let account_version = was.version.checked_add(1).ok_or(Broken("an account without a next version"))?;
            let recorded_us = now_us.max(was.recorded_us.saturating_add(1));
            self.set(account_id, Balance { posted: balance, version: account_version, recorded_us, ..was });
            postings.push(Posting { account_id, amount, account_version, balance, recorded_us });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u8) -> Uuid {
        Uuid::from_u128(u128::from(number))
    }

    fn balance(posted: i64) -> Balance {
        Balance {
            posted: Minor::new(posted),
            held: Minor::ZERO,
            credit_limit: Minor::ZERO,
            version: 0,
            recorded_us: 0,
            system: false,
            frozen: false,
            closed: false,
        }
    }

    fn leg(debit: u8, credit: u8, amount: i64) -> Leg {
        Leg { debit: id(debit), credit: id(credit), amount: Minor::new(amount) }
    }

    /// Of one leg.
    fn posted(balances: &mut Balances, debit: u8, credit: u8, amount: i64) -> Decision<Postings> {
        post(balances, &[leg(debit, credit, amount)], NOW_US).expect("sound legs")
    }

    const NOW_US: i64 = 1_700_000_000_000_000;

    fn rejected<T>(reason: Rejection) -> Decision<T> {
        Decision::Refused { leg: 0, reason }
    }

    #[test]
    fn funds_are_checked_against_what_is_available() {
        for (posted, held, amount, completes) in
            [(100, 0, 100, true), (100, 0, 101, false), (100, 1, 100, false), (100, 100, 1, false), (0, 0, 1, false)]
        {
            let mut balances = Balances::from_iter([(id(1), Balance { held: Minor::new(held), ..balance(posted) }), (id(2), balance(0))]);
            let decision = self::posted(&mut balances, 1, 2, amount);
            assert_eq!(matches!(decision, Decision::Agreed(_)), completes, "{posted} {held} {amount}");
            if !completes {
                assert_eq!(decision, rejected(Rejection::InsufficientFunds));
                assert_eq!(balances[&id(1)].version, 0);
            }
        }
    }

    #[test]
    fn a_balance_never_leaves_64_bits() {
        let mut balances = Balances::from_iter([(id(1), Balance { system: true, ..balance(0) }), (id(2), balance(i64::MAX))]);
        assert_eq!(posted(&mut balances, 1, 2, 1), rejected(Rejection::BalanceOverflow));
        let system = |posted| Balance { system: true, ..balance(posted) };
        let mut balances = Balances::from_iter([(id(1), system(i64::MIN)), (id(2), balance(0))]);
        assert_eq!(posted(&mut balances, 1, 2, 1), Decision::SystemFull { leg: 0, side: Side::Debit });
        let mut balances = Balances::from_iter([(id(1), balance(1)), (id(2), system(i64::MAX))]);
        assert_eq!(posted(&mut balances, 1, 2, 1), Decision::SystemFull { leg: 0, side: Side::Credit });
    }

    #[test]
    fn nothing_is_posted_to_a_closed_account() {
        for closed in [1, 2] {
            let mut balances = Balances::from_iter([(id(1), balance(10)), (id(2), balance(0))]);
            balances.entry(id(closed)).and_modify(|balance| balance.closed = true);
            assert_eq!(posted(&mut balances, 1, 2, 1), rejected(Rejection::AccountClosed));
        }
    }

    #[test]
    fn a_leg_that_would_make_money_is_a_defect_and_changes_nothing() {
        for unsound in
            [vec![leg(1, 1, 5)], vec![leg(1, 2, 0)], vec![leg(1, 2, -5)], vec![leg(1, 2, i64::MIN)], vec![leg(1, 2, 1), leg(2, 2, 1)], vec![]]
        {
            let mut balances = Balances::from_iter([(id(1), balance(10)), (id(2), balance(10))]);
            let before = balances.clone();
            assert!(post(&mut balances, &unsound, NOW_US).is_err(), "{unsound:?}");
            assert!(hold(&mut balances, &unsound).is_err() || unsound.len() > 1, "{unsound:?}");
            assert_eq!(balances, before, "{unsound:?}");
        }
    }

    #[test]
    fn legs_are_posted_together_or_not_at_all() {
        let before = Balances::from_iter([(id(1), balance(10)), (id(2), balance(0)), (id(3), balance(0))]);
        let mut balances = before.clone();
        // What the first one brings the second one uses.
        let Ok(Decision::Agreed(postings)) = post(&mut balances, &[leg(1, 2, 10), leg(2, 3, 4)], NOW_US) else { panic!("they are posted") };
        assert_eq!(postings.iter().map(|posting| posting.account_version).collect::<Vec<_>>(), [1, 1, 2, 1]);
        assert_eq!(postings.iter().map(|posting| posting.recorded_us - NOW_US).collect::<Vec<_>>(), [0, 0, 1, 0], "strictly increasing per account");
        assert_eq!([1, 2, 3].map(|number| balances[&id(number)].posted.get()), [0, 6, 4]);
        let mut balances = before.clone();
        let refused = post(&mut balances, &[leg(1, 2, 6), leg(2, 3, 6), leg(1, 3, 5)], NOW_US);
        assert_eq!(refused, Ok(Decision::Refused { leg: 2, reason: Rejection::InsufficientFunds }));
        assert_eq!(balances, before);
        assert_eq!(post(&mut balances, &[leg(1, 2, 6), leg(2, 9, 1)], NOW_US), Ok(Decision::NotLocked));
        assert_eq!(balances, before);
    }

    #[test]
    fn a_credit_limit_lowers_the_floor_and_may_be_lowered_below_what_is_used() {
        let mut balances = Balances::from_iter([(id(1), Balance { credit_limit: Minor::new(50), ..balance(10) }), (id(2), balance(0))]);
        assert_eq!(posted(&mut balances, 1, 2, 61), rejected(Rejection::InsufficientFunds));
        assert!(matches!(posted(&mut balances, 1, 2, 40), Decision::Agreed(_)));
        assert_eq!((balances[&id(1)].posted, balances[&id(1)].available()), (Minor::new(-30), 20));
        balances.entry(id(1)).and_modify(|balance| balance.credit_limit = Minor::new(20));
        assert_eq!(balances[&id(1)].available(), -10);
        assert_eq!(posted(&mut balances, 1, 2, 1), rejected(Rejection::InsufficientFunds));
        assert!(matches!(posted(&mut balances, 2, 1, 5), Decision::Agreed(_)), "credits go on");
    }

    #[test]
    fn a_frozen_account_is_credited_and_captured_from_and_nothing_else() {
        let mut balances = Balances::from_iter([(id(1), balance(10)), (id(2), balance(10))]);
        assert_eq!(hold(&mut balances, &[leg(1, 2, 4)]), Ok(Decision::Agreed(())));
        balances.entry(id(1)).and_modify(|balance| balance.frozen = true);
        assert_eq!(posted(&mut balances, 1, 2, 1), rejected(Rejection::AccountFrozen));
        assert_eq!(hold(&mut balances, &[leg(1, 2, 1)]), Ok(rejected(Rejection::AccountFrozen)));
        assert!(matches!(posted(&mut balances, 2, 1, 1), Decision::Agreed(_)));
        assert!(matches!(capture(&mut balances, &[leg(1, 2, 4)], &[Minor::new(4)], NOW_US), Ok(Decision::Agreed(_))));
        assert_eq!((balances[&id(1)].posted, balances[&id(1)].held), (Minor::new(7), Minor::ZERO));
    }

    #[test]
    fn what_is_held_is_nobody_elses_and_is_captured_whatever_happens_meanwhile() {
        let mut balances = Balances::from_iter([(id(1), balance(10)), (id(2), balance(0)), (id(3), balance(0))]);
        // The second leg cannot use what the first one would bring.
        assert_eq!(hold(&mut balances, &[leg(1, 2, 6), leg(2, 3, 1)]), Ok(Decision::Refused { leg: 1, reason: Rejection::InsufficientFunds }));
        assert_eq!(balances[&id(1)].held, Minor::ZERO);
        assert_eq!(hold(&mut balances, &[leg(1, 2, 6), leg(1, 3, 4)]), Ok(Decision::Agreed(())));
        assert_eq!(posted(&mut balances, 1, 2, 1), rejected(Rejection::InsufficientFunds));
        balances.entry(id(3)).and_modify(|balance| balance.closed = true);
        let both = [Minor::new(6), Minor::new(4)];
        let closed = capture(&mut balances, &[leg(1, 2, 6), leg(1, 3, 4)], &both, NOW_US);
        assert_eq!(closed, Ok(Decision::Refused { leg: 1, reason: Rejection::AccountClosed }));
        assert_eq!((balances[&id(1)].posted, balances[&id(1)].held, balances[&id(2)].posted), (Minor::new(10), Minor::new(10), Minor::ZERO));
        balances.entry(id(3)).and_modify(|balance| balance.closed = false);
        assert!(matches!(capture(&mut balances, &[leg(1, 2, 6), leg(1, 3, 4)], &both, NOW_US), Ok(Decision::Agreed(_))));
        assert_eq!([1, 2, 3].map(|number| balances[&id(number)].posted.get()), [0, 6, 4]);
        assert!(release(&mut balances, &[leg(1, 2, 1)]).is_err(), "more is released than is held");
    }

    #[test]
    fn of_what_is_captured_in_part_the_rest_is_released() {
        let mut balances = Balances::from_iter([(id(1), balance(10)), (id(2), balance(0))]);
        assert_eq!(hold(&mut balances, &[leg(1, 2, 8)]), Ok(Decision::Agreed(())));
        for unsound in [0, 9, -1] {
            assert!(capture(&mut balances, &[leg(1, 2, 8)], &[Minor::new(unsound)], NOW_US).is_err(), "{unsound}");
        }
        assert!(matches!(capture(&mut balances, &[leg(1, 2, 8)], &[Minor::new(3)], NOW_US), Ok(Decision::Agreed(_))));
        assert_eq!((balances[&id(1)].posted, balances[&id(1)].held, balances[&id(2)].posted), (Minor::new(7), Minor::ZERO, Minor::new(3)));
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
                match post(&mut balances, &legs, NOW_US).expect("sound legs") {
                    Decision::Agreed(posted) => {
                        prop_assert!(fits);
                        prop_assert_eq!(posted.iter().map(|posting| posting.amount.get()).sum::<i64>(), 0);
                        model = after;
                        postings.extend(posted);
                    }
                    Decision::Refused { .. } => prop_assert!(!fits),
                    Decision::NotLocked | Decision::SystemFull { .. } => prop_assert!(false),
                }
            }
            for (account, balance) in &balances {
                let own: Vec<_> = postings.iter().filter(|posting| posting.account_id == *account).collect();
                prop_assert_eq!(balance.posted.get(), model[account]);
                prop_assert_eq!(balance.posted.get(), own.iter().map(|posting| posting.amount.get()).sum::<i64>());
                prop_assert_eq!(balance.version, own.len() as i64);
                prop_assert!(own.iter().zip(1..).all(|(posting, version)| posting.account_version == version));
                prop_assert!(own.windows(2).all(|pair| pair[0].recorded_us < pair[1].recorded_us));
                prop_assert!(balance.system || balance.posted >= Minor::ZERO);
            }
            prop_assert_eq!(balances.values().map(|balance| balance.posted.get()).sum::<i64>(), 0);
        }
    }
}
