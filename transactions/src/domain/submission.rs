//! What a caller asks for, read and checked: every rule that needs no database.

use std::collections::BTreeMap;
use std::time::Duration;

use lastro_money::{Amount, Currency, Minor};
use uuid::Uuid;

use super::operation::Type;

/// The longest that a caller may wait for the outcome.
pub const WAIT_MAX: Duration = Duration::from_secs(30);
/// Metadata is stored with the operation, published, and sent with every answer: together its keys and values have at most so many bytes of UTF-8.
pub const METADATA_BYTES_MAX: usize = 16 * 1024;
/// 2000-01-01 and 2100-01-01, Unix microseconds.
const EFFECTIVE_TIME_US: std::ops::Range<i64> = 946_684_800_000_000..4_102_444_800_000_000;

/// What a caller asks for, as it was said.
#[derive(Debug, Clone)]
pub struct Request {
    pub external_id: String,
    pub kind: Type,
    pub source: Option<String>,
    pub destination: Option<String>,
    pub currency_code: String,
    /// A decimal string.
    pub amount: String,
    pub description: String,
    pub metadata: BTreeMap<String, String>,
    /// Unix seconds and nanoseconds.
    pub effective_time: Option<(i64, i32)>,
    /// Seconds and nanoseconds.
    pub wait: Option<(i64, i32)>,
    pub hold: bool,
    pub external: bool,
}

/// A request that keeps every rule that can be checked without looking anything up.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    pub external_id: String,
    pub kind: Type,
    pub source: Option<Uuid>,
    pub destination: Option<Uuid>,
    /// More than zero.
    pub amount: Amount,
    pub description: String,
    pub metadata: BTreeMap<String, String>,
    pub effective_time_us: Option<i64>,
    pub wait: Duration,
}

/// The rule that a request breaks, in the order in which rules are checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Holds are in the contract and not offered yet.
    #[error("hold is not offered yet")]
    Hold,
    /// Settlement by a provider is in the contract and not offered yet.
    #[error("settlement EXTERNAL is not offered yet")]
    External,
    /// An account that this kind of operation needs.
    #[error("is required for a {1}")]
    AccountMissing(Side, &'static str),
    /// An account that this kind of operation has not.
    #[error("must be empty for a {1}")]
    AccountTooMany(Side, &'static str),
    /// An account's id.
    #[error("must be a UUID")]
    AccountMalformed(Side),
    /// The two accounts are one.
    #[error("must not be the source account")]
    SameAccount,
    /// A code that ISO 4217 does not list.
    #[error("{0:?} is no ISO 4217 currency")]
    NoCurrency(String),
    /// The decimal string.
    #[error(transparent)]
    NoAmount(#[from] lastro_money::amount::Error),
    /// Nothing moves, or backwards.
    #[error("must be more than zero")]
    NotPositive,
    /// More than the operator allows.
    #[error("must be at most {0}")]
    TooMuch(Amount),
    /// Too many bytes.
    #[error("has {0} bytes of keys and values; at most {METADATA_BYTES_MAX} are taken")]
    Metadata(usize),
    /// Out of range.
    #[error("must be between 2000-01-01T00:00:00Z and 2100-01-01T00:00:00Z")]
    EffectiveTime,
    /// Out of range.
    #[error("must be between 0s and 30s")]
    Wait,
}

/// Which account of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
}

impl Error {
    /// The field of the contract that breaks the rule.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::External => "settlement",
            Self::AccountMissing(side, _) | Self::AccountTooMany(side, _) | Self::AccountMalformed(side) => match side {
                Side::Source => "source_account_id",
                Side::Destination => "destination_account_id",
            },
            Self::SameAccount => "destination_account_id",
            Self::NoCurrency(_) => "amount.currency_code",
            Self::NoAmount(_) | Self::NotPositive => "amount.amount",
            Self::TooMuch(_) => "amount",
            Self::Metadata(_) => "metadata",
            Self::EffectiveTime => "effective_time",
            Self::Wait => "wait",
        }
    }
}

impl Submission {
    /// Reads a request; an amount is at most so many minor units.
    pub fn read(request: Request, amount_max: Minor) -> Result<Self, Error> {
        let kind = request.kind;
        if request.hold {
            return Err(Error::Hold);
        }
        if request.external {
            return Err(Error::External);
        }
        let source = account(Side::Source, request.source.as_deref(), matches!(kind, Type::Withdrawal | Type::Transfer), kind)?;
        let destination = account(Side::Destination, request.destination.as_deref(), matches!(kind, Type::Deposit | Type::Transfer), kind)?;
        if source.is_some() && source == destination {
            return Err(Error::SameAccount);
        }
        let Some(currency) = Currency::from_code(&request.currency_code) else { return Err(Error::NoCurrency(request.currency_code)) };
        let amount = Amount::new(lastro_money::parse(&request.amount, currency)?, currency);
        if amount.minor() <= Minor::ZERO {
            return Err(Error::NotPositive);
        }
        if amount.minor() > amount_max {
            return Err(Error::TooMuch(Amount::new(amount_max, currency)));
        }
        let metadata_bytes: usize = request.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
        if metadata_bytes > METADATA_BYTES_MAX {
            return Err(Error::Metadata(metadata_bytes));
        }
        Ok(Self {
            external_id: request.external_id,
            kind,
            source,
            destination,
            amount,
            description: request.description,
            metadata: request.metadata,
            effective_time_us: request.effective_time.map(effective_time_us).transpose()?,
            wait: request.wait.map_or(Ok(Duration::ZERO), wait)?,
        })
    }
}

fn account(side: Side, text: Option<&str>, is_needed: bool, kind: Type) -> Result<Option<Uuid>, Error> {
    match (text, is_needed) {
        (None, true) => Err(Error::AccountMissing(side, kind.name())),
        (Some(_), false) => Err(Error::AccountTooMany(side, kind.name())),
        (None, false) => Ok(None),
        (Some(text), true) => Uuid::parse_str(text).map(Some).map_err(|_| Error::AccountMalformed(side)),
    }
}

fn effective_time_us((seconds, nanos): (i64, i32)) -> Result<i64, Error> {
    let us = seconds.checked_mul(1_000_000).and_then(|us| us.checked_add(i64::from(nanos / 1000)));
    us.filter(|us| EFFECTIVE_TIME_US.contains(us) && (0..1_000_000_000).contains(&nanos)).ok_or(Error::EffectiveTime)
}

fn wait((seconds, nanos): (i64, i32)) -> Result<Duration, Error> {
    let read = u64::try_from(seconds).ok().zip(u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000));
    read.map(|(seconds, nanos)| Duration::new(seconds, nanos)).filter(|wait| *wait <= WAIT_MAX).ok_or(Error::Wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            external_id: "k".to_owned(),
            kind: Type::Transfer,
            source: Some(Uuid::from_u128(1).to_string()),
            destination: Some(Uuid::from_u128(2).to_string()),
            currency_code: "BRL".to_owned(),
            amount: "1.00".to_owned(),
            description: String::new(),
            metadata: BTreeMap::new(),
            effective_time: None,
            wait: None,
            hold: false,
            external: false,
        }
    }

    const AMOUNT_MAX: Minor = Minor::new(1_000_000_000_000_000);

    fn field_of(change: impl FnOnce(&mut Request)) -> &'static str {
        let mut request = request();
        change(&mut request);
        Submission::read(request, AMOUNT_MAX).expect_err("a broken rule").field()
    }

    #[test]
    fn every_broken_rule_names_its_field() {
        assert_eq!(field_of(|request| request.source = None), "source_account_id");
        assert_eq!(field_of(|request| request.destination = None), "destination_account_id");
        assert_eq!(field_of(|request| request.kind = Type::Deposit), "source_account_id");
        assert_eq!(field_of(|request| request.kind = Type::Withdrawal), "destination_account_id");
        assert_eq!(field_of(|request| request.destination = request.source.as_ref().map(|id| id.to_uppercase())), "destination_account_id");
        for amount in ["0", "-1", "0.001", "1e3", "NaN", "", "99999999999999999999"] {
            assert_eq!(field_of(|request| request.amount = amount.to_owned()), "amount.amount", "{amount}");
        }
        assert_eq!(field_of(|request| request.currency_code = "XXX".to_owned()), "amount.currency_code");
        for (amount, taken) in [("10000000000000.00", true), ("10000000000000.01", false), ("92233720368547758.07", false)] {
            let mut request = request();
            request.amount = amount.to_owned();
            let read = Submission::read(request, AMOUNT_MAX);
            assert_eq!(read.is_ok(), taken, "{amount}");
            assert!(taken || read.expect_err("too much").field() == "amount");
        }
        for (bytes, taken) in [(METADATA_BYTES_MAX, true), (METADATA_BYTES_MAX + 1, false)] {
            let mut request = request();
            request.metadata = (0..=bytes / 500).map(|n| (format!("{n:04}"), "x".repeat(496))).collect();
            let last = request.metadata.last_entry().expect("some").into_mut();
            *last = "x".repeat(bytes % 500 - 4);
            assert_eq!(Submission::read(request, AMOUNT_MAX).is_ok(), taken, "{bytes}");
        }
        for wait in [(31, 0), (30, 1), (-1, 0), (0, -1)] {
            assert_eq!(field_of(|request| request.wait = Some(wait)), "wait");
        }
        for time in [(i64::MAX, 0), (946_684_799, 999_999_999), (4_102_444_800, 0), (1_700_000_000, 1_000_000_000), (1_700_000_000, -1)] {
            assert_eq!(field_of(|request| request.effective_time = Some(time)), "effective_time");
        }
        assert_eq!(field_of(|request| request.hold = true), "hold");
        assert_eq!(field_of(|request| request.external = true), "settlement");
    }
}
