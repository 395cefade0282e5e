//! The rules of products, stock and reservations, without any I/O.

pub mod product;
pub mod reservation;
pub mod stock;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// The id of what is named by something else, which is the same in every replica: the first 16 bytes of a hash over that, as a UUIDv8 (RFC 9562).
pub fn derived_id(hash: Sha256) -> Uuid {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}
