//! An event as it is stored and published, and the hash chain of its stream.
//!
//! `digest = SHA-256(len(type) ‖ type ‖ payload)` and `hash = SHA-256(hash of the event before ‖ id ‖ aggregate ‖ version ‖ time ‖
//! len(correlation) ‖ correlation ‖ causation ‖ digest)`; integers are 8 bytes big-endian, the first event follows 32 zero bytes, no
//! causation is 16 zero bytes. Whoever changes, drops or reorders an event of a stream breaks every later hash.

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// A SHA-256.
pub type Hash = [u8; 32];

/// What the first event of a stream follows.
pub const GENESIS: Hash = [0; 32];

/// An event about to be appended.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// UUIDv7.
    pub id: Uuid,
    /// Its name, `UPPER_SNAKE_CASE`.
    pub kind: &'static str,
    /// Canonical protobuf.
    pub payload: Vec<u8>,
    /// The request that led to it.
    pub correlation_id: String,
    /// The event that led to it.
    pub causation_id: Option<Uuid>,
    /// Unix microseconds.
    pub recorded_us: i64,
}

/// An event in its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// UUIDv7.
    pub id: Uuid,
    /// Whose stream it is in.
    pub aggregate_id: Uuid,
    /// 1 for the first of the stream, then without a gap.
    pub version: i64,
    /// Its name.
    pub kind: String,
    /// Canonical protobuf.
    pub payload: Vec<u8>,
    /// Of type and payload.
    pub digest: Hash,
    /// The request that led to it.
    pub correlation_id: String,
    /// The event that led to it.
    pub causation_id: Option<Uuid>,
    /// Unix microseconds.
    pub recorded_us: i64,
    /// Over the event before and this one.
    pub hash: Hash,
}

impl NewEvent {
    /// Puts the event at a place in its stream.
    pub fn at(self, aggregate_id: Uuid, version: i64, previous: &Hash) -> Event {
        let mut event = Event {
            id: self.id,
            aggregate_id,
            version,
            digest: digest(self.kind, &self.payload),
            kind: self.kind.to_owned(),
            payload: self.payload,
            correlation_id: self.correlation_id,
            causation_id: self.causation_id,
            recorded_us: self.recorded_us,
            hash: GENESIS,
        };
        event.hash = event.hash_after(previous);
        event
    }
}

impl Event {
    /// The hash that this event must have after the one with hash `previous`.
    pub fn hash_after(&self, previous: &Hash) -> Hash {
        let mut hasher = Sha256::new();
        hasher.update(previous);
        hasher.update(self.id.as_bytes());
        hasher.update(self.aggregate_id.as_bytes());
        hasher.update(self.version.to_be_bytes());
        hasher.update(self.recorded_us.to_be_bytes());
        hasher.update((self.correlation_id.len() as u64).to_be_bytes());
        hasher.update(self.correlation_id.as_bytes());
        hasher.update(self.causation_id.unwrap_or(Uuid::nil()).as_bytes());
        hasher.update(self.digest);
        hasher.finalize().into()
    }
}

/// The digest of an event's type and payload.
pub fn digest(kind: &str, payload: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update((kind.len() as u64).to_be_bytes());
    hasher.update(kind.as_bytes());
    hasher.update(payload);
    hasher.finalize().into()
}

/// The first version of a stream, in order, whose version or hash does not follow from the one before; None for a sound chain.
pub fn broken_link(stream: &[Event]) -> Option<i64> {
    let mut previous = GENESIS;
    for (expected, event) in (1..).zip(stream) {
        let sound = event.version == expected && event.digest == digest(&event.kind, &event.payload) && event.hash == event.hash_after(&previous);
        if !sound {
            return Some(expected);
        }
        previous = event.hash;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Vec<Event> {
        let (mut previous, aggregate_id) = (GENESIS, Uuid::from_u128(7));
        (1..=4)
            .map(|version| {
                let new = NewEvent {
                    id: Uuid::from_u128(version as u128),
                    kind: "THING",
                    payload: vec![version as u8],
                    correlation_id: "c".to_owned(),
                    causation_id: None,
                    recorded_us: version,
                };
                let event = new.at(aggregate_id, version, &previous);
                previous = event.hash;
                event
            })
            .collect()
    }

    #[test]
    fn a_sound_chain_has_no_broken_link() {
        assert_eq!(broken_link(&stream()), None);
    }

    #[test]
    fn every_change_of_an_event_breaks_the_chain_there() {
        type Change = fn(&mut Event);
        let changes: [Change; 7] = [
            |event| event.payload.push(0),
            |event| event.kind.push('S'),
            |event| event.id = Uuid::nil(),
            |event| event.recorded_us += 1,
            |event| event.correlation_id.push('d'),
            |event| event.causation_id = Some(Uuid::from_u128(9)),
            |event| event.hash[0] ^= 1,
        ];
        for change in changes {
            let mut stream = stream();
            change(&mut stream[1]);
            assert_eq!(broken_link(&stream), Some(2));
        }
    }

    #[test]
    fn a_lost_or_moved_event_breaks_the_chain() {
        let mut lost = stream();
        lost.remove(1);
        assert_eq!(broken_link(&lost), Some(2));
        let mut moved = stream();
        moved.swap(1, 2);
        assert_eq!(broken_link(&moved), Some(2));
    }
}
