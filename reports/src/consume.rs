//! What reports makes of the events of others.

pub mod accounts;
pub mod orders;
pub mod transactions;

use std::sync::Arc;

use lastro_events::changes::Changes;
use lastro_events::consumer::Failure;
use lastro_events::replay::Projector;
use lastro_events::{Consumer, Event, Topic};
use prost::Message;
use uuid::Uuid;

use crate::cache::DaysCache;

/// The topics that reports are made from.
pub const TOPICS: [&str; 3] = ["accounts", ORDERS, TRANSACTIONS];
/// The topic of orders.
pub const ORDERS: &str = "orders";
/// The events of transactions.
pub const TRANSACTIONS: &str = "transactions";

/// Whoever reads the tables that events change.
#[derive(Clone)]
pub enum Readers {
    /// The callers of this process: those that wait until they see a write, and those that are answered from the cache.
    Here {
        /// What has been seen.
        seen: Arc<Changes>,
        /// The days of accounts that were asked for lately.
        days_cache: Arc<DaysCache>,
    },
    /// Nobody yet: the tables are being made.
    Nobody,
}

impl Readers {
    /// Tells them of events that have been applied, which change what is known of these accounts.
    fn tell(&self, events: &[Event], accounts: &[Uuid]) {
        let Self::Here { seen, days_cache } = self else { return };
        // Before anybody is told that it may read.
        days_cache.forget(accounts);
        seen.note(events.iter().map(|event| (event.aggregate_id, event.version)));
    }
}

/// What fills new tables, from the topics that reports are made from.
pub fn projectors(database: &lastro_database::Database, topics: [Topic; 3]) -> Vec<Box<dyn Projector>> {
    let [accounts, orders, transactions] = topics;
    vec![
        Box::new(Consumer::new(accounts, database, accounts::Accounts { readers: Readers::Nobody })),
        Box::new(Consumer::new(orders, database, orders::Orders { readers: Readers::Nobody })),
        Box::new(Consumer::new(transactions, database, transactions::Transactions { readers: Readers::Nobody })),
    ]
}

fn decode<M: Message + Default>(event: &Event) -> Result<M, Failure> {
    M::decode(event.payload.as_slice()).map_err(|error| Failure::Event(error.to_string()))
}

fn id(field: &str, text: &str) -> Result<Uuid, Failure> {
    Uuid::parse_str(text).map_err(|error| Failure::Event(format!("{field}: {error}")))
}
