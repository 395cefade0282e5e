//! What is asked of the pipeline, and how it is answered.

use std::sync::Arc;

use lastro_database::group_commit::{self, Key, Refusal};
use lastro_money::Minor;
use smallvec::{SmallVec, smallvec};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::decision;
use super::stripes::Stripes;
use crate::contract::Resolution;
use crate::domain::ledger::Legs;
use crate::domain::operation::{Movement, Operation};
use crate::domain::payment::CardToken;
use crate::domain::rejection::Rejection;
use crate::store::sagas::SagaEpoch;

/// An operation about to be stored.
#[derive(Debug, Clone)]
pub struct NewOperation {
    /// PENDING, and without an event.
    pub operation: Operation,
    /// The payload of its event SUBMITTED.
    pub submitted: Vec<u8>,
    /// The request that led to it.
    pub correlation_id: String,
    pub purpose: Purpose,
    /// The saga that asks for it: refused where somebody has called with a higher epoch.
    pub saga: Option<SagaEpoch>,
}

/// What an operation is stored for, beyond what it moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// Nothing else.
    Plain,
    /// The payment provider of this name is to charge a card.
    Charge { card_token: CardToken, provider: Arc<str> },
    /// It gives a payment back: so much, or all that is left. What each leg gives is decided in its batch; until then it names all that may.
    /// The provider is named where one was paid through.
    Refund { amount: Option<Minor>, provider: Option<Arc<str>> },
}

impl NewOperation {
    /// Its owner, and the owner's key.
    pub fn key(&self) -> (Uuid, &str) {
        (self.operation.owner_id, &self.operation.external_id)
    }
}

/// A hold that is to be captured or voided.
#[derive(Debug, Clone)]
pub struct NewResolution {
    /// UUIDv7 of the call, which tells when it came.
    pub id: Uuid,
    pub hold_id: Uuid,
    /// What the hold moves, which never changes.
    pub movement: Movement,
    pub verb: Verb,
    pub caller_id: Uuid,
    pub external_id: String,
    pub request_hash: [u8; 32],
    pub correlation_id: String,
}

impl NewResolution {
    /// What the event says of it.
    pub fn resolution(&self) -> Resolution {
        Resolution { caller_id: self.caller_id, external_id: self.external_id.clone(), request_hash: self.request_hash }
    }
}

/// What is to become of a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// It is captured; of a single leg so much, where that is given.
    Capture(Option<Minor>),
    Void,
}

/// An operation that is durably stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    /// As it stands.
    pub operation: Operation,
    /// An earlier call created it.
    pub replayed: bool,
}

/// Why something was not done, or why nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The key was used for another request.
    KeyReused,
    /// Too many wait already. It was not stored.
    Crowded,
    /// The database is busy or away. It may have been stored: the same key tells.
    Unavailable,
    /// The database refuses the operation itself.
    Broken,
    /// Less than that is left of the payment.
    RefundTooMuch { left: Minor },
    /// Another reversal of the original was accepted, maybe with the same key.
    AlreadyReversed,
    /// The hold is not AUTHORIZED any more, maybe by the same key.
    ResolvedMeanwhile,
    /// The hold has run out.
    HoldExpired,
    /// The hold cannot be captured for this reason, and stays.
    NotCaptured(Rejection),
    /// Somebody has called with a higher epoch of the saga.
    StaleEpoch,
    /// The saga has cancelled its payment.
    SagaCancelled,
    /// An operation of those that go together, counted from 0, and with it all of them.
    Together { index: usize, culprit: Culprit },
}

/// What is wrong with one operation of those that go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Culprit {
    /// It would be REJECTED, because of this leg where it has several.
    Rejected { reason: Rejection, leg: Option<usize> },
    /// Its key was used for another request.
    KeyReused,
    /// Its key was used before, and not those of all others.
    KeyExists,
}

/// The end at which a caller waits for one operation.
pub type Reply = oneshot::Sender<Result<Accepted, Refused>>;

/// The id that a call generated, the hash of what it asked for, and where it waits.
pub type OneCaller = (Uuid, [u8; 32], Reply);

/// What is to be done. The reply is closed when the caller has given up.
#[allow(clippy::large_enum_variant, reason = "almost always the largest; a box for each would cost more than the room")]
pub enum Work {
    /// One operation is stored, and settled if its accounts are free. The callers that sent its key; the first one's request is what is stored.
    Create { new: NewOperation, callers: SmallVec<[OneCaller; 1]> },
    /// Operations are stored and settled together, or not at all.
    Together { new: Vec<NewOperation>, reply: oneshot::Sender<Result<Vec<Accepted>, Refused>> },
    /// A hold is captured or voided.
    Resolve { new: NewResolution, reply: Reply },
}

impl Work {
    /// One operation, for one caller.
    pub fn create(new: NewOperation, reply: Reply) -> Self {
        let callers = smallvec![(new.operation.id, new.operation.request_hash, reply)];
        Self::Create { new, callers }
    }

    /// The operations, stored before, that it is about.
    pub fn subjects(&self) -> SmallVec<[Uuid; 1]> {
        match self {
            Self::Create { new, .. } => new.operation.original_id.into_iter().collect(),
            Self::Together { new, .. } => new.iter().filter_map(|new| new.operation.original_id).collect(),
            Self::Resolve { new, .. } => smallvec![new.hold_id],
        }
    }

    /// The sagas that ask for it.
    pub fn sagas(&self) -> SmallVec<[SagaEpoch; 1]> {
        match self {
            Self::Create { new, .. } => new.saga.into_iter().collect(),
            Self::Together { new, .. } => new.iter().filter_map(|new| new.saga).collect(),
            Self::Resolve { .. } => SmallVec::new(),
        }
    }

    /// Everything that it moves, and between which accounts.
    pub fn legs(&self, stripes: &Stripes) -> Legs {
        match self {
            Self::Create { new, .. } => decision::legs(&new.operation.movement, new.operation.id, stripes),
            Self::Together { new, .. } => new.iter().flat_map(|new| decision::legs(&new.operation.movement, new.operation.id, stripes)).collect(),
            Self::Resolve { new, .. } => decision::legs(&new.movement, new.hold_id, stripes),
        }
    }

    /// Tells every caller that its request was not done.
    pub fn refuse_as(self, refused: Refused) {
        match self {
            Self::Create { new, callers } => callers.into_iter().for_each(|(_, hash, reply)| {
                // Whoever asked for something else with the same key was not judged.
                let of_its_own = if hash == new.operation.request_hash { refused } else { Refused::Unavailable };
                let _ = reply.send(Err(of_its_own));
            }),
            Self::Together { reply, .. } => drop(reply.send(Err(refused))),
            Self::Resolve { reply, .. } => drop(reply.send(Err(refused))),
        }
    }
}

impl group_commit::Work for Work {
    fn id(&self) -> Uuid {
        match self {
            Self::Create { new, .. } => new.operation.id,
            Self::Together { new, .. } => new.first().map_or(Uuid::nil(), |first| first.operation.id),
            Self::Resolve { new, .. } => new.id,
        }
    }

    fn key(&self) -> Option<Key<'_>> {
        match self {
            Self::Create { new, .. } => Some(new.key()),
            Self::Together { .. } | Self::Resolve { .. } => None,
        }
    }

    fn keys(&self) -> Vec<Key<'_>> {
        match self {
            Self::Create { new, .. } => vec![new.key()],
            Self::Together { new, .. } => new.iter().map(NewOperation::key).collect(),
            Self::Resolve { .. } => Vec::new(),
        }
    }

    fn absorb(&mut self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Create { callers, .. }, Self::Create { callers: more, .. }) => {
                callers.extend(more);
                None
            }
            (_, other) => Some(other),
        }
    }

    /// That operations which go together are refused must not undo what others asked for.
    fn goes_alone(&self) -> bool {
        matches!(self, Self::Together { .. })
    }

    fn is_abandoned(&self) -> bool {
        match self {
            Self::Create { callers, .. } => callers.iter().all(|(.., reply)| reply.is_closed()),
            Self::Together { reply, .. } => reply.is_closed(),
            Self::Resolve { reply, .. } => reply.is_closed(),
        }
    }

    fn refuse(self, refusal: Refusal) {
        self.refuse_as(refusal.into());
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Crowded => Self::Crowded,
            Refusal::Unavailable => Self::Unavailable,
            Refusal::Broken => Self::Broken,
        }
    }
}

/// Tells every caller of one key what is stored.
pub(super) fn accept(mut callers: SmallVec<[OneCaller; 1]>, operation: Operation) {
    let last = callers.pop();
    for (id, hash, reply) in callers {
        let _ = reply.send(answer_of(operation.clone(), id, &hash));
    }
    if let Some((id, hash, reply)) = last {
        let _ = reply.send(answer_of(operation, id, &hash));
    }
}

/// What a caller is answered whose key belongs to a stored operation: `id` is the one that its call generated, `hash` of what it asked for.
pub(super) fn answer_of(stored: Operation, id: Uuid, hash: &[u8; 32]) -> Result<Accepted, Refused> {
    if *hash != stored.request_hash {
        return Err(Refused::KeyReused);
    }
    // Replayed means that the stored id is not the one that this call generated.
    Ok(Accepted { replayed: id != stored.id, operation: stored })
}

/// What the caller of operations that go together is answered where some of their keys exist: the stored ones if all do, with what was asked for.
pub fn answer_of_all(new: &[NewOperation], existing: Vec<Operation>) -> Result<Vec<Accepted>, Refused> {
    let of_key = |one: &NewOperation| existing.iter().find(|stored| stored.external_id == one.operation.external_id);
    let refused = |(index, one): (usize, &NewOperation)| {
        let stored = of_key(one)?;
        let culprit = if stored.request_hash == one.operation.request_hash { Culprit::KeyExists } else { Culprit::KeyReused };
        Some(Refused::Together { index, culprit })
    };
    let answer = |one: &NewOperation| {
        let accepted = of_key(one).map(|stored| answer_of(stored.clone(), one.operation.id, &one.operation.request_hash));
        accepted.and_then(Result::ok)
    };
    match new.iter().map(answer).collect::<Option<Vec<_>>>() {
        Some(all) => Ok(all),
        // One that was used for something else says more than one that is merely there.
        None => {
            let mut culprits: Vec<Refused> = new.iter().enumerate().filter_map(refused).collect();
            culprits.sort_by_key(|refused| matches!(refused, Refused::Together { culprit: Culprit::KeyExists, .. }));
            Err(culprits.first().copied().unwrap_or(Refused::Unavailable))
        }
    }
}
