//! Tables of customers.

pub mod m0001_identity;
