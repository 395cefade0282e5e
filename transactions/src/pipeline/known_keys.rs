//! Idempotency keys that are known to exist, so that a repetition is looked up before it gets into a batch: in a batch it would cost everybody who
//! goes along a second turn. Only a hint: what is not known here is found out by the batch, and what is here is looked up in the database.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use uuid::Uuid;

/// Keys that are remembered: eight bytes each, and as much again for the cache.
const KEYS_MAX: usize = 200_000;
const OWNERS_MAX: usize = 10_000;
/// A caller that repeats so many unknown keys within [`REPEATER_WINDOW`] has each of its keys looked up first, for another window.
const REPEATED_MAX: u32 = 8;
const REPEATER_WINDOW: Duration = Duration::from_secs(1);
/// Look-ups at once: repetitions wait for each other, and leave the database to those who move money.
const LOOKUPS_MAX: usize = 2;

pub struct KnownKeys {
    keys: Cache<u64, ()>,
    hasher: RandomState,
    /// When a caller's window began, and how many repetitions got into a batch in it.
    repeaters: Cache<Uuid, (Instant, u32)>,
    pub lookups: Semaphore,
}

impl KnownKeys {
    pub fn new() -> Self {
        Self { keys: Cache::new(KEYS_MAX), hasher: RandomState::new(), repeaters: Cache::new(OWNERS_MAX), lookups: Semaphore::new(LOOKUPS_MAX) }
    }

    /// Whether a key should be looked up before it gets into a batch.
    pub fn may_exist(&self, owner_id: Uuid, external_id: &str) -> bool {
        let repeats = self.repeaters.get(&owner_id).is_some_and(|(since, count)| count >= REPEATED_MAX && since.elapsed() < 2 * REPEATER_WINDOW);
        repeats || self.keys.get(&self.hash(owner_id, external_id)).is_some()
    }

    /// A key exists now.
    pub fn note(&self, owner_id: Uuid, external_id: &str) {
        self.keys.insert(self.hash(owner_id, external_id), ());
    }

    /// A repetition of a key that was not known got into a batch.
    pub fn note_repetition(&self, owner_id: Uuid, external_id: &str) {
        self.note(owner_id, external_id);
        let (since, count) = self.repeaters.get(&owner_id).filter(|(since, _)| since.elapsed() < REPEATER_WINDOW).unwrap_or((Instant::now(), 0));
        self.repeaters.insert(owner_id, (since, count + 1));
    }

    fn hash(&self, owner_id: Uuid, external_id: &str) -> u64 {
        self.hasher.hash_one((owner_id, external_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_known_is_looked_up_first_and_so_is_who_keeps_repeating() {
        let (known, ana, rui) = (KnownKeys::new(), Uuid::from_u128(1), Uuid::from_u128(2));
        known.note(ana, "k");
        assert!(known.may_exist(ana, "k") && !known.may_exist(ana, "l") && !known.may_exist(rui, "k"));
        for number in 0..REPEATED_MAX {
            assert!(!known.may_exist(rui, "new"), "{number}");
            known.note_repetition(rui, &number.to_string());
        }
        assert!(known.may_exist(rui, "new") && !known.may_exist(ana, "new"));
        tokio::time::advance(2 * REPEATER_WINDOW).await;
        assert!(!known.may_exist(rui, "new") && known.may_exist(rui, "0"));
    }
}
