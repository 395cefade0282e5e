//! The streams of accounts, in the table `account_events`.

use lastro_database::{Error, Transaction};
use lastro_events::{EventStore, NewEvent};
use lastro_mesh::clock;
use lastro_proto::transactions::events::v1::{AccountClosed, AccountEvent, AccountOpened, account_event};
use prost::Message as _;
use sea_orm::ConnectionTrait;
use uuid::Uuid;

use crate::domain::account::Account;

/// What transactions tells of accounts.
pub const ACCOUNT_EVENTS: EventStore =
    EventStore { table: "account_events", topic: "accounts", message: "lastro.transactions.events.v1.AccountEvent" };

/// What led to something that happened to an account.
#[derive(Debug, Clone, Copy)]
pub struct Cause<'a> {
    /// The request.
    pub correlation_id: &'a str,
    /// The event, where it was one.
    pub event_id: Option<Uuid>,
}

/// Appends that accounts were opened, which have been inserted in the same transaction.
pub async fn append_opened(tx: &impl ConnectionTrait, accounts: &[&Account], cause: Cause<'_>) -> Result<(), Error> {
    let opened = |account: &&Account| {
        let (owner_id, currency_code) = (account.owner_id.to_string(), account.currency.code().to_owned());
        let event = account_event::Event::Opened(AccountOpened { owner_id, currency_code, system: account.system });
        (account.id, new_event("OPENED", event, cause, account.create_time_us))
    };
    ACCOUNT_EVENTS.append_all(tx, accounts.iter().map(opened).collect()).await.map(|_| ())
}

/// Appends that accounts were closed. Their balances are locked.
pub async fn append_closed(tx: &Transaction, accounts: &[Uuid], cause: Cause<'_>) -> Result<(), Error> {
    let now_us = clock::now_us();
    let closed = |id: &Uuid| (*id, new_event("CLOSED", account_event::Event::Closed(AccountClosed {}), cause, now_us));
    ACCOUNT_EVENTS.append_all(tx, accounts.iter().map(closed).collect()).await.map(|_| ())
}

/// Appends that something about an account was changed.
pub async fn append_changed(tx: &Transaction, account_id: Uuid, event: account_event::Event, cause: Cause<'_>) -> Result<(), Error> {
    let kind = match &event {
        account_event::Event::Opened(_) => "OPENED",
        account_event::Event::Closed(_) => "CLOSED",
        account_event::Event::Renamed(_) => "RENAMED",
        account_event::Event::CreditLimitChanged(_) => "CREDIT_LIMIT_CHANGED",
        account_event::Event::Frozen(_) => "FROZEN",
        account_event::Event::Unfrozen(_) => "UNFROZEN",
    };
    ACCOUNT_EVENTS.append_all(tx, vec![(account_id, new_event(kind, event, cause, clock::now_us()))]).await.map(|_| ())
}

/// An event of an account.
pub fn new_event(kind: &'static str, event: account_event::Event, cause: Cause<'_>, recorded_us: i64) -> NewEvent {
    NewEvent {
        id: clock::new_id(),
        kind,
        payload: AccountEvent { event: Some(event) }.encode_to_vec(),
        correlation_id: cause.correlation_id.to_owned(),
        causation_id: cause.event_id,
        recorded_us,
    }
}
