//! What is asked of stock, and how it is answered.

use lastro_database::group_commit::{self, Key, Locks, Refusal};
use lastro_mesh::clock;
use sha2::{Digest as _, Sha256};
use smallvec::{SmallVec, smallvec};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::domain::derived_id;
use crate::domain::reservation::{State, Verb};
use crate::store::adjustments::Adjustment;
use crate::store::reservations::Reservation;
use crate::store::sagas::SagaEpoch;

/// The kinds of idempotency keys. The id that stands before is a hash of all that makes the key.
pub const ADJUSTMENT: &str = "adjustment";
pub const RESERVATION: &str = "reservation";

/// Pieces that come to a store, or go.
#[derive(Debug, Clone)]
pub struct NewAdjustment {
    /// [`adjustment_id`].
    pub id: Uuid,
    /// UUIDv7 of the call.
    pub call_id: Uuid,
    pub request_hash: [u8; 32],
    pub product_id: Uuid,
    pub store_id: String,
    pub stock_id: Uuid,
    /// Less than zero: they go. Never zero.
    pub quantity: i64,
    pub expected_version: Option<i64>,
    pub correlation_id: String,
}

impl NewAdjustment {
    pub fn key(&self) -> Key<'_> {
        (self.id, ADJUSTMENT)
    }
}

/// The id of an adjustment: a UUIDv8 (RFC 9562) of SHA-256 over the caller and its idempotency key.
pub fn adjustment_id(owner_id: Uuid, external_id: &str) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(b"lastro adjustment 1\0");
    hash.update(owner_id);
    hash.update(external_id);
    derived_id(hash)
}

/// Pieces that are to be kept.
#[derive(Debug, Clone)]
pub struct NewReservation {
    /// [`reservation_id`](crate::domain::reservation::reservation_id).
    pub id: Uuid,
    pub namespace: Uuid,
    pub name: String,
    /// UUIDv7 of the call.
    pub call_id: Uuid,
    /// None for a tombstone: nothing is kept, and nothing will be.
    pub request_hash: Option<[u8; 32]>,
    pub items: Vec<AskedItem>,
    pub ttl_us: i64,
    /// The saga that asks, with the epoch of its lease.
    pub fence: Option<SagaEpoch>,
    pub correlation_id: String,
}

impl NewReservation {
    pub fn key(&self) -> Key<'_> {
        (self.id, RESERVATION)
    }
}

/// Pieces of one product, from one store or from any of several.
#[derive(Debug, Clone)]
pub struct AskedItem {
    pub product_id: Uuid,
    /// What they may come from: the stock of each store.
    pub stocks: Vec<Uuid>,
    pub quantity: i64,
}

/// A reservation that is to be confirmed, released, returned or ended.
#[derive(Debug, Clone)]
pub struct NewResolution {
    pub reservation_id: Uuid,
    /// Of its items, which never change.
    pub stocks: SmallVec<[Uuid; 4]>,
    /// UUIDv7 of the call.
    pub call_id: Uuid,
    pub verb: Verb,
    pub fence: Option<SagaEpoch>,
    pub correlation_id: String,
}

impl NewResolution {
    /// Of a reservation that was read.
    pub fn of(reservation: &Reservation, verb: Verb, correlation_id: String) -> Self {
        let stocks = reservation.items.iter().map(|item| item.stock_id).collect();
        Self { reservation_id: reservation.id, stocks, call_id: clock::new_id(), verb, fence: None, correlation_id }
    }
}

/// A reservation as it stands, and whether an earlier call made it.
#[derive(Debug, Clone)]
pub struct Made {
    pub reservation: Reservation,
    pub replayed: bool,
}

/// Why nothing was done, or why nobody knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// Too many wait already.
    Crowded,
    /// The database is busy or away. It may have been done: the same key tells.
    Unavailable,
    /// The database refuses it.
    Broken,
    /// The key was used for another request.
    KeyReused,
    /// Fewer pieces than what is asked for, of these.
    OutOfStock(Vec<Short>),
    /// More pieces than a store may count.
    Overflow,
    /// The stock has this version.
    VersionConflict { version: i64 },
    /// No more stores of one product are made.
    TooManyStores,
    /// The reservation has ended so, and what is asked for cannot be.
    Ended(State),
    /// An undo has left a tombstone before this was done.
    Cancelled,
    /// Somebody has called with a higher epoch.
    StaleEpoch,
}

impl Refused {
    /// Whether it was refused for what the stock is at this moment.
    pub fn is_of_stock(&self) -> bool {
        matches!(self, Self::OutOfStock(_) | Self::Overflow | Self::VersionConflict { .. } | Self::TooManyStores)
    }
}

/// An item of which there is too little.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Short {
    /// Among those that were asked for, from 0.
    pub index: usize,
    pub product_id: Uuid,
    pub available: i64,
}

/// A caller that waits: the id of its call, the hash of what it asked for, and where it waits.
type OneCaller<T> = (Uuid, Option<[u8; 32]>, oneshot::Sender<Result<T, Refused>>);

/// Something that waits for its batch.
pub enum Work {
    Adjust { new: NewAdjustment, callers: SmallVec<[OneCaller<Adjustment>; 1]> },
    Reserve { new: NewReservation, callers: SmallVec<[OneCaller<Made>; 1]> },
    Resolve { new: NewResolution, reply: oneshot::Sender<Result<Made, Refused>> },
}

/// What has become of it.
pub enum Outcome {
    Adjusted(Adjustment),
    Reserved(Reservation),
    Resolved(Reservation),
    Refused(Refused),
}

impl Outcome {
    /// The key that it has stored.
    pub fn key(&self) -> Option<Key<'_>> {
        match self {
            Self::Adjusted(adjustment) => Some((adjustment.id, ADJUSTMENT)),
            Self::Reserved(reservation) => Some((reservation.id, RESERVATION)),
            Self::Resolved(_) | Self::Refused(_) => None,
        }
    }
}

/// What is stored under a key.
#[derive(Debug, Clone)]
pub enum Stored {
    Adjustment(Adjustment),
    Reservation(Reservation),
}

impl Stored {
    pub fn key(&self) -> Key<'_> {
        match self {
            Self::Adjustment(adjustment) => (adjustment.id, ADJUSTMENT),
            Self::Reservation(reservation) => (reservation.id, RESERVATION),
        }
    }
}

impl Work {
    pub fn adjust(new: NewAdjustment, reply: oneshot::Sender<Result<Adjustment, Refused>>) -> Self {
        let callers = smallvec![(new.call_id, Some(new.request_hash), reply)];
        Self::Adjust { new, callers }
    }

    pub fn reserve(new: NewReservation, reply: oneshot::Sender<Result<Made, Refused>>) -> Self {
        let callers = smallvec![(new.call_id, new.request_hash, reply)];
        Self::Reserve { new, callers }
    }

    /// The stock that it changes, and the reservation: two requests about one reservation never go beside each other.
    pub fn locks(&self) -> Locks {
        match self {
            Self::Adjust { new, .. } => smallvec![new.stock_id],
            Self::Reserve { new, .. } => {
                let of_items = new.items.iter().flat_map(|item| item.stocks.iter().copied());
                std::iter::once(new.id).chain(of_items).chain(new.fence.map(|fence| fence.id)).collect()
            }
            Self::Resolve { new, .. } => {
                std::iter::once(new.reservation_id).chain(new.stocks.iter().copied()).chain(new.fence.map(|fence| fence.id)).collect()
            }
        }
    }

    /// The stock that it changes.
    pub fn stocks(&self) -> Locks {
        match self {
            Self::Adjust { new, .. } => smallvec![new.stock_id],
            Self::Reserve { new, .. } => new.items.iter().flat_map(|item| item.stocks.iter().copied()).collect(),
            Self::Resolve { new, .. } => new.stocks.clone(),
        }
    }

    /// The saga that asks.
    pub fn fence(&self) -> Option<SagaEpoch> {
        match self {
            Self::Adjust { .. } => None,
            Self::Reserve { new, .. } => new.fence,
            Self::Resolve { new, .. } => new.fence,
        }
    }

    fn refuse_as(self, refused: &Refused) {
        match self {
            Self::Adjust { callers, .. } => callers.into_iter().for_each(|(.., reply)| drop(reply.send(Err(refused.clone())))),
            Self::Reserve { callers, .. } => callers.into_iter().for_each(|(.., reply)| drop(reply.send(Err(refused.clone())))),
            Self::Resolve { reply, .. } => drop(reply.send(Err(refused.clone()))),
        }
    }

    /// Tells those who wait what has become of it.
    pub fn answer(self, outcome: Outcome) {
        match (self, outcome) {
            (Self::Adjust { callers, .. }, Outcome::Adjusted(adjustment)) => {
                for (_, hash, reply) in callers {
                    let _ = reply.send(answer_adjustment(adjustment.clone(), &hash.unwrap_or_default()));
                }
            }
            (Self::Reserve { callers, .. }, Outcome::Reserved(reservation)) => {
                for (id, hash, reply) in callers {
                    let _ = reply.send(answer_reservation(reservation.clone(), id, hash.as_ref()));
                }
            }
            (Self::Resolve { reply, .. }, Outcome::Resolved(reservation)) => drop(reply.send(Ok(Made { reservation, replayed: false }))),
            (work, Outcome::Refused(refused)) => work.refuse_as(&refused),
            (work, _) => work.refuse_as(&Refused::Unavailable),
        }
    }

    /// Tells those who wait what is stored under the key.
    pub fn answer_stored(self, stored: Vec<Stored>) {
        match (self, stored.into_iter().next()) {
            (work @ Self::Adjust { .. }, Some(Stored::Adjustment(adjustment))) => work.answer(Outcome::Adjusted(adjustment)),
            (work @ Self::Reserve { .. }, Some(Stored::Reservation(reservation))) => work.answer(Outcome::Reserved(reservation)),
            (work, _) => work.refuse_as(&Refused::Unavailable),
        }
    }
}

/// What a caller is told whose key belongs to an adjustment.
pub fn answer_adjustment(adjustment: Adjustment, hash: &[u8; 32]) -> Result<Adjustment, Refused> {
    if adjustment.request_hash == *hash { Ok(adjustment) } else { Err(Refused::KeyReused) }
}

/// What a caller is told whose key belongs to a reservation. One that leaves a tombstone is told of whatever is there.
pub fn answer_reservation(reservation: Reservation, call_id: Uuid, hash: Option<&[u8; 32]>) -> Result<Made, Refused> {
    let replayed = reservation.call_id != call_id;
    match (hash, reservation.request_hash.as_ref()) {
        (Some(_), None) => Err(Refused::Cancelled),
        (Some(asked), Some(stored)) if asked != stored => Err(Refused::KeyReused),
        _ => Ok(Made { reservation, replayed }),
    }
}

impl group_commit::Work for Work {
    fn id(&self) -> Uuid {
        match self {
            Self::Adjust { new, .. } => new.call_id,
            Self::Reserve { new, .. } => new.call_id,
            Self::Resolve { new, .. } => new.call_id,
        }
    }

    fn key(&self) -> Option<Key<'_>> {
        match self {
            Self::Adjust { new, .. } => Some(new.key()),
            Self::Reserve { new, .. } => Some(new.key()),
            Self::Resolve { .. } => None,
        }
    }

    fn keys(&self) -> Vec<Key<'_>> {
        self.key().into_iter().collect()
    }

    /// What asks for the same. What asks for something else with the same key is judged by itself.
    fn absorb(&mut self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Adjust { new, callers }, Self::Adjust { new: other, callers: more }) if new.request_hash == other.request_hash => {
                callers.extend(more);
                None
            }
            (Self::Reserve { new, callers }, Self::Reserve { new: other, callers: more })
                if new.fence == other.fence && new.request_hash == other.request_hash =>
            {
                callers.extend(more);
                None
            }
            (_, other) => Some(other),
        }
    }

    fn goes_alone(&self) -> bool {
        false
    }

    fn is_abandoned(&self) -> bool {
        match self {
            Self::Adjust { callers, .. } => callers.iter().all(|(.., reply)| reply.is_closed()),
            Self::Reserve { callers, .. } => callers.iter().all(|(.., reply)| reply.is_closed()),
            Self::Resolve { reply, .. } => reply.is_closed(),
        }
    }

    fn refuse(self, refusal: Refusal) {
        self.refuse_as(&refusal.into());
    }
}
