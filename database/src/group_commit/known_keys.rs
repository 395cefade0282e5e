//! Idempotency keys that are known to exist, so that a repetition is looked up before it gets into a batch: in a batch it would cost everybody who
//! goes along a second turn. Only a hint: what is not known here is found out by the batch, and what is here is looked up in the database.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::{Committer, Inner, Key};

/// Keys that are remembered: eight bytes each, and as much again for the cache.
const KEYS_MAX: usize = 200_000;
const OWNERS_MAX: usize = 10_000;
/// A caller that repeats so many unknown keys within [`REPEATER_WINDOW`] has each of its keys looked up first, for another window.
const REPEATED_MAX: u32 = 8;
const REPEATER_WINDOW: Duration = Duration::from_secs(1);
/// Keys that are looked up together.
const LOOKUP_MAX: usize = 256;
/// Look-ups do not wait longer than this for a batch to end.
const PACE_MAX: Duration = Duration::from_millis(20);

/// A key to be looked up, and who wants to know.
pub(super) struct Lookup<S> {
    pub owner_id: Uuid,
    pub key: String,
    pub reply: oneshot::Sender<Option<S>>,
}

/// Looks keys up until nobody can ask any more.
pub(super) async fn run_lookups<C: Committer>(inner: &Inner<C>, asked: &mut mpsc::Receiver<Lookup<C::Stored>>) {
    let mut lookups = Vec::new();
    while asked.recv_many(&mut lookups, LOOKUP_MAX).await > 0 {
        if inner.is_committing() {
            let _ = timeout(PACE_MAX, inner.batch_ended.notified()).await;
            while lookups.len() < LOOKUP_MAX
                && let Ok(another) = asked.try_recv()
            {
                lookups.push(another);
            }
        }
        lookups.retain(|lookup| !lookup.reply.is_closed());
        let keys: Vec<Key<'_>> = lookups.iter().map(|lookup| (lookup.owner_id, lookup.key.as_str())).collect();
        // Where the database does not answer, the batch asks it, and says what becomes of that.
        let found = inner.committer.stored(&keys, false).await.unwrap_or_default();
        for lookup in lookups.drain(..) {
            let of_key = |one: &&C::Stored| C::key_of(one) == (lookup.owner_id, lookup.key.as_str());
            let _ = lookup.reply.send(found.iter().find(of_key).cloned());
        }
    }
}

/// The keys that are known to exist.
pub(super) struct KnownKeys {
    keys: Cache<u64, ()>,
    hasher: RandomState,
    /// When a caller's window began, and how many repetitions got into a batch in it.
    repeaters: Cache<Uuid, (Instant, u32)>,
}

impl KnownKeys {
    pub fn new() -> Self {
        Self { keys: Cache::new(KEYS_MAX), hasher: RandomState::new(), repeaters: Cache::new(OWNERS_MAX) }
    }

    /// Whether a key should be looked up before it gets into a batch.
    pub fn may_exist(&self, owner_id: Uuid, key: &str) -> bool {
        let repeats = self.repeaters.get(&owner_id).is_some_and(|(since, count)| count >= REPEATED_MAX && since.elapsed() < 2 * REPEATER_WINDOW);
        repeats || self.keys.get(&self.hash(owner_id, key)).is_some()
    }

    /// A key exists now.
    pub fn note(&self, owner_id: Uuid, key: &str) {
        self.keys.insert(self.hash(owner_id, key), ());
    }

    /// A repetition of a key that was not known got into a batch.
    pub fn note_repetition(&self, owner_id: Uuid, key: &str) {
        self.note(owner_id, key);
        let (since, count) = self.repeaters.get(&owner_id).filter(|(since, _)| since.elapsed() < REPEATER_WINDOW).unwrap_or((Instant::now(), 0));
        self.repeaters.insert(owner_id, (since, count + 1));
    }

    fn hash(&self, owner_id: Uuid, key: &str) -> u64 {
        self.hasher.hash_one((owner_id, key))
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
