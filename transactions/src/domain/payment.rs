//! Payments and refunds: how a refund is shared, and what a payment is called.

use std::fmt;

use lastro_money::{Minor, allocate};

use super::operation::{Movement, Operation, OperationLeg, Refunded};

/// Keys that begin so are made by Lastro itself: nobody may choose one.
pub const RESERVED_KEYS: &str = "lastro:";

/// What a payment provider calls a card. It is told to nobody else: neither a log nor an event has it.
#[derive(Clone, PartialEq, Eq)]
pub struct CardToken(Box<str>);

impl CardToken {
    pub fn new(token: impl Into<Box<str>>) -> Self {
        Self(token.into())
    }

    /// For the provider, and for the row from which it is asked.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for CardToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("CardToken(…)")
    }
}

/// The key of the payment of an order: unique per payer.
pub fn payment_key(order_id: &str) -> String {
    format!("{RESERVED_KEYS}payment:{order_id}")
}

/// The order of a payment.
pub fn order_of(payment: &Operation) -> &str {
    payment.external_id.strip_prefix(RESERVED_KEYS).and_then(|key| key.strip_prefix("payment:")).unwrap_or_default()
}

/// Whether a card pays: then nothing is debited but the outside world.
pub fn is_by_card(payment: &Operation) -> bool {
    payment.movement.legs().iter().all(|leg| leg.source.is_none())
}

/// More is asked for than is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMuch {
    /// What may still be refunded.
    pub left: Minor,
}

/// What is left of each leg of a payment, and in all.
pub fn left(payment: &Operation) -> Option<(Vec<Minor>, Minor)> {
    let legs = payment.movement.legs();
    let refunded = |index: usize| payment.refunded.as_ref().and_then(|refunded| refunded.get(index).copied()).unwrap_or(Minor::ZERO);
    let left: Vec<Minor> = legs.iter().enumerate().map(|(index, leg)| leg.amount.minor().checked_sub(refunded(index))).collect::<Option<_>>()?;
    let all = left.iter().try_fold(Minor::ZERO, |sum, one| sum.checked_add(*one))?;
    Some((left, all))
}

/// How a refund is shared among the legs of a payment: in proportion to what is left of each, exactly, and never more than that. None where the payment has
/// amounts that cannot be.
pub fn share(payment: &Operation, amount: Option<Minor>) -> Option<Result<Vec<Minor>, TooMuch>> {
    let (left, all) = left(payment)?;
    let asked = amount.unwrap_or(all);
    if asked > all || asked <= Minor::ZERO {
        return Some(Err(TooMuch { left: all }));
    }
    let weights: Vec<u64> = left.iter().map(|one| u64::try_from(one.get())).collect::<Result<_, _>>().ok()?;
    let parts = allocate(asked, &weights)?;
    let is_within = parts.iter().zip(&left).all(|(part, left)| (Minor::ZERO..=*left).contains(part));
    is_within.then_some(Ok(parts))
}

/// What a refund moves: each leg of the payment back, as far as it has a part of it.
pub fn refund_movement(payment: &Operation, parts: &[Minor]) -> Movement {
    let back = |(leg, part): (&OperationLeg, &Minor)| OperationLeg {
        source: leg.destination,
        destination: leg.source,
        amount: lastro_money::Amount::new(*part, leg.amount.currency()),
        description: String::new(),
    };
    let mut legs: Vec<OperationLeg> = payment.movement.legs().iter().zip(parts).filter(|(_, part)| **part > Minor::ZERO).map(back).collect();
    match (payment.movement.single(), legs.pop()) {
        (Some(_), Some(leg)) => Movement::Single(leg),
        (_, last) => Movement::Legs(legs.into_iter().chain(last).collect()),
    }
}

/// What of each leg is refunded once more, or once less; None where that cannot be.
pub fn changed_by(payment: &Operation, parts: &[Minor], change: impl Fn(Minor, Minor) -> Option<Minor>) -> Option<Refunded> {
    let legs = payment.movement.legs();
    let before = |index: usize| payment.refunded.as_ref().and_then(|refunded| refunded.get(index).copied()).unwrap_or(Minor::ZERO);
    let after = |(index, (leg, part)): (usize, (&OperationLeg, &Minor))| {
        change(before(index), *part).filter(|after| (Minor::ZERO..=leg.amount.minor()).contains(after))
    };
    (legs.len() == parts.len()).then(|| legs.iter().zip(parts).enumerate().map(after).collect::<Option<Refunded>>())?
}

#[cfg(test)]
mod tests {
    use lastro_money::{Amount, Currency};
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::domain::operation::{Party, State, Type};

    fn payment(amounts: &[i64]) -> Operation {
        let party = |number: u128| Some(Party { account_id: Uuid::from_u128(number), owner_id: Uuid::from_u128(number + 1000) });
        let leg = |(index, minor): (usize, &i64)| OperationLeg {
            source: party(1),
            destination: party(index as u128 + 2),
            amount: Amount::new(Minor::new(*minor), Currency::from_code("BRL").expect("a currency")),
            description: String::new(),
        };
        let movement = Movement::Legs(amounts.iter().enumerate().map(leg).collect());
        let new = Operation::new(Uuid::nil(), (Uuid::nil(), payment_key("o/1")), Type::Payment, movement, 0);
        Operation { state: State::Completed, ..new }
    }

    fn minors(amounts: &[i64]) -> Vec<Minor> {
        amounts.iter().copied().map(Minor::new).collect()
    }

    #[test]
    fn a_refund_is_shared_in_proportion() {
        let mut paid = payment(&[7000, 3000]);
        assert_eq!(share(&paid, Some(Minor::new(1000))), Some(Ok(minors(&[700, 300]))));
        assert_eq!(share(&paid, None), Some(Ok(minors(&[7000, 3000]))));
        for amount in [0, -1, 10_001] {
            assert_eq!(share(&paid, Some(Minor::new(amount))), Some(Err(TooMuch { left: Minor::new(10_000) })), "{amount}");
        }
        paid.refunded = changed_by(&paid, &minors(&[700, 3000]), Minor::checked_add);
        assert_eq!(share(&paid, None), Some(Ok(minors(&[6300, 0]))), "what is left");
        let back = refund_movement(&paid, &minors(&[6300, 0]));
        assert_eq!(
            (back.legs().len(), back.legs()[0].source, back.legs()[0].amount.minor()),
            (1, paid.movement.legs()[0].destination, Minor::new(6300))
        );
        assert_eq!(changed_by(&paid, &minors(&[6301, 0]), Minor::checked_add), None, "more than was paid");
        assert_eq!(order_of(&paid), "o/1");
    }

    proptest! {
        /// Whatever is refunded, in whatever parts: no leg gives more than it got, and all of it comes to exactly all.
        #[test]
        fn no_leg_gives_more_than_it_got(amounts in prop::collection::vec(1_i64..1_000_000_000_000, 1..20), parts in prop::collection::vec(1_i64..1_000_000_000_000, 1..20)) {
            let mut paid = payment(&amounts);
            for part in parts.into_iter().map(|part| Some(Minor::new(part))).chain([None]) {
                let (_, all) = left(&paid).expect("it adds up");
                match share(&paid, part).expect("it adds up") {
                    Ok(shared) => {
                        prop_assert_eq!(shared.iter().map(|one| one.get()).sum::<i64>(), part.unwrap_or(all).get());
                        paid.refunded = Some(changed_by(&paid, &shared, Minor::checked_add).expect("within each leg"));
                    }
                    Err(TooMuch { left }) => prop_assert!(part.is_none_or(|part| part > left)),
                }
            }
            prop_assert_eq!(left(&paid).expect("it adds up").1, Minor::ZERO);
        }
    }
}
