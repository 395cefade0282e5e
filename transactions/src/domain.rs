//! The rules of transactions: no clock, no I/O, no async, nothing of the wire. Time and ids come in as arguments.

pub mod account;
pub mod ledger;
pub mod operation;
pub mod payment;
pub mod rejection;
pub mod report;
pub mod submission;
