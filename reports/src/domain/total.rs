//! A sum of amounts, which may be larger than one amount can be: a ledger moves 9 × 10^18 of a currency more than once. Databases keep it as two numbers,
//! so many billions and the rest, which both of them add exactly.

use std::ops::{Add, AddAssign, Sub};

/// What the first of the two numbers counts.
pub const BILLION: i64 = 1_000_000_000;

/// A sum in minor units of one currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Total(i128);

impl Total {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// Of one amount.
    pub fn of(minor_units: i64) -> Self {
        Self(minor_units.into())
    }

    /// In minor units.
    pub const fn minor_units(self) -> i128 {
        self.0
    }

    /// As it is stored: billions, and the rest, which is never negative, so that each sum is stored in one way alone.
    pub fn parts(self) -> (i64, i64) {
        let billion = i128::from(BILLION);
        let billions = i64::try_from(self.0.div_euclid(billion)).unwrap_or(if self.0 < 0 { i64::MIN } else { i64::MAX });
        (billions, self.0.rem_euclid(billion) as i64)
    }

    /// One number so many times.
    pub fn of_product(amount: i64, times: i64) -> Self {
        Self(i128::from(amount) * i128::from(times))
    }

    /// As it was stored, or summed by a database.
    pub fn of_parts(billions: i64, rest: i64) -> Self {
        Self(i128::from(billions) * i128::from(BILLION) + i128::from(rest))
    }

    /// In the 16 bytes of a page token.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// From the bytes of a page token.
    pub const fn of_bytes(bytes: [u8; 16]) -> Self {
        Self(i128::from_be_bytes(bytes))
    }
}

impl Add for Total {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Total {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl AddAssign for Total {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_come_back_and_are_added_one_by_one(amounts in prop::collection::vec(any::<i64>(), 0..50)) {
            let (mut total, mut billions, mut rest) = (Total::ZERO, 0, 0);
            for amount in amounts {
                total += Total::of(amount);
                billions += amount / BILLION;
                rest += amount % BILLION;
            }
            prop_assert_eq!(Total::of_parts(billions, rest), total);
            let (billions, rest) = total.parts();
            prop_assert_eq!(Total::of_parts(billions, rest), total);
            prop_assert_eq!(Total::of_bytes(total.to_bytes()), total);
        }
    }
}
