//! The tables of customers, as statements that both databases read.

pub mod failures;
pub mod keys;
pub mod known_addresses;
pub mod refresh_tokens;
pub mod sessions;
pub mod users;
