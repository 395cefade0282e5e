//! Which stripe of a currency's clearing account an operation uses: the one that the random end of its id names, or, where that one has no room
//! for a movement in this direction, the next one that has.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lastro_money::Currency;
use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::account::{STRIPES, clearing_account_id, stripe_of};
use crate::domain::ledger::Side;

/// A full stripe is asked again after so long: movements in the other direction make room.
const FULL_FOR: Duration = Duration::from_secs(60);

/// The stripes that are known to have no room.
#[derive(Default)]
pub struct Stripes {
    /// Read for every operation, so apart from the lock.
    any: AtomicBool,
    full: Mutex<HashMap<(Uuid, Side), Instant>>,
}

impl Stripes {
    /// For a rehearsal, which fills none.
    pub fn copy(&self) -> Self {
        let full = self.full.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Self { any: AtomicBool::new(!full.is_empty()), full: Mutex::new(full) }
    }

    /// The clearing account for one side of an operation.
    pub fn pick(&self, currency: Currency, operation_id: Uuid, side: Side) -> Uuid {
        let first = stripe_of(operation_id);
        if !self.any.load(Ordering::Relaxed) {
            return clearing_account_id(currency, first);
        }
        self.with_room(currency, first, side).unwrap_or_else(|| clearing_account_id(currency, first))
    }

    /// Remembers that a stripe has no room on one side; whether another one has.
    pub fn note_full(&self, currency: Currency, account_id: Uuid, side: Side) -> bool {
        self.full.lock().unwrap_or_else(PoisonError::into_inner).insert((account_id, side), Instant::now());
        self.any.store(true, Ordering::Relaxed);
        self.with_room(currency, 0, side).is_some()
    }

    fn with_room(&self, currency: Currency, first: u8, side: Side) -> Option<Uuid> {
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        full.retain(|_, since| since.elapsed() < FULL_FOR);
        self.any.store(!full.is_empty(), Ordering::Relaxed);
        (0..STRIPES).map(|step| clearing_account_id(currency, (first + step) % STRIPES)).find(|id| !full.contains_key(&(*id, side)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_stripe_is_left_out_until_none_has_room() {
        let (stripes, brl) = (Stripes::default(), Currency::from_code("BRL").expect("a currency"));
        let operation = Uuid::from_u128(5);
        let own = clearing_account_id(brl, 5);
        assert_eq!(stripes.pick(brl, operation, Side::Debit), own);
        assert!(stripes.note_full(brl, own, Side::Debit));
        assert_eq!(stripes.pick(brl, operation, Side::Debit), clearing_account_id(brl, 6));
        assert_eq!(stripes.pick(brl, operation, Side::Credit), own, "there is room in the other direction");
        for stripe in (0..STRIPES).filter(|stripe| *stripe != 5) {
            let left = (0..=stripe).filter(|one| *one != 5).count() < usize::from(STRIPES) - 1;
            assert_eq!(stripes.note_full(brl, clearing_account_id(brl, stripe), Side::Debit), left, "{stripe}");
        }
        assert_eq!(stripes.pick(brl, operation, Side::Debit), own);
        tokio::time::advance(FULL_FOR).await;
        assert_eq!(stripes.pick(brl, operation, Side::Debit), own);
    }
}
