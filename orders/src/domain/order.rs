//! An order: what was placed, which never changes, and where it stands.

use lastro_money::{Amount, Currency, Minor};
use uuid::Uuid;

use super::saga::{Cause, Saga, State};

/// What was placed.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    /// UUIDv7; that of its saga, too.
    pub id: Uuid,
    pub owner_id: Uuid,
    pub external_id: String,
    pub request_hash: [u8; 32],
    /// Of the call that placed it: everything that is done for the order goes under it.
    pub correlation_id: String,
    /// The W3C trace of that call, as its header has it.
    pub traceparent: String,
    pub items: Vec<Item>,
    pub total: Amount,
    pub payment: Payment,
    /// The one store that the pieces come from; None: any.
    pub store_id: Option<String>,
    pub create_time_us: i64,
    /// What is not done by then is given up.
    pub deadline_us: i64,
}

/// Pieces of a product, with its name, its price and its merchant when it was ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub product_id: Uuid,
    pub product_name: String,
    pub quantity: i64,
    /// Of one piece.
    pub price: Minor,
    pub merchant_account_id: Uuid,
}

/// How an order is paid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payment {
    /// From this account of the buyer.
    Account(Uuid),
    /// By the card with this token. None once the saga has ended: it is not kept.
    Card(Option<CardToken>),
}

/// What a payment provider calls a card. Neither a log nor an event has it.
#[derive(Clone, PartialEq, Eq)]
pub struct CardToken(pub String);

impl std::fmt::Debug for CardToken {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("CardToken(…)")
    }
}

/// Where an order stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    Pending,
    Completed,
    Shipped,
    Delivered,
    Cancelled,
    Failed,
}

impl Status {
    pub const ALL: [Self; 6] = [Self::Pending, Self::Completed, Self::Shipped, Self::Delivered, Self::Cancelled, Self::Failed];

    /// As events tell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Completed => "COMPLETED",
            Self::Shipped => "SHIPPED",
            Self::Delivered => "DELIVERED",
            Self::Cancelled => "CANCELLED",
            Self::Failed => "FAILED",
        }
    }

    /// Whether nobody waits for it any more.
    pub const fn is_decided(self) -> bool {
        !matches!(self, Self::Pending)
    }
}

/// An order as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    pub status: Status,
    pub saga: Saga,
    /// The transaction that has paid.
    pub payment_id: Option<Uuid>,
    /// Of the lease: who has the saga now. It grows with each.
    pub epoch: i64,
    /// When somebody else may take the saga up: the lease has ended, or it is time for the next attempt.
    pub due_us: i64,
    /// Of its last event; None before the first one.
    pub head: Option<Head>,
    pub update_time_us: i64,
}

/// The last event of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub event_id: Uuid,
    pub version: i64,
    pub hash: [u8; 32],
}

/// What is said of an order does not follow from where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    pub status: Status,
    /// It is being cancelled.
    pub is_being_undone: bool,
}

impl Progress {
    /// What comes of what became of the saga: the order's status, if it is another one.
    pub fn follow_saga(&mut self) -> Option<(Status, Status)> {
        let before = self.status;
        self.status = match (self.saga.state, self.saga.cause) {
            (State::Completed, _) if before == Status::Pending => Status::Completed,
            (State::Compensated, Some(Cause::Cancelled)) => Status::Cancelled,
            (State::Compensated, _) => Status::Failed,
            (State::Failed, _) if !self.saga.was_completed() => Status::Failed,
            _ => before,
        };
        (before != self.status).then_some((before, self.status))
    }

    /// What an administrator says of the way of the pieces. None: it is so already.
    pub fn set_status(&mut self, to: Status) -> Result<Option<(Status, Status)>, Conflict> {
        let from = self.status;
        if from == to {
            return Ok(None);
        }
        let follows = matches!((from, to), (Status::Completed, Status::Shipped) | (Status::Shipped, Status::Delivered));
        if !follows || self.saga.state != State::Completed {
            return Err(Conflict { status: from, is_being_undone: self.saga.state != State::Completed && self.saga.was_completed() });
        }
        self.status = to;
        Ok(Some((from, to)))
    }
}

/// What pieces cost together; None beyond 64 bits.
pub fn total(items: &[Item], currency: Currency) -> Option<Amount> {
    let sum = items.iter().try_fold(0_i64, |sum, item| sum.checked_add(item.price.get().checked_mul(item.quantity)?))?;
    Some(Amount::new(Minor::new(sum), currency))
}

/// What each merchant gets, each account once, in the order of their ids; None beyond 64 bits.
pub fn merchants(items: &[Item]) -> Option<Vec<(Uuid, Minor)>> {
    let mut shares: Vec<(Uuid, i64)> = Vec::new();
    for item in items {
        let cost = item.price.get().checked_mul(item.quantity)?;
        match shares.iter_mut().find(|(account_id, _)| *account_id == item.merchant_account_id) {
            Some((_, share)) => *share = share.checked_add(cost)?,
            None => shares.push((item.merchant_account_id, cost)),
        }
    }
    shares.sort_unstable_by_key(|(account_id, _)| *account_id);
    Some(shares.into_iter().map(|(account_id, share)| (account_id, Minor::new(share))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(merchant: u128, price: i64, quantity: i64) -> Item {
        let (product_id, merchant_account_id) = (Uuid::from_u128(merchant << 8 | 1), Uuid::from_u128(merchant));
        Item { product_id, product_name: "p".to_owned(), quantity, price: Minor::new(price), merchant_account_id }
    }

    #[test]
    fn what_merchants_get_adds_up_to_the_total() {
        let items = [item(2, 1050, 3), item(1, 99, 1), item(2, 1, 7)];
        let brl = Currency::from_code("BRL").expect("a currency");
        assert_eq!(total(&items, brl).map(|total| total.minor().get()), Some(3256));
        let shares: Vec<(u128, i64)> = merchants(&items).expect("small").into_iter().map(|(id, share)| (id.as_u128(), share.get())).collect();
        assert_eq!(shares, [(1, 99), (2, 3157)]);
        assert_eq!(total(&[item(1, i64::MAX, 2)], brl), None);
        assert_eq!(merchants(&[item(1, i64::MAX, 1), item(1, 1, 1)]), None);
    }

    #[test]
    fn pieces_are_shipped_after_the_order_is_completed_and_delivered_after_that() {
        let all = |saga_state: State| {
            let mut follows = Vec::new();
            for from in Status::ALL {
                for to in [Status::Shipped, Status::Delivered] {
                    let saga = Saga { state: saga_state, ..Saga::new() };
                    let mut progress = Progress { status: from, saga, payment_id: None, epoch: 1, due_us: 0, head: None, update_time_us: 0 };
                    if progress.set_status(to) == Ok(Some((from, to))) {
                        follows.push((from, to));
                    }
                }
            }
            follows
        };
        assert_eq!(all(State::Completed), [(Status::Completed, Status::Shipped), (Status::Shipped, Status::Delivered)]);
        assert_eq!(all(State::Compensating), [], "what is being cancelled is not shipped");
    }
}
