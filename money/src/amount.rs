//! Amounts in their currency, decimal strings to amounts and back, and exact allocation.

use std::fmt;

use crate::{Currency, Minor};

/// An amount in its currency.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Amount {
    minor: Minor,
    currency: Currency,
}

/// Why two amounts have no sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SumError {
    /// They are of two currencies, which only an exchange relates.
    #[error("{0} and {1} cannot be added")]
    DifferentCurrencies(Currency, Currency),
    /// The sum does not fit 64 bits of minor units.
    #[error("the sum is out of range")]
    OutOfRange,
}

impl Amount {
    /// So many minor units of a currency.
    pub const fn new(minor: Minor, currency: Currency) -> Self {
        Self { minor, currency }
    }

    /// In minor units.
    pub const fn minor(&self) -> Minor {
        self.minor
    }

    /// Of which currency.
    pub const fn currency(&self) -> Currency {
        self.currency
    }

    /// The sum of two amounts of one currency.
    pub fn checked_add(self, other: Self) -> Result<Self, SumError> {
        if self.currency != other.currency {
            return Err(SumError::DifferentCurrencies(self.currency, other.currency));
        }
        let minor = self.minor.checked_add(other.minor).ok_or(SumError::OutOfRange)?;
        Ok(Self { minor, ..self })
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", format(self.minor, self.currency), self.currency)
    }
}

impl fmt::Debug for Amount {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}

/// Why a decimal string is not an amount, in the order in which it is checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Something else than digits, with at most one point between them and a `-` in front.
    #[error("must be a decimal number such as 100.50: digits, at most one point, no exponent")]
    NotDecimal,
    /// More digits after the point than the currency has.
    #[error("has more fraction digits than {currency} has ({exponent})")]
    TooPrecise {
        /// The currency.
        currency: Currency,
        /// Its digits.
        exponent: u8,
    },
    /// Does not fit 64 bits of minor units.
    #[error("is out of range: at most {max} minor units", max = i64::MAX)]
    OutOfRange,
}

/// Reads a decimal string as minor units. `"100.5"` and `"100.50"` are the same amount in BRL; `"1e3"`, `"+1"`, `".5"`, `"1."`
/// and `""` are none.
pub fn parse(text: &str, currency: Currency) -> Result<Minor, Error> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) {
        return Err(Error::NotDecimal);
    }
    let exponent = usize::from(currency.exponent());
    // `100.0` has a digit that JPY does not have, so it is refused even though the digit is zero; a bare `100` is not.
    if digits.contains('.') && fraction.len() > exponent {
        return Err(Error::TooPrecise { currency, exponent: currency.exponent() });
    }
    let padding = std::iter::repeat_n(b'0', exponent.saturating_sub(fraction.len()));
    let fraction = fraction.bytes().take(exponent);
    let mut minor: i64 = 0;
    for digit in whole.bytes().chain(fraction).chain(padding) {
        let digit = i64::from(digit.wrapping_sub(b'0'));
        // Counted downwards: i64::MIN has no positive counterpart.
        minor = minor.checked_mul(10).and_then(|tens| tens.checked_sub(digit)).ok_or(Error::OutOfRange)?;
    }
    let minor = Minor::new(minor);
    if negative { Ok(minor) } else { minor.checked_neg().ok_or(Error::OutOfRange) }
}

/// Writes minor units with exactly the currency's digits: 10050 BRL is `100.50`, 100 JPY is `100`.
pub fn format(minor: Minor, currency: Currency) -> String {
    format_sum(minor.get().into(), currency)
}

/// As [`format`], of a sum of many amounts, which may be larger than one amount can be.
pub fn format_sum(minor_units: i128, currency: Currency) -> String {
    let exponent = usize::from(currency.exponent());
    let sign = if minor_units < 0 { "-" } else { "" };
    let digits = format!("{:0width$}", minor_units.unsigned_abs(), width = exponent.saturating_add(1));
    let (whole, fraction) = digits.split_at(digits.len().saturating_sub(exponent));
    if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

/// Splits an amount by weights so that the parts sum to it exactly: the largest-remainder method (Hamilton), ties to the first.
/// None when there is no weight, all are zero, or the sum of weights overflows.
pub fn allocate(minor: Minor, weights: &[u64]) -> Option<Vec<Minor>> {
    let total: i128 = weights.iter().map(|weight| i128::from(*weight)).sum();
    if total == 0 {
        return None;
    }
    let share = |weight: &u64| i128::from(minor.get()).checked_mul(i128::from(*weight));
    let mut parts = Vec::with_capacity(weights.len());
    let mut remainders = Vec::with_capacity(weights.len());
    for (index, weight) in weights.iter().enumerate() {
        let exact = share(weight)?;
        parts.push(Minor::new(i64::try_from(exact.checked_div(total)?).ok()?));
        remainders.push((std::cmp::Reverse(exact.checked_rem(total)?.abs()), index));
    }
    let given = parts.iter().try_fold(Minor::ZERO, |sum, part| sum.checked_add(*part))?;
    let rest = minor.checked_sub(given)?.get();
    remainders.sort_unstable();
    for (_, index) in remainders.into_iter().take(usize::try_from(rest.unsigned_abs()).ok()?) {
        let part = parts.get_mut(index)?;
        *part = part.checked_add(Minor::new(rest.signum()))?;
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn currency(code: &str) -> Currency {
        Currency::from_code(code).expect("a currency of the test")
    }

    #[test]
    fn reads_decimal_strings() {
        for (text, code, minor) in [
            ("100.50", "BRL", 10_050),
            ("100.5", "BRL", 10_050),
            ("100", "BRL", 10_000),
            ("0", "BRL", 0),
            ("-1", "BRL", -100),
            ("100", "JPY", 100),
            ("1.234", "KWD", 1_234),
            ("92233720368547758.07", "BRL", i64::MAX),
            ("-92233720368547758.08", "BRL", i64::MIN),
            ("000000000000000000001", "BRL", 100),
        ] {
            assert_eq!(parse(text, currency(code)), Ok(Minor::new(minor)), "{text} {code}");
        }
    }

    #[test]
    fn refuses_what_is_no_amount_of_the_currency() {
        let brl = currency("BRL");
        for text in ["", ".", "1.", ".5", "+1", "1e3", "NaN", "inf", "1,00", " 1", "1 ", "--1", "1.2.3", "0x1", "١"] {
            assert_eq!(parse(text, brl), Err(Error::NotDecimal), "{text:?}");
        }
        assert_eq!(parse("0.001", brl), Err(Error::TooPrecise { currency: brl, exponent: 2 }));
        assert_eq!(parse("1.0", currency("JPY")), Err(Error::TooPrecise { currency: currency("JPY"), exponent: 0 }));
        for text in ["92233720368547758.08", "-92233720368547758.09", "99999999999999999999"] {
            assert_eq!(parse(text, brl), Err(Error::OutOfRange), "{text}");
        }
    }

    #[test]
    fn amounts_of_two_currencies_have_no_sum() {
        let amount = |minor, code| Amount::new(Minor::new(minor), currency(code));
        assert_eq!(amount(100, "BRL").checked_add(amount(50, "BRL")), Ok(amount(150, "BRL")));
        assert_eq!(amount(100, "BRL").checked_add(amount(50, "USD")), Err(SumError::DifferentCurrencies(currency("BRL"), currency("USD"))));
        assert_eq!(amount(i64::MAX, "BRL").checked_add(amount(1, "BRL")), Err(SumError::OutOfRange));
        assert_eq!(amount(-10_050, "BRL").to_string(), "-100.50 BRL");
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(minor: i64, index in 0_usize..150) {
            let currency = Currency::all().nth(index).unwrap_or(currency("BRL"));
            let minor = Minor::new(minor);
            prop_assert_eq!(parse(&format(minor, currency), currency), Ok(minor));
        }

        #[test]
        fn parts_sum_to_the_whole(minor: i64, weights in prop::collection::vec(0_u64..1000, 1..20)) {
            prop_assume!(weights.iter().any(|weight| *weight > 0));
            let parts = allocate(Minor::new(minor), &weights).expect("weights are not all zero");
            prop_assert_eq!(parts.iter().map(|part| i128::from(part.get())).sum::<i128>(), i128::from(minor));
            for (part, weight) in parts.iter().zip(&weights) {
                prop_assert!(*weight > 0 || *part == Minor::ZERO);
            }
        }
    }
}
