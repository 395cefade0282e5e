//! Amounts of money: minor units in `i64`, ISO 4217 currencies with their exponents, checked arithmetic, exact allocation.
//!
//! Invariants: no float is anywhere near an amount; an amount is never rounded, truncated or wrapped without an error.
#![deny(clippy::float_arithmetic, clippy::arithmetic_side_effects)]

pub mod amount;
pub mod currency;
pub mod minor;

pub use amount::{Amount, SumError, allocate, format, format_sum, parse};
pub use currency::Currency;
pub use minor::Minor;
