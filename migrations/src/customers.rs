//! Tables of customers.

pub mod m0001_identity;
pub mod m0002_key_rotation;
pub mod m0003_events_may_repeat;
pub mod m0004_revocations_and_refresh_tokens;
pub mod m0005_refresh_tokens_expire;
pub mod m0006_known_addresses;
