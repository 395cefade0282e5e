//! What is told of operations: from the domain to the messages of `lastro.transactions.events.v1`, in canonical bytes. The wire's enums stop here and
//! in `grpc`.

use std::collections::BTreeMap;

use lastro_money::{Amount, Minor};
use lastro_proto::transactions::events::v1::{self as wire, operation_event::Event};
use lastro_proto::transactions::v1::transaction;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::domain::ledger::Posting;
use crate::domain::operation::{self, Operation, OperationLeg, Party, Settlement, State, Type};
use crate::domain::rejection::Reason;
use crate::domain::report::ReportType;
use crate::domain::submission::{Leg, Movement, Submission};

/// Everything that was asked for, in canonical form, but for how long the caller waits; and the hash by which a repeated key is told from a reused one.
/// Of a reversal, `original_id` is what it reverses.
pub fn submitted(submission: &Submission, owner_id: Uuid, original_id: Option<Uuid>) -> (Vec<u8>, [u8; 32]) {
    let entry = |(key, value): (&String, &String)| wire::MetadataEntry { key: key.clone(), value: value.clone() };
    let (single, legs) = match &submission.movement {
        Movement::Single(leg) => (leg_to_wire(leg), Vec::new()),
        Movement::Legs(legs) => (wire::Leg::default(), legs.iter().map(leg_to_wire).collect()),
    };
    let expiry = submission.hold.filter(|hold| hold.is_given).map(|hold| hold.expiry);
    let submitted = wire::Submitted {
        owner_id: owner_id.to_string(),
        external_id: submission.external_id.clone(),
        r#type: type_to_wire(submission.kind) as i32,
        source_account_id: single.source_account_id,
        destination_account_id: single.destination_account_id,
        currency_code: single.currency_code,
        amount_minor: single.amount_minor,
        description: submission.description.clone(),
        // Sorted by key.
        metadata: submission.metadata.iter().map(entry).collect(),
        effective_time_us: submission.effective_time_us,
        external: submission.settlement == Settlement::External,
        hold: submission.hold.is_some(),
        // At most 30 days.
        hold_expiry_us: expiry.and_then(|expiry| i64::try_from(expiry.as_micros()).ok()),
        original_id: text(original_id),
        legs,
        refunded_minor: Vec::new(),
    };
    let hash = Sha256::digest(submitted.encode_to_vec()).into();
    (encode(Event::Submitted(submitted)), hash)
}

/// The same of an operation as it stands, for what nobody submitted as such: payments and refunds.
pub fn submitted_of(operation: &Operation) -> Vec<u8> {
    let leg = |leg: &OperationLeg| {
        let account = |party: Option<Party>| party.map(|party| party.account_id);
        let (source, destination) = (account(leg.source), account(leg.destination));
        leg_to_wire(&Leg { source, destination, amount: leg.amount, description: leg.description.clone() })
    };
    let (single, legs) = match &operation.movement {
        operation::Movement::Single(single) => (leg(single), Vec::new()),
        operation::Movement::Legs(legs) => (wire::Leg::default(), legs.iter().map(leg).collect()),
    };
    encode(Event::Submitted(wire::Submitted {
        owner_id: operation.owner_id.to_string(),
        external_id: operation.external_id.clone(),
        r#type: type_to_wire(operation.kind) as i32,
        source_account_id: single.source_account_id,
        destination_account_id: single.destination_account_id,
        currency_code: single.currency_code,
        amount_minor: single.amount_minor,
        external: operation.settlement == Settlement::External,
        hold: operation.hold.is_some(),
        original_id: text(operation.original_id),
        description: operation.description.clone(),
        legs,
        refunded_minor: operation.refunded.iter().flatten().map(|part| part.get()).collect(),
        ..wire::Submitted::default()
    }))
}

/// The hash by which a repeated payment is told from another one for the same order. Which card is to pay is in it, and in no event.
pub fn payment_hash(submitted: &[u8], card_token: Option<&str>) -> [u8; 32] {
    let token = card_token.map(|token| Sha256::digest(token).to_vec()).unwrap_or_default();
    Sha256::digest([submitted, token.as_slice()].concat()).into()
}

/// The hash by which a repeated refund is told from a reused key.
pub fn refund_hash(payment_id: Uuid, amount: Option<Amount>) -> [u8; 32] {
    let amount = amount.map(|amount| format!("{}:{}", amount.currency().code(), amount.minor().get())).unwrap_or_default();
    Sha256::digest(format!("refund:{payment_id}:{amount}")).into()
}

fn leg_to_wire(leg: &Leg) -> wire::Leg {
    wire::Leg {
        source_account_id: text(leg.source),
        destination_account_id: text(leg.destination),
        currency_code: leg.amount.currency().code().to_owned(),
        amount_minor: leg.amount.minor().get(),
        description: leg.description.clone(),
    }
}

fn text(id: Option<Uuid>) -> String {
    id.map(|id| id.to_string()).unwrap_or_default()
}

/// The hash by which a repeated capture or void of a hold is told from a reused key; `amount` is that of a capture, if it was given.
pub fn resolution_hash(verb: &str, amount: Option<Amount>) -> [u8; 32] {
    let amount = amount.map(|amount| format!("{}:{}", amount.currency().code(), amount.minor().get())).unwrap_or_default();
    Sha256::digest(format!("{verb}:{amount}")).into()
}

/// The digest by which the same report of a provider is told from another one.
pub fn report_digest(report: ReportType, payload: &BTreeMap<String, String>) -> [u8; 32] {
    let payload = payload.iter().map(|(key, value)| wire::MetadataEntry { key: key.clone(), value: value.clone() });
    // Sorted by key; the type as a field that no payload has.
    let kind = wire::MetadataEntry { key: String::new(), value: report.name().to_owned() };
    let all = wire::Submitted { metadata: std::iter::once(kind).chain(payload).collect(), ..wire::Submitted::default() };
    Sha256::digest(all.encode_to_vec()).into()
}

/// Who captured or voided a hold, by which key, and what it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    pub caller_id: Uuid,
    pub external_id: String,
    pub request_hash: [u8; 32],
}

impl Resolution {
    /// What the event that ended a hold says of it; None where no call ended it.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let stored = match wire::OperationEvent::decode(payload).ok()?.event? {
            Event::Completed(completed) => completed.resolution?,
            Event::Voided(voided) => voided.resolution?,
            _ => return None,
        };
        let caller_id = Uuid::parse_str(&stored.caller_id).ok()?;
        Some(Self { caller_id, external_id: stored.external_id, request_hash: stored.request_hash.try_into().ok()? })
    }

    fn into_wire(self) -> wire::HoldResolution {
        let Self { caller_id, external_id, request_hash } = self;
        wire::HoldResolution { caller_id: caller_id.to_string(), external_id, request_hash: request_hash.to_vec() }
    }
}

/// Settled at a time, with its postings; of a hold, by whom it was captured, and of one of a single leg how much. What is of the time of the event is not said again.
pub fn completed(postings: &[Posting], now_us: i64, effective_time_us: i64, captured: Option<Minor>, resolution: Option<Resolution>) -> Vec<u8> {
    let other = |time_us: i64| Some(time_us).filter(|time_us| *time_us != now_us);
    let posting = |posting: &Posting| wire::Posting {
        account_id: posting.account_id.to_string(),
        amount_minor: posting.amount.get(),
        account_version: posting.account_version,
        balance_minor: posting.balance.get(),
        record_time_us: other(posting.recorded_us),
    };
    let postings = postings.iter().map(posting).collect();
    encode(Event::Completed(wire::Completed {
        postings,
        effective_time_us: other(effective_time_us),
        captured_minor: captured.map(Minor::get),
        resolution: resolution.map(Resolution::into_wire),
    }))
}

/// Refused at settlement, because of one of its legs where it has several.
pub fn rejected(reason: &Reason, leg: Option<usize>) -> Vec<u8> {
    encode(Event::Rejected(wire::Rejected { reason: reason.name().to_owned(), leg: leg.and_then(|leg| i32::try_from(leg).ok()) }))
}

/// Its amount is held until then.
pub fn authorized(expire_time_us: i64) -> Vec<u8> {
    encode(Event::Authorized(wire::Authorized { expire_time_us }))
}

/// The hold was given up, by this call; or by the payment provider, which declined what it was for.
pub fn voided(resolution: Option<Resolution>, reason: Option<&Reason>) -> Vec<u8> {
    let reason = reason.map(|reason| reason.name().to_owned()).unwrap_or_default();
    encode(Event::Voided(wire::Voided { resolution: resolution.map(Resolution::into_wire), reason }))
}

/// The hold ran out.
pub fn expired() -> Vec<u8> {
    encode(Event::Expired(wire::Expired {}))
}

/// Settling failed, and will be tried again.
pub fn waits_for_retry() -> Vec<u8> {
    encode(Event::Processing(wire::Processing { waits_for: "RETRY".to_owned() }))
}

/// An outside provider says what becomes of it.
pub fn waits_for_provider() -> Vec<u8> {
    encode(Event::Processing(wire::Processing { waits_for: "PROVIDER".to_owned() }))
}

fn encode(event: Event) -> Vec<u8> {
    wire::OperationEvent { event: Some(event) }.encode_to_vec()
}

/// The wire's word for a kind of operation.
pub const fn type_to_wire(kind: Type) -> transaction::Type {
    match kind {
        Type::Deposit => transaction::Type::Deposit,
        Type::Withdrawal => transaction::Type::Withdrawal,
        Type::Transfer => transaction::Type::Transfer,
        Type::Payment => transaction::Type::Payment,
        Type::Refund => transaction::Type::Refund,
        Type::Reversal => transaction::Type::Reversal,
    }
}

/// The kind of operation that the wire means, if it means one.
pub const fn type_from_wire(kind: transaction::Type) -> Option<Type> {
    match kind {
        transaction::Type::Unspecified => None,
        transaction::Type::Deposit => Some(Type::Deposit),
        transaction::Type::Withdrawal => Some(Type::Withdrawal),
        transaction::Type::Transfer => Some(Type::Transfer),
        transaction::Type::Payment => Some(Type::Payment),
        transaction::Type::Refund => Some(Type::Refund),
        transaction::Type::Reversal => Some(Type::Reversal),
    }
}

/// The wire's word for who settles.
pub const fn settlement_to_wire(settlement: Settlement) -> transaction::Settlement {
    match settlement {
        Settlement::Internal => transaction::Settlement::Internal,
        Settlement::External => transaction::Settlement::External,
    }
}

/// The wire's word for a state. Why it is not settled yet is our own business: an attempt that failed and a provider that is waited for look alike.
pub const fn state_to_wire(state: State) -> transaction::State {
    match state {
        State::Pending => transaction::State::Pending,
        State::Retrying | State::Waiting => transaction::State::Processing,
        State::Authorized => transaction::State::Authorized,
        State::Completed => transaction::State::Completed,
        State::Rejected => transaction::State::Rejected,
        State::Voided => transaction::State::Voided,
        State::Expired => transaction::State::Expired,
    }
}

/// The states that the wire means by one; none where it means all.
pub fn states_from_wire(state: transaction::State) -> Vec<State> {
    const ALL: [State; 8] =
        [State::Pending, State::Retrying, State::Waiting, State::Authorized, State::Completed, State::Rejected, State::Voided, State::Expired];
    ALL.into_iter().filter(|one| state_to_wire(*one) == state).collect()
}

/// Where an operation stands after an event of this kind; None for a kind that this version does not know.
pub fn state_after(kind: &str) -> Option<State> {
    match kind {
        "SUBMITTED" => Some(State::Pending),
        "PROCESSING" => Some(State::Retrying),
        "COMPLETED" => Some(State::Completed),
        "REJECTED" => Some(State::Rejected),
        "AUTHORIZED" => Some(State::Authorized),
        "VOIDED" => Some(State::Voided),
        "EXPIRED" => Some(State::Expired),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::submission::{LegRequest, Money, Request};

    #[test]
    fn types_have_the_same_names_and_numbers_in_events() {
        for number in 0..=7 {
            let of_event = wire::submitted::Type::try_from(number).ok().map(|of| of.as_str_name());
            assert_eq!(of_event, transaction::Type::try_from(number).ok().map(|of| of.as_str_name()), "{number}");
        }
    }

    #[test]
    fn the_hash_covers_what_is_asked_for_and_not_how() {
        let brl = |amount: &str| Money { currency_code: "BRL".to_owned(), amount: amount.to_owned() };
        let leg = |description: &str| LegRequest {
            source: Uuid::from_u128(1).to_string(),
            destination: Uuid::from_u128(2).to_string(),
            amount: Some(brl("1.00")),
            description: description.to_owned(),
        };
        let hash = |change: &dyn Fn(&mut Request)| {
            let mut request = Request {
                external_id: "k".to_owned(),
                kind: Type::Transfer,
                source: Some(Uuid::from_u128(1).to_string()),
                destination: Some(Uuid::from_u128(0xabc).to_string()),
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
            };
            change(&mut request);
            submitted(&Submission::read(request, Minor::MAX).expect("a good request"), Uuid::nil(), None).1
        };
        let plain = hash(&|_| {});
        let same: [&dyn Fn(&mut Request); 4] = [
            &|request| request.wait = Some((5, 0)),
            &|request| request.validate_only = true,
            &|request| request.amount = Some(brl("1")),
            &|request| request.destination = request.destination.as_ref().map(|id| id.to_uppercase()),
        ];
        for (index, change) in same.into_iter().enumerate() {
            assert_eq!(hash(change), plain, "{index}");
        }
        let other: [&dyn Fn(&mut Request); 10] = [
            &|request| request.hold = true,
            &|request| (request.hold, request.hold_expiry) = (true, Some((604_800, 0))),
            &|request| (request.hold, request.hold_expiry) = (true, Some((5, 0))),
            &|request| *request = Request { source: None, destination: None, amount: None, legs: vec![leg("")], ..request.clone() },
            &|request| *request = Request { source: None, destination: None, amount: None, legs: vec![leg("d")], ..request.clone() },
            &|request| request.amount = Some(brl("1.01")),
            &|request| request.description = "d".to_owned(),
            &|request| request.metadata = BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            &|request| request.effective_time = Some((1_700_000_000, 0)),
            &|request| std::mem::swap(&mut request.source, &mut request.destination),
        ];
        let mut hashes = vec![plain];
        for (index, change) in other.into_iter().enumerate() {
            let hash = hash(change);
            assert!(!hashes.contains(&hash), "{index}");
            hashes.push(hash);
        }
    }
}
