//! What is asked of orders, and how it is answered.

use std::sync::Arc;

use lastro_database::group_commit::{self, Key, Refusal};
use smallvec::{SmallVec, smallvec};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::domain::order::{Conflict, Placed, Status};
use crate::domain::saga::{Direction, Next, Outcome as StepOutcome, Step};
use crate::store::order_events::Reserved;
use crate::store::orders::Order;

/// An order that is to be placed.
#[derive(Debug, Clone)]
pub struct NewOrder {
    pub placed: Placed,
    /// For how long its saga may take; its deadline is set when it is stored, by the clock of the database.
    pub timeout_us: i64,
}

/// An order that is to be changed.
#[derive(Debug, Clone)]
pub struct NewChange {
    pub placed: Arc<Placed>,
    /// UUIDv7 of the call, which tells when it came.
    pub id: Uuid,
    pub asked: Asked,
    /// How much of a pause is left to chance, 0 to 1000.
    pub jitter_permille: i64,
    /// The request that led to it.
    pub correlation_id: String,
}

/// What is to become of an order.
#[derive(Debug, Clone)]
pub enum Asked {
    /// A call that its saga made has ended so. Only whoever has the lease says so.
    Report { epoch: i64, report: CallReport },
    /// The time of its saga is over. As `Report`.
    TimeOut { epoch: i64 },
    /// It is cancelled.
    Cancel,
    /// Its saga goes on: an administrator has the next attempt made at once.
    Retry,
    /// An administrator gives it up.
    GiveUp,
    /// An administrator says how far the pieces are on their way.
    SetStatus(Status),
}

/// How a call of a saga has ended, and what was learnt by it.
#[derive(Debug, Clone)]
pub struct CallReport {
    pub step: Step,
    pub direction: Direction,
    pub outcome: StepOutcome,
    /// Of `reserve`.
    pub reserved: Vec<Reserved>,
    /// Of `pay` and `refund`.
    pub payment_id: Option<Uuid>,
}

/// An order that is durably stored.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// As it stands.
    pub order: Order,
    /// An earlier call did it.
    pub replayed: bool,
    /// What is next for whoever has its saga, by the clock of the database; None where that is not the caller.
    pub next: Option<Next>,
}

/// Why nothing was done, or why nobody knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// Too many wait already.
    Crowded,
    /// The database is busy or away. It may have been done.
    Unavailable,
    /// The database refuses it.
    Broken,
    /// The key was used for another request.
    KeyReused,
    /// Somebody else has the saga.
    LeaseLost,
    /// It does not follow from where the order stands.
    Conflict(Conflict),
    /// Nothing of the saga is left to be done, or to be undone.
    SagaFinished,
}

/// A caller that waits: the id of the order that it made, the hash of what it asked for, and where it waits.
type OneCaller = (Uuid, [u8; 32], oneshot::Sender<Result<Accepted, Refused>>);

/// Something that waits for its batch.
pub enum Work {
    Place { new: NewOrder, callers: SmallVec<[OneCaller; 1]> },
    Change { new: NewChange, reply: oneshot::Sender<Result<Accepted, Refused>> },
}

/// What has become of it.
#[allow(clippy::large_enum_variant, reason = "almost always the largest; a box for each would cost more than the room")]
pub enum Outcome {
    Placed(Order),
    Changed(Accepted),
    Refused(Refused),
}

impl Work {
    pub fn place(new: NewOrder, reply: oneshot::Sender<Result<Accepted, Refused>>) -> Self {
        let callers = smallvec![(new.placed.id, new.placed.request_hash, reply)];
        Self::Place { new, callers }
    }

    pub fn order_id(&self) -> Uuid {
        match self {
            Self::Place { new, .. } => new.placed.id,
            Self::Change { new, .. } => new.placed.id,
        }
    }

    fn refuse_as(self, refused: &Refused) {
        match self {
            Self::Place { callers, .. } => callers.into_iter().for_each(|(.., reply)| drop(reply.send(Err(refused.clone())))),
            Self::Change { reply, .. } => drop(reply.send(Err(refused.clone()))),
        }
    }

    /// Tells those who wait what has become of it.
    pub fn answer(self, outcome: Outcome) {
        match (self, outcome) {
            (Self::Place { callers, .. }, Outcome::Placed(order)) => {
                for (id, hash, reply) in callers {
                    let _ = reply.send(answer_of(order.clone(), id, &hash));
                }
            }
            (Self::Change { reply, .. }, Outcome::Changed(accepted)) => drop(reply.send(Ok(accepted))),
            (work, Outcome::Refused(refused)) => work.refuse_as(&refused),
            (work, _) => work.refuse_as(&Refused::Unavailable),
        }
    }

    /// Tells those who wait what is stored under the key.
    pub fn answer_stored(self, stored: Vec<Order>) {
        match (self, stored.into_iter().next()) {
            (work @ Self::Place { .. }, Some(order)) => work.answer(Outcome::Placed(order)),
            (work, _) => work.refuse_as(&Refused::Unavailable),
        }
    }
}

/// What a caller is told whose key belongs to an order. It is replayed where the stored id is not the one that the call made; only the call that made it has
/// its saga.
pub fn answer_of(order: Order, id: Uuid, hash: &[u8; 32]) -> Result<Accepted, Refused> {
    let replayed = order.placed.id != id;
    let next = (!replayed).then_some(Next::Call(Step::Reserve, Direction::Do));
    if *hash == order.placed.request_hash { Ok(Accepted { order, replayed, next }) } else { Err(Refused::KeyReused) }
}

impl group_commit::Work for Work {
    fn id(&self) -> Uuid {
        match self {
            Self::Place { new, .. } => new.placed.id,
            Self::Change { new, .. } => new.id,
        }
    }

    fn key(&self) -> Option<Key<'_>> {
        match self {
            Self::Place { new, .. } => Some((new.placed.owner_id, &new.placed.external_id)),
            Self::Change { .. } => None,
        }
    }

    fn keys(&self) -> Vec<Key<'_>> {
        self.key().into_iter().collect()
    }

    fn absorb(&mut self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Place { new, callers }, Self::Place { new: other, callers: more }) if new.placed.request_hash == other.placed.request_hash => {
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
            Self::Place { callers, .. } => callers.iter().all(|(.., reply)| reply.is_closed()),
            Self::Change { reply, .. } => reply.is_closed(),
        }
    }

    fn refuse(self, refusal: Refusal) {
        self.refuse_as(&refusal.into());
    }
}
