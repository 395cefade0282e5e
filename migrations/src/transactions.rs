//! Tables of transactions.

pub mod m0001_ledger;
pub mod m0002_owners_and_keys;
pub mod m0003_operations_by_owner;
