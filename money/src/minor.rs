//! Minor units as a type of their own.

use std::fmt;

/// An amount in minor units of some currency: cents for BRL, yen for JPY. It is not a number: it cannot be added to a version, a count or a time, nor
/// to another amount without a check.
///
/// ```compile_fail,E0369
/// use lastro_money::Minor;
/// let account_version: i64 = 7;
/// let nonsense = Minor::new(100) + account_version;
/// ```
///
/// ```compile_fail,E0369
/// use lastro_money::Minor;
/// let unchecked = Minor::new(i64::MAX) + Minor::new(1);
/// ```
///
/// ```compile_fail,E0308
/// use lastro_money::Minor;
/// let microseconds: i64 = 1_700_000_000_000_000;
/// let amount: Minor = microseconds;
/// ```
///
/// ```
/// use lastro_money::Minor;
/// assert_eq!(Minor::new(100).checked_add(Minor::new(50)), Some(Minor::new(150)));
/// assert_eq!(Minor::MAX.checked_add(Minor::new(1)), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Minor(i64);

impl Minor {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The least that 64 bits hold.
    pub const MIN: Self = Self(i64::MIN);
    /// The most that 64 bits hold.
    pub const MAX: Self = Self(i64::MAX);

    /// So many minor units.
    pub const fn new(units: i64) -> Self {
        Self(units)
    }

    /// The bare number, for storing and for messages.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// The sum; None where it does not fit 64 bits.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The difference; None where it does not fit 64 bits.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(difference) => Some(Self(difference)),
            None => None,
        }
    }

    /// The same with the other sign; None for [`MIN`](Self::MIN), which has no counterpart.
    pub const fn checked_neg(self) -> Option<Self> {
        match self.0.checked_neg() {
            Some(negated) => Some(Self(negated)),
            None => None,
        }
    }

    /// The difference, or the nearest that fits 64 bits: to show, never to store.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Debug for Minor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)
    }
}
