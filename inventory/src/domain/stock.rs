//! The stock of one product in one store: the aggregate that keeps `on_hand ≥ reserved ≥ 0`.

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::derived_id;

/// Pieces that a store may count: what an answer's 32 bits hold.
pub const PIECES_MAX: i64 = i32::MAX as i64;

/// The stock of one product in one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stock {
    /// Pieces that are there, those included that are reserved.
    pub on_hand: i64,
    /// Pieces that are kept for somebody.
    pub reserved: i64,
    /// How many events it has had.
    pub version: i64,
}

/// Something that happens to it. Quantities are more than zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// Pieces come.
    Added(i64),
    /// Pieces go that are not reserved.
    Removed(i64),
    /// Pieces are kept for somebody.
    Reserved(i64),
    /// Pieces are not kept any more.
    Released(i64),
    /// Pieces that were kept leave the store.
    Committed(i64),
    /// Pieces that had left are back.
    Returned(i64),
}

/// Why something cannot happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Only so many pieces are not reserved.
    OutOfStock { available: i64 },
    /// More pieces than a store may count.
    Overflow,
    /// Nothing that is asked for brings this about: a defect.
    Broken,
}

impl Happening {
    /// How many pieces.
    pub const fn quantity(self) -> i64 {
        match self {
            Self::Added(quantity)
            | Self::Removed(quantity)
            | Self::Reserved(quantity)
            | Self::Released(quantity)
            | Self::Committed(quantity)
            | Self::Returned(quantity) => quantity,
        }
    }
}

impl Stock {
    /// Pieces that may be reserved or taken away.
    pub const fn available(&self) -> i64 {
        self.on_hand - self.reserved
    }

    /// What it is afterwards. Nothing changes where it is refused.
    pub fn after(self, happening: Happening) -> Result<Self, Refused> {
        let quantity = happening.quantity();
        if quantity <= 0 || quantity > PIECES_MAX {
            return Err(Refused::Broken);
        }
        let (on_hand, reserved) = match happening {
            Happening::Added(_) | Happening::Returned(_) => (self.on_hand + quantity, self.reserved),
            Happening::Removed(_) => (self.on_hand - quantity, self.reserved),
            Happening::Reserved(_) => (self.on_hand, self.reserved + quantity),
            Happening::Released(_) => (self.on_hand, self.reserved - quantity),
            Happening::Committed(_) => (self.on_hand - quantity, self.reserved - quantity),
        };
        if on_hand > PIECES_MAX {
            return Err(Refused::Overflow);
        }
        if on_hand < reserved {
            return Err(Refused::OutOfStock { available: self.available() });
        }
        if reserved < 0 {
            return Err(Refused::Broken);
        }
        Ok(Self { on_hand, reserved, version: self.version + 1 })
    }
}

/// The id of a stock, which is the same in every replica: a UUIDv8 (RFC 9562) of SHA-256 over product and store.
pub fn stock_id(product_id: Uuid, store_id: &str) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(b"lastro stock 1\0");
    hash.update(product_id);
    hash.update(store_id);
    derived_id(hash)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_reserved_does_not_go() {
        let stock = Stock { on_hand: 10, reserved: 4, version: 7 };
        assert_eq!(stock.after(Happening::Removed(7)), Err(Refused::OutOfStock { available: 6 }));
        assert_eq!(stock.after(Happening::Reserved(7)), Err(Refused::OutOfStock { available: 6 }));
        assert_eq!(stock.after(Happening::Reserved(6)), Ok(Stock { on_hand: 10, reserved: 10, version: 8 }));
        assert_eq!(stock.after(Happening::Committed(4)), Ok(Stock { on_hand: 6, reserved: 0, version: 8 }));
        assert_eq!(stock.after(Happening::Released(5)), Err(Refused::Broken));
        assert_eq!(stock.after(Happening::Committed(5)), Err(Refused::Broken));
        assert_eq!(stock.after(Happening::Added(PIECES_MAX)), Err(Refused::Overflow));
        assert_eq!(stock.after(Happening::Added(0)), Err(Refused::Broken));
        assert_eq!(stock.after(Happening::Returned(-1)), Err(Refused::Broken));
    }

    fn any_happening() -> impl Strategy<Value = Happening> {
        (0..6, 1_i64..50).prop_map(|(which, quantity)| match which {
            0 => Happening::Added(quantity),
            1 => Happening::Removed(quantity),
            2 => Happening::Reserved(quantity),
            3 => Happening::Released(quantity),
            4 => Happening::Committed(quantity),
            _ => Happening::Returned(quantity),
        })
    }

    proptest! {
        /// Whatever happens: never less on hand than reserved, never less reserved than nothing, and a refusal changes nothing.
        #[test]
        fn the_invariant_holds(happenings in prop::collection::vec(any_happening(), 1..200)) {
            let mut stock = Stock::default();
            for (happened, happening) in happenings.into_iter().enumerate() {
                match stock.after(happening) {
                    Ok(after) => {
                        prop_assert!(after.on_hand >= after.reserved && after.reserved >= 0, "{happened}: {after:?}");
                        prop_assert_eq!(after.version, stock.version + 1);
                        stock = after;
                    }
                    Err(Refused::OutOfStock { available }) => prop_assert!(available < happening.quantity()),
                    Err(Refused::Overflow | Refused::Broken) => {}
                }
            }
        }
    }
}
