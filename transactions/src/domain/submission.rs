//! What a caller asks for, read and checked: every rule that needs no database.

use std::collections::BTreeMap;
use std::time::Duration;

use lastro_money::{Amount, Currency, Minor};
use uuid::Uuid;

use super::operation::{Settlement, Type};
use super::payment::RESERVED_KEYS;

/// Legs of one transaction.
pub const LEGS_MAX: usize = 100;
/// For how long an amount is held: the least, what holds if nothing is said, and the most.
const HOLD_EXPIRY_MIN: Duration = Duration::from_secs(1);
const HOLD_EXPIRY: Duration = Duration::from_secs(7 * 24 * 3600);
const HOLD_EXPIRY_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

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
    pub amount: Option<Money>,
    /// In place of source, destination and amount.
    pub legs: Vec<LegRequest>,
    pub description: String,
    pub metadata: BTreeMap<String, String>,
    /// Unix seconds and nanoseconds.
    pub effective_time: Option<(i64, i32)>,
    /// Seconds and nanoseconds.
    pub wait: Option<(i64, i32)>,
    pub hold: bool,
    /// Seconds and nanoseconds.
    pub hold_expiry: Option<(i64, i32)>,
    pub external: bool,
    pub validate_only: bool,
}

/// One of several legs, as it was said.
#[derive(Debug, Clone)]
pub struct LegRequest {
    pub source: String,
    pub destination: String,
    pub amount: Option<Money>,
    pub description: String,
}

/// An amount, as it was said.
#[derive(Debug, Clone)]
pub struct Money {
    pub currency_code: String,
    /// A decimal string.
    pub amount: String,
}

/// A request that keeps every rule that can be checked without looking anything up.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    pub external_id: String,
    pub kind: Type,
    pub movement: Movement,
    pub description: String,
    pub metadata: BTreeMap<String, String>,
    pub effective_time_us: Option<i64>,
    pub wait: Duration,
    pub hold: Option<Hold>,
    pub settlement: Settlement,
    /// Nothing is to be stored.
    pub validate_only: bool,
}

/// What a request moves.
#[derive(Debug, Clone, PartialEq)]
pub enum Movement {
    /// The request's own source, destination and amount.
    Single(Leg),
    /// 1 to 100 legs.
    Legs(Vec<Leg>),
}

#[cfg(test)]
impl Movement {
    fn legs(&self) -> &[Leg] {
        match self {
            Self::Single(leg) => std::slice::from_ref(leg),
            Self::Legs(legs) => legs,
        }
    }
}

/// Money that is to move from one account to another.
#[derive(Debug, Clone, PartialEq)]
pub struct Leg {
    pub source: Option<Uuid>,
    pub destination: Option<Uuid>,
    /// More than zero.
    pub amount: Amount,
    pub description: String,
}

/// The amount is to be held first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// For how long, from acceptance.
    pub expiry: Duration,
    /// Whether the caller said so.
    pub is_given: bool,
}

/// Which rule a request breaks, and in which of its legs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{rule}")]
pub struct Error {
    /// Counted from 0; None where it is no rule of a leg.
    pub leg: Option<usize>,
    pub rule: Rule,
}

impl From<Rule> for Error {
    fn from(rule: Rule) -> Self {
        Self { leg: None, rule }
    }
}

/// The rule that a request breaks, in the order in which rules are checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rule {
    /// Lastro makes such keys itself.
    #[error("must not begin with {RESERVED_KEYS:?}, as keys do that Lastro makes itself")]
    ReservedKey,
    /// A provider settles deposits alone.
    #[error("must not be EXTERNAL for a {0}")]
    ExternalOf(&'static str),
    /// A deposit comes from outside, where nothing can be held.
    #[error("must be false for a DEPOSIT")]
    HoldOfDeposit,
    /// A hold counts when it is captured.
    #[error("must not be given with hold: it counts when it is captured")]
    HoldWithEffectiveTime,
    /// There is nothing that could expire.
    #[error("must only be given with hold")]
    ExpiryWithoutHold,
    /// Out of range.
    #[error("must be between 1s and 2592000s")]
    HoldExpiry,
    /// Only transfers have legs.
    #[error("must only be given for a TRANSFER")]
    LegsOf(&'static str),
    /// Too many legs.
    #[error("must have {LEGS_MAX} items at most")]
    TooManyLegs,
    /// Two ways to say what moves.
    #[error("must not be given together with legs")]
    BesideLegs(&'static str),
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
    /// Nothing is said of what moves.
    #[error("is required")]
    AmountMissing,
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
    fn of_leg(leg: usize) -> impl Fn(Rule) -> Self {
        move |rule| Self { leg: Some(leg), rule }
    }

    /// The field of the contract that breaks the rule.
    pub fn field(&self) -> String {
        let field = self.rule.field();
        self.leg.map_or_else(|| field.to_owned(), |leg| format!("legs[{leg}].{field}"))
    }
}

impl Rule {
    fn field(&self) -> &'static str {
        match self {
            Self::ReservedKey => "external_id",
            Self::ExternalOf(_) => "settlement",
            Self::HoldOfDeposit => "hold",
            Self::HoldWithEffectiveTime | Self::EffectiveTime => "effective_time",
            Self::ExpiryWithoutHold | Self::HoldExpiry => "hold_expiry",
            Self::LegsOf(_) | Self::TooManyLegs => "legs",
            Self::BesideLegs(field) => field,
            Self::AccountMissing(side, _) | Self::AccountTooMany(side, _) | Self::AccountMalformed(side) => match side {
                Side::Source => "source_account_id",
                Side::Destination => "destination_account_id",
            },
            Self::SameAccount => "destination_account_id",
            Self::NoCurrency(_) => "amount.currency_code",
            Self::NoAmount(_) | Self::NotPositive => "amount.amount",
            Self::AmountMissing | Self::TooMuch(_) => "amount",
            Self::Metadata(_) => "metadata",
            Self::Wait => "wait",
        }
    }
}

impl Submission {
    /// Reads a request; an amount is at most so many minor units.
    pub fn read(request: Request, amount_max: Minor) -> Result<Self, Error> {
        check_key(&request.external_id)?;
        if request.external && request.kind != Type::Deposit {
            return Err(Rule::ExternalOf(request.kind.name()).into());
        }
        let hold = hold(&request)?;
        let movement = movement(&request, amount_max)?;
        let metadata_bytes: usize = request.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
        if metadata_bytes > METADATA_BYTES_MAX {
            return Err(Rule::Metadata(metadata_bytes).into());
        }
        Ok(Self {
            external_id: request.external_id,
            kind: request.kind,
            movement,
            description: request.description,
            metadata: request.metadata,
            effective_time_us: request.effective_time.map(effective_time_us).transpose()?,
            wait: request.wait.map_or(Ok(Duration::ZERO), wait)?,
            hold,
            settlement: if request.external { Settlement::External } else { Settlement::Internal },
            validate_only: request.validate_only,
        })
    }
}

/// A key that its caller may choose.
pub fn check_key(external_id: &str) -> Result<(), Rule> {
    if external_id.starts_with(RESERVED_KEYS) { Err(Rule::ReservedKey) } else { Ok(()) }
}

fn hold(request: &Request) -> Result<Option<Hold>, Rule> {
    if !request.hold {
        return if request.hold_expiry.is_some() { Err(Rule::ExpiryWithoutHold) } else { Ok(None) };
    }
    if request.kind == Type::Deposit {
        return Err(Rule::HoldOfDeposit);
    }
    if request.effective_time.is_some() {
        return Err(Rule::HoldWithEffectiveTime);
    }
    let Some(expiry) = request.hold_expiry else { return Ok(Some(Hold { expiry: HOLD_EXPIRY, is_given: false })) };
    let expiry = duration(expiry).filter(|expiry| (HOLD_EXPIRY_MIN..=HOLD_EXPIRY_MAX).contains(expiry)).ok_or(Rule::HoldExpiry)?;
    Ok(Some(Hold { expiry, is_given: true }))
}

fn movement(request: &Request, amount_max: Minor) -> Result<Movement, Error> {
    let kind = request.kind;
    if request.legs.is_empty() {
        let needs = |kinds: &[Type]| kinds.contains(&kind);
        let source = account(Side::Source, request.source.as_deref(), needs(&[Type::Withdrawal, Type::Transfer]), kind)?;
        let destination = account(Side::Destination, request.destination.as_deref(), needs(&[Type::Deposit, Type::Transfer]), kind)?;
        return Ok(Movement::Single(leg(source, destination, request.amount.as_ref(), String::new(), amount_max)?));
    }
    if kind != Type::Transfer {
        return Err(Rule::LegsOf(kind.name()).into());
    }
    if request.legs.len() > LEGS_MAX {
        return Err(Rule::TooManyLegs.into());
    }
    let beside = [
        ("source_account_id", request.source.is_some()),
        ("destination_account_id", request.destination.is_some()),
        ("amount", request.amount.is_some()),
    ];
    if let Some((field, _)) = beside.into_iter().find(|(_, is_given)| *is_given) {
        return Err(Rule::BesideLegs(field).into());
    }
    let read = |(index, asked): (usize, &LegRequest)| {
        let given = |text: &'_ str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let read = || {
            let source = account(Side::Source, given(&asked.source).as_deref(), true, kind)?;
            let destination = account(Side::Destination, given(&asked.destination).as_deref(), true, kind)?;
            leg(source, destination, asked.amount.as_ref(), asked.description.clone(), amount_max)
        };
        read().map_err(Error::of_leg(index))
    };
    Ok(Movement::Legs(request.legs.iter().enumerate().map(read).collect::<Result<_, _>>()?))
}

fn leg(source: Option<Uuid>, destination: Option<Uuid>, amount: Option<&Money>, description: String, amount_max: Minor) -> Result<Leg, Rule> {
    if source.is_some() && source == destination {
        return Err(Rule::SameAccount);
    }
    let amount = read_amount(amount.ok_or(Rule::AmountMissing)?, amount_max)?;
    Ok(Leg { source, destination, amount, description })
}

/// An amount that is more than zero, and at most so many minor units.
pub fn read_amount(money: &Money, amount_max: Minor) -> Result<Amount, Rule> {
    let Some(currency) = Currency::from_code(&money.currency_code) else { return Err(Rule::NoCurrency(money.currency_code.clone())) };
    let amount = Amount::new(lastro_money::parse(&money.amount, currency)?, currency);
    if amount.minor() <= Minor::ZERO {
        return Err(Rule::NotPositive);
    }
    if amount.minor() > amount_max {
        return Err(Rule::TooMuch(Amount::new(amount_max, currency)));
    }
    Ok(amount)
}

fn account(side: Side, text: Option<&str>, is_needed: bool, kind: Type) -> Result<Option<Uuid>, Rule> {
    match (text, is_needed) {
        (None, true) => Err(Rule::AccountMissing(side, kind.name())),
        (Some(_), false) => Err(Rule::AccountTooMany(side, kind.name())),
        (None, false) => Ok(None),
        (Some(text), true) => Uuid::parse_str(text).map(Some).map_err(|_| Rule::AccountMalformed(side)),
    }
}

fn effective_time_us((seconds, nanos): (i64, i32)) -> Result<i64, Rule> {
    let us = seconds.checked_mul(1_000_000).and_then(|us| us.checked_add(i64::from(nanos / 1000)));
    us.filter(|us| EFFECTIVE_TIME_US.contains(us) && (0..1_000_000_000).contains(&nanos)).ok_or(Rule::EffectiveTime)
}

/// For how long a caller waits: at most [`WAIT_MAX`].
pub fn wait(asked: (i64, i32)) -> Result<Duration, Rule> {
    duration(asked).filter(|wait| *wait <= WAIT_MAX).ok_or(Rule::Wait)
}

/// None where it is negative, or its nanoseconds are too many.
fn duration((seconds, nanos): (i64, i32)) -> Option<Duration> {
    let read = u64::try_from(seconds).ok().zip(u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000));
    read.map(|(seconds, nanos)| Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brl(amount: &str) -> Money {
        Money { currency_code: "BRL".to_owned(), amount: amount.to_owned() }
    }

    fn request() -> Request {
        Request {
            external_id: "k".to_owned(),
            kind: Type::Transfer,
            source: Some(Uuid::from_u128(1).to_string()),
            destination: Some(Uuid::from_u128(2).to_string()),
            amount: Some(brl("1.00")),
            legs: Vec::new(),
            description: String::new(),
            metadata: BTreeMap::new(),
            effective_time: None,
            wait: None,
            hold: false,
            hold_expiry: None,
            external: false,
            validate_only: false,
        }
    }

    const AMOUNT_MAX: Minor = Minor::new(1_000_000_000_000_000);

    fn field_of(change: impl FnOnce(&mut Request)) -> String {
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
            assert_eq!(field_of(|request| request.amount = Some(brl(amount))), "amount.amount", "{amount}");
        }
        assert_eq!(field_of(|request| request.amount = Some(Money { currency_code: "XXX".to_owned(), ..brl("1") })), "amount.currency_code");
        for (amount, taken) in [("10000000000000.00", true), ("10000000000000.01", false), ("92233720368547758.07", false)] {
            let mut request = request();
            request.amount = Some(brl(amount));
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
        assert_eq!(field_of(|request| request.amount = None), "amount");
        assert_eq!(field_of(|request| request.external = true), "settlement");
    }

    #[test]
    fn holds_keep_their_rules() {
        let read = |change: &dyn Fn(&mut Request)| {
            let mut request = Request { hold: true, ..request() };
            change(&mut request);
            Submission::read(request, AMOUNT_MAX)
        };
        assert_eq!(read(&|_| ()).map(|read| read.hold), Ok(Some(Hold { expiry: Duration::from_secs(604_800), is_given: false })));
        for (expiry, taken) in [((1, 0), true), ((0, 999_999_999), false), ((2_592_000, 0), true), ((2_592_000, 1), false), ((-1, 0), false)] {
            let read = read(&|request| request.hold_expiry = Some(expiry));
            assert_eq!(read.is_ok(), taken, "{expiry:?}");
            assert!(taken || read.expect_err("out of range").field() == "hold_expiry");
        }
        let field = |change: &dyn Fn(&mut Request)| read(change).expect_err("a broken rule").field();
        assert_eq!(field(&|request| request.effective_time = Some((1_700_000_000, 0))), "effective_time");
        assert_eq!(field(&|request| (request.kind, request.source) = (Type::Deposit, None)), "hold");
        assert_eq!(field(&|request| (request.hold, request.hold_expiry) = (false, Some((5, 0)))), "hold_expiry");
    }

    #[test]
    fn legs_stand_alone_and_a_broken_one_is_named() {
        let leg = |source: u128, destination: u128, amount: &str| LegRequest {
            source: Uuid::from_u128(source).to_string(),
            destination: Uuid::from_u128(destination).to_string(),
            amount: Some(brl(amount)),
            description: String::new(),
        };
        let of_legs = |legs: Vec<LegRequest>| Request { source: None, destination: None, amount: None, legs, ..request() };
        let read = |request: Request| Submission::read(request, AMOUNT_MAX);
        let two = || vec![leg(1, 2, "1.00"), leg(2, 3, "0.50")];
        assert_eq!(read(of_legs(two())).map(|read| read.movement.legs().len()), Ok(2));
        assert_eq!(read(of_legs(vec![leg(1, 2, "1"); 100])).map(|read| read.movement.legs().len()), Ok(100));
        let field = |request: Request| read(request).expect_err("a broken rule").field();
        assert_eq!(field(of_legs(vec![leg(1, 2, "1"); 101])), "legs");
        assert_eq!(field(of_legs(vec![leg(1, 2, "1"), leg(2, 2, "1")])), "legs[1].destination_account_id");
        assert_eq!(field(of_legs(vec![leg(1, 2, "1"), leg(2, 3, "0")])), "legs[1].amount.amount");
        assert_eq!(field(of_legs(vec![LegRequest { amount: None, ..leg(1, 2, "1") }])), "legs[0].amount");
        assert_eq!(field(of_legs(vec![LegRequest { source: String::new(), ..leg(1, 2, "1") }])), "legs[0].source_account_id");
        assert_eq!(field(Request { amount: Some(brl("1")), ..of_legs(two()) }), "amount");
        assert_eq!(field(Request { source: Some(Uuid::nil().to_string()), ..of_legs(two()) }), "source_account_id");
        assert_eq!(field(Request { kind: Type::Withdrawal, ..of_legs(two()) }), "legs");
    }
}
