//! What a caller asks for, read and checked: every rule that needs no database.

use std::time::Duration;

use lastro_mesh::status::Problem;
use lastro_money::{Currency, Minor};
use lastro_proto::reasons;
use lastro_proto::time::{Timestamp, micros};
use lastro_proto::transactions::events::v1::{MetadataEntry, Submitted};
use lastro_proto::transactions::v1::CreateTransactionRequest;
use lastro_proto::transactions::v1::transaction::Settlement;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::operation::Type;

/// The longest that a caller may wait for the outcome.
pub const WAIT_MAX: Duration = Duration::from_secs(30);
/// Metadata is stored with the operation, published, and sent with every answer: together its keys and values have at most so many bytes of UTF-8.
pub const METADATA_BYTES_MAX: usize = 16 * 1024;
/// 2000-01-01 and 2100-01-01, Unix microseconds.
const EFFECTIVE_TIME_US: std::ops::Range<i64> = 946_684_800_000_000..4_102_444_800_000_000;

/// A request that keeps every rule that can be checked without looking anything up.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    pub external_id: String,
    pub kind: Type,
    pub source: Option<Uuid>,
    pub destination: Option<Uuid>,
    pub currency: Currency,
    /// More than zero, in minor units.
    pub amount: Minor,
    pub description: String,
    /// Sorted by key.
    pub metadata: Vec<MetadataEntry>,
    pub effective_time_us: Option<i64>,
    pub wait: Duration,
}

impl Submission {
    /// Reads a request whose fields keep the rules of the proto.
    pub fn read(request: CreateTransactionRequest, amount_minor_max: Minor) -> Result<Self, Problem> {
        let kind = request.r#type();
        if request.hold {
            return Err(Problem {
                fields: vec![violation("hold", "is not offered yet")],
                ..Problem::new(&reasons::NOT_OFFERED, "hold is not offered yet")
            });
        }
        if request.settlement() == Settlement::External {
            let fields = vec![violation("settlement", "EXTERNAL is not offered yet")];
            return Err(Problem { fields, ..Problem::new(&reasons::NOT_OFFERED, "settlement EXTERNAL is not offered yet") });
        }
        let source = account("source_account_id", &request.source_account_id, matches!(kind, Type::Withdrawal | Type::Transfer), kind)?;
        let destination = account("destination_account_id", &request.destination_account_id, matches!(kind, Type::Deposit | Type::Transfer), kind)?;
        if source.is_some() && source == destination {
            return Err(Problem::field("destination_account_id", "must not be the source account"));
        }
        let money = request.amount.unwrap_or_default();
        let currency = Currency::from_code(&money.currency_code)
            .ok_or_else(|| Problem::field("amount.currency_code", format!("{:?} is no ISO 4217 currency", money.currency_code)))?;
        let amount = lastro_money::parse(&money.amount, currency).map_err(|error| Problem::field("amount.amount", error.to_string()))?;
        if amount <= 0 {
            return Err(Problem::field("amount.amount", "must be more than zero"));
        }
        if amount > amount_minor_max {
            let most = lastro_money::format(amount_minor_max, currency);
            return Err(Problem::field("amount", format!("must be at most {most} {}", currency.code())));
        }
        let metadata_bytes: usize = request.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
        if metadata_bytes > METADATA_BYTES_MAX {
            let description = format!("has {metadata_bytes} bytes of keys and values; at most {METADATA_BYTES_MAX} are taken");
            return Err(Problem::field("metadata", description));
        }
        Ok(Self {
            external_id: request.external_id,
            kind,
            source,
            destination,
            currency,
            amount,
            description: request.description,
            // A BTreeMap: sorted already.
            metadata: request.metadata.into_iter().map(|(key, value)| MetadataEntry { key, value }).collect(),
            effective_time_us: request.effective_time.map(|time| effective_time(&time)).transpose()?,
            wait: request.wait.map_or(Ok(Duration::ZERO), |wait| read_wait(&wait))?,
        })
    }

    /// The payload of the event SUBMITTED: everything that was asked for, in canonical form, but for how long the caller waits.
    pub fn submitted(&self, owner_id: Uuid) -> Submitted {
        let text = |id: Option<Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
        Submitted {
            owner_id: owner_id.to_string(),
            external_id: self.external_id.clone(),
            r#type: self.kind as i32,
            source_account_id: text(self.source),
            destination_account_id: text(self.destination),
            currency_code: self.currency.code().to_owned(),
            amount_minor: self.amount,
            description: self.description.clone(),
            metadata: self.metadata.clone(),
            effective_time_us: self.effective_time_us,
            external: false,
            hold: false,
        }
    }
}

/// The hash by which a repeated key is told from a reused one.
pub fn request_hash(submitted: &Submitted) -> [u8; 32] {
    Sha256::digest(submitted.encode_to_vec()).into()
}

fn violation(field: &str, description: &str) -> lastro_mesh::codec::Violation {
    lastro_mesh::codec::Violation::new(field, description)
}

fn account(field: &'static str, text: &str, needed: bool, kind: Type) -> Result<Option<Uuid>, Problem> {
    match (text.is_empty(), needed) {
        (true, true) => Err(Problem::field(field, format!("is required for a {}", kind.as_str_name()))),
        (false, false) => Err(Problem::field(field, format!("must be empty for a {}", kind.as_str_name()))),
        (true, false) => Ok(None),
        (false, true) => Uuid::parse_str(text).map(Some).map_err(|_| Problem::field(field, "must be a UUID")),
    }
}

fn effective_time(time: &Timestamp) -> Result<i64, Problem> {
    let us = micros(time).filter(|us| EFFECTIVE_TIME_US.contains(us));
    us.ok_or_else(|| Problem::field("effective_time", "must be between 2000-01-01T00:00:00Z and 2100-01-01T00:00:00Z"))
}

fn read_wait(wait: &pbjson_types::Duration) -> Result<Duration, Problem> {
    let read = u64::try_from(wait.seconds).ok().zip(u32::try_from(wait.nanos).ok().filter(|nanos| *nanos < 1_000_000_000));
    let read = read.map(|(seconds, nanos)| Duration::new(seconds, nanos)).filter(|wait| *wait <= WAIT_MAX);
    read.ok_or_else(|| Problem::field("wait", "must be between 0s and 30s"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lastro_proto::r#type::v1::Money;

    use super::*;

    fn request() -> CreateTransactionRequest {
        CreateTransactionRequest {
            external_id: "k".to_owned(),
            r#type: Type::Transfer as i32,
            source_account_id: Uuid::from_u128(1).to_string(),
            destination_account_id: Uuid::from_u128(2).to_string(),
            amount: Some(Money { currency_code: "BRL".to_owned(), amount: "1.00".to_owned() }),
            ..CreateTransactionRequest::default()
        }
    }

    const AMOUNT_MAX: Minor = 1_000_000_000_000_000;

    fn field_of(change: impl FnOnce(&mut CreateTransactionRequest)) -> String {
        let mut request = request();
        change(&mut request);
        Submission::read(request, AMOUNT_MAX).expect_err("a broken rule").fields[0].field.clone()
    }

    #[test]
    fn every_broken_rule_names_its_field() {
        assert_eq!(field_of(|request| request.source_account_id.clear()), "source_account_id");
        assert_eq!(field_of(|request| request.destination_account_id.clear()), "destination_account_id");
        assert_eq!(field_of(|request| request.r#type = Type::Deposit as i32), "source_account_id");
        assert_eq!(field_of(|request| request.r#type = Type::Withdrawal as i32), "destination_account_id");
        assert_eq!(field_of(|request| request.destination_account_id = request.source_account_id.to_uppercase()), "destination_account_id");
        for amount in ["0", "-1", "0.001", "1e3", "NaN", "", "99999999999999999999"] {
            assert_eq!(field_of(|request| request.amount.as_mut().expect("set").amount = amount.to_owned()), "amount.amount", "{amount}");
        }
        assert_eq!(field_of(|request| request.amount.as_mut().expect("set").currency_code = "XXX".to_owned()), "amount.currency_code");
        for (amount, taken) in [("10000000000000.00", true), ("10000000000000.01", false), ("92233720368547758.07", false)] {
            let mut request = request();
            request.amount.as_mut().expect("set").amount = amount.to_owned();
            let read = Submission::read(request, AMOUNT_MAX);
            assert_eq!(read.is_ok(), taken, "{amount}");
            assert!(taken || read.expect_err("too much").fields[0].field == "amount");
        }
        for (bytes, taken) in [(METADATA_BYTES_MAX, true), (METADATA_BYTES_MAX + 1, false)] {
            let mut request = request();
            request.metadata = (0..=bytes / 500).map(|n| (format!("{n:04}"), "x".repeat(496))).collect();
            let last = request.metadata.last_entry().expect("some").into_mut();
            *last = "x".repeat(bytes % 500 - 4);
            assert_eq!(Submission::read(request, AMOUNT_MAX).is_ok(), taken, "{bytes}");
        }
        for wait in [(31, 0), (30, 1), (-1, 0), (0, -1)] {
            assert_eq!(field_of(|request| request.wait = Some(pbjson_types::Duration { seconds: wait.0, nanos: wait.1 })), "wait");
        }
        assert_eq!(field_of(|request| request.effective_time = Some(Timestamp { seconds: i64::MAX, nanos: 0 })), "effective_time");
        assert_eq!(field_of(|request| request.hold = true), "hold");
    }

    #[test]
    fn the_hash_covers_what_is_asked_for_and_not_how() {
        let hash = |change: &dyn Fn(&mut CreateTransactionRequest)| {
            let mut request = request();
            change(&mut request);
            request_hash(&Submission::read(request, AMOUNT_MAX).expect("a good request").submitted(Uuid::nil()))
        };
        let plain = hash(&|_| {});
        let same: [&dyn Fn(&mut CreateTransactionRequest); 3] = [
            &|request| request.wait = Some(pbjson_types::Duration { seconds: 5, nanos: 0 }),
            &|request| request.amount.as_mut().expect("set").amount = "1".to_owned(),
            &|request| request.source_account_id = request.source_account_id.to_uppercase(),
        ];
        for (index, change) in same.into_iter().enumerate() {
            assert_eq!(hash(change), plain, "{index}");
        }
        let other: [&dyn Fn(&mut CreateTransactionRequest); 5] = [
            &|request| request.amount.as_mut().expect("set").amount = "1.01".to_owned(),
            &|request| request.description = "d".to_owned(),
            &|request| request.metadata = BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            &|request| request.effective_time = Some(Timestamp { seconds: 1_700_000_000, nanos: 0 }),
            &|request| std::mem::swap(&mut request.source_account_id, &mut request.destination_account_id),
        ];
        for (index, change) in other.into_iter().enumerate() {
            assert_ne!(hash(change), plain, "{index}");
        }
    }
}
