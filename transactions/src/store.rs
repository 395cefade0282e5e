//! The tables of transactions. What moves money is in `ledger`, where the statements of the two databases stand side by side.

pub mod account_events;
pub mod accounts;
pub mod ledger;
mod legs;
pub mod operations;
pub mod provider_calls;
pub mod provider_events;
pub mod sagas;
pub mod users;
