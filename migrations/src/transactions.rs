//! Tables of transactions.

pub mod m0001_ledger;
