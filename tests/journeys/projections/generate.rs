//! What the adversary writes: events of accounts and transactions, and what reports are to tell of them, computed from what was generated and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use lastro_events::{Event, EventStore, NewEvent};
use lastro_proto::transactions::events::v1::{
    AccountEvent, AccountFrozen, AccountOpened, Completed, OperationEvent, Posting, Processing, Rejected, Submitted, Voided, account_event,
    operation_event, submitted,
};
use lastro_transactions::{ACCOUNT_EVENTS, EVENTS};
use prost::Message as _;
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use uuid::Uuid;

pub const ACCOUNTS: usize = 24;
pub const HOUR_US: i64 = 3_600_000_000;
/// 2026-01-01T00:00:00Z.
pub const BEGIN_US: i64 = 1_767_225_600_000_000;
pub const DAYS: i64 = 40;
/// What is no event becomes a dead letter after five attempts, of two seconds together.
pub const POISONED: usize = 4;

/// The streams of one aggregate: they are written in order, in one transaction or in several.
pub struct Stream {
    pub store: EventStore,
    pub events: Vec<Event>,
}

/// What reports are to tell, computed from what was generated and nothing else.
#[derive(Default)]
pub struct Expected {
    /// Version and balance of each account.
    pub heads: BTreeMap<Uuid, (i64, i64)>,
    /// Credits and debits by account and day.
    pub days: BTreeMap<(Uuid, i64), (i64, i64)>,
    pub entries: i64,
    /// Accepted, completed, rejected, released.
    pub counts: [i64; 4],
    pub poisoned: BTreeSet<Uuid>,
}

pub struct Written {
    pub accounts: Vec<Stream>,
    pub operations: Vec<Stream>,
    pub expected: Expected,
    pub events: usize,
}

fn event(aggregate_id: Uuid, previous: Option<&Event>, kind: &'static str, payload: Vec<u8>, recorded_us: i64) -> Event {
    let new = NewEvent { id: Uuid::now_v7(), kind, payload, correlation_id: "adversary".to_owned(), causation_id: None, recorded_us };
    match previous {
        Some(previous) => new.at(aggregate_id, previous.version + 1, &previous.hash),
        None => new.at(aggregate_id, 1, &lastro_events::event::GENESIS),
    }
}

pub fn push(stream: &mut Vec<Event>, id: Uuid, kind: &'static str, payload: Vec<u8>, recorded_us: i64) {
    let next = event(id, stream.last(), kind, payload, recorded_us);
    stream.push(next);
}

/// São Paulo has been three hours behind since 2019.
fn day(us: i64) -> i64 {
    (us - 3 * HOUR_US).div_euclid(24 * HOUR_US)
}

pub fn generate(random: &mut StdRng, events_min: usize) -> Written {
    let mut written = Written { accounts: Vec::new(), operations: Vec::new(), expected: Expected::default(), events: 0 };
    let owners: Vec<Uuid> = (0..5).map(|_| Uuid::now_v7()).collect();
    let mut ids = Vec::new();
    for _ in 0..ACCOUNTS {
        let (id, mut events) = (Uuid::now_v7(), Vec::new());
        let opened = AccountOpened { owner_id: owners.choose(random).expect("some").to_string(), currency_code: "BRL".to_owned(), system: false };
        push(&mut events, id, "OPENED", AccountEvent { event: Some(account_event::Event::Opened(opened)) }.encode_to_vec(), BEGIN_US);
        for _ in 0..random.random_range(0..3) {
            let frozen = AccountEvent { event: Some(account_event::Event::Frozen(AccountFrozen {})) };
            push(&mut events, id, "FROZEN", frozen.encode_to_vec(), BEGIN_US + 1);
        }
        ids.push(id);
        written.expected.heads.insert(id, (0, 0));
        written.events += events.len();
        written.accounts.push(Stream { store: ACCOUNT_EVENTS, events });
    }
    let mut now_us = BEGIN_US + 10;
    while written.events < events_min {
        now_us += random.random_range(1..DAYS * 24 * HOUR_US * 2 / events_min as i64);
        let stream = operation(random, &ids, &owners, now_us, &mut written.expected);
        written.events += stream.len();
        written.operations.push(Stream { store: EVENTS, events: stream });
    }
    for _ in 0..POISONED {
        let (id, mut events) = (Uuid::now_v7(), Vec::new());
        // A length that reaches past the end: no protobuf.
        for kind in ["SUBMITTED", "PROCESSING", "COMPLETED"] {
            push(&mut events, id, kind, vec![0x0a, 0xff, 0xff, 0x01], now_us);
        }
        written.events += events.len();
        written.expected.poisoned.insert(id);
        written.operations.push(Stream { store: EVENTS, events });
    }
    written
}

fn operation(random: &mut StdRng, accounts: &[Uuid], owners: &[Uuid], now_us: i64, expected: &mut Expected) -> Vec<Event> {
    let (id, mut events) = (Uuid::now_v7(), Vec::new());
    let from = *accounts.choose(random).expect("some");
    let to = *accounts.iter().filter(|id| **id != from).collect::<Vec<_>>().choose(random).expect("others");
    let amount = random.random_range(1..100_000);
    let effective_us = random.random_bool(0.3).then(|| now_us - random.random_range(0..DAYS * 24 * HOUR_US));
    let submitted = Submitted {
        owner_id: owners.choose(random).expect("some").to_string(),
        external_id: id.to_string(),
        r#type: submitted::Type::Transfer as i32,
        source_account_id: from.to_string(),
        destination_account_id: to.to_string(),
        currency_code: "BRL".to_owned(),
        amount_minor: amount,
        description: format!("no {amount}"),
        effective_time_us: effective_us,
        ..Submitted::default()
    };
    let wire = |event| OperationEvent { event: Some(event) }.encode_to_vec();
    push(&mut events, id, "SUBMITTED", wire(operation_event::Event::Submitted(submitted)), now_us);
    expected.counts[0] += 1;
    if random.random_bool(0.2) {
        push(&mut events, id, "PROCESSING", wire(operation_event::Event::Processing(Processing::default())), now_us + 1);
    }
    let ended_us = now_us + random.random_range(2..1_000);
    match random.random_range(0..20) {
        0 => {
            push(&mut events, id, "REJECTED", wire(operation_event::Event::Rejected(Rejected::default())), ended_us);
            expected.counts[2] += 1;
        }
        1 => {
            push(&mut events, id, "VOIDED", wire(operation_event::Event::Voided(Voided::default())), ended_us);
            expected.counts[3] += 1;
        }
        // It stays open.
        2 => {}
        _ => {
            let mut post = |account: Uuid, amount: i64| {
                let head = expected.heads.get_mut(&account).expect("an account");
                *head = (head.0 + 1, head.1 + amount);
                let flow = expected.days.entry((account, day(effective_us.unwrap_or(ended_us)))).or_default();
                if amount > 0 {
                    flow.0 += amount;
                } else {
                    flow.1 -= amount;
                }
                expected.entries += 1;
                Posting {
                    account_id: account.to_string(),
                    amount_minor: amount,
                    account_version: head.0,
                    balance_minor: head.1,
                    record_time_us: Some(ended_us),
                }
            };
            let postings = vec![post(from, -amount), post(*to, amount)];
            let completed = Completed { postings, effective_time_us: effective_us, ..Completed::default() };
            push(&mut events, id, "COMPLETED", wire(operation_event::Event::Completed(completed)), ended_us);
            expected.counts[1] += 1;
        }
    }
    events
}
