//! Accounts: what never changes about one, and the clearing accounts that stand for the outside world.

use lastro_money::Currency;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// A currency's clearing account is striped so that deposits and withdrawals do not queue behind each other.
pub const STRIPES: u8 = 16;

/// The owner of system accounts: no user has it.
pub const SYSTEM_OWNER: Uuid = Uuid::nil();

/// What never changes about an account, so that it can be cached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub id: Uuid,
    pub owner_id: Uuid,
    pub currency: Currency,
    /// A stripe of a clearing account: no floor, and nobody's to name in a request.
    pub system: bool,
    pub create_time_us: i64,
}

/// The id of one stripe of a currency's clearing account: derived, so that nobody has to look it up.
pub fn clearing_account_id(currency: Currency, stripe: u8) -> Uuid {
    let digest = Sha256::digest(format!("lastro:clearing:{}:{stripe}", currency.code()));
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    // UUIDv8 (RFC 9562, 5.8): vendor-specific.
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// The stripe that an operation uses: spread by the random end of its id.
pub fn stripe_of(operation_id: Uuid) -> u8 {
    operation_id.as_bytes()[15] % STRIPES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stripe_of_every_currency_has_its_own_id() {
        let mut ids: Vec<_> = Currency::all().flat_map(|currency| (0..STRIPES).map(move |stripe| clearing_account_id(currency, stripe))).collect();
        let made = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), made);
    }
}
