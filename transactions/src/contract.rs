//! What is told of operations: from the domain to the messages of `lastro.transactions.events.v1`, in canonical bytes. The wire's enums stop here and
//! in `grpc`.

use lastro_proto::transactions::events::v1::{self as wire, operation_event::Event};
use lastro_proto::transactions::v1::transaction;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::domain::ledger::Posting;
use crate::domain::operation::{State, Type};
use crate::domain::rejection::Rejection;
use crate::domain::submission::Submission;

/// Everything that was asked for, in canonical form, but for how long the caller waits; and the hash by which a repeated key is told from a reused one.
pub fn submitted(submission: &Submission, owner_id: Uuid) -> (Vec<u8>, [u8; 32]) {
    let text = |id: Option<Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
    let entry = |(key, value): (&String, &String)| wire::MetadataEntry { key: key.clone(), value: value.clone() };
    let submitted = wire::Submitted {
        owner_id: owner_id.to_string(),
        external_id: submission.external_id.clone(),
        r#type: type_to_wire(submission.kind) as i32,
        source_account_id: text(submission.source),
        destination_account_id: text(submission.destination),
        currency_code: submission.amount.currency().code().to_owned(),
        amount_minor: submission.amount.minor().get(),
        description: submission.description.clone(),
        // Sorted by key.
        metadata: submission.metadata.iter().map(entry).collect(),
        effective_time_us: submission.effective_time_us,
        external: false,
        hold: false,
    };
    let hash = Sha256::digest(submitted.encode_to_vec()).into();
    (encode(Event::Submitted(submitted)), hash)
}

/// Settled, with its postings.
pub fn completed(postings: &[Posting]) -> Vec<u8> {
    let posting = |posting: &Posting| wire::Posting {
        account_id: posting.account_id.to_string(),
        amount_minor: posting.amount.get(),
        account_version: posting.account_version,
        balance_minor: posting.balance.get(),
    };
    encode(Event::Completed(wire::Completed { postings: postings.iter().map(posting).collect() }))
}

/// Refused at settlement.
pub fn rejected(reason: Rejection) -> Vec<u8> {
    encode(Event::Rejected(wire::Rejected { reason: reason.name().to_owned() }))
}

/// Settling failed, and will be tried again.
pub fn waits_for_retry() -> Vec<u8> {
    encode(Event::Processing(wire::Processing { waits_for: "RETRY".to_owned() }))
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
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lastro_money::Minor;

    use super::*;
    use crate::domain::submission::Request;

    #[test]
    fn types_have_the_same_names_and_numbers_in_events() {
        for number in 0..=7 {
            let of_event = wire::submitted::Type::try_from(number).ok().map(|of| of.as_str_name());
            assert_eq!(of_event, transaction::Type::try_from(number).ok().map(|of| of.as_str_name()), "{number}");
        }
    }

    #[test]
    fn the_hash_covers_what_is_asked_for_and_not_how() {
        let hash = |change: &dyn Fn(&mut Request)| {
            let mut request = Request {
                external_id: "k".to_owned(),
                kind: Type::Transfer,
                source: Some(Uuid::from_u128(1).to_string()),
                destination: Some(Uuid::from_u128(0xabc).to_string()),
                currency_code: "BRL".to_owned(),
                amount: "1.00".to_owned(),
                description: String::new(),
                metadata: BTreeMap::new(),
                effective_time: None,
                wait: None,
                hold: false,
                external: false,
            };
            change(&mut request);
            submitted(&Submission::read(request, Minor::MAX).expect("a good request"), Uuid::nil()).1
        };
        let plain = hash(&|_| {});
        let same: [&dyn Fn(&mut Request); 3] = [&|request| request.wait = Some((5, 0)), &|request| request.amount = "1".to_owned(), &|request| {
            request.destination = request.destination.as_ref().map(|id| id.to_uppercase());
        }];
        for (index, change) in same.into_iter().enumerate() {
            assert_eq!(hash(change), plain, "{index}");
        }
        let other: [&dyn Fn(&mut Request); 5] = [
            &|request| request.amount = "1.01".to_owned(),
            &|request| request.description = "d".to_owned(),
            &|request| request.metadata = BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            &|request| request.effective_time = Some((1_700_000_000, 0)),
            &|request| std::mem::swap(&mut request.source, &mut request.destination),
        ];
        for (index, change) in other.into_iter().enumerate() {
            assert_ne!(hash(change), plain, "{index}");
        }
    }
}
