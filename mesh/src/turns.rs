//! So many of something at once for each of many, and a turn for whoever comes then.

use std::hash::Hash;
use std::sync::Arc;

use moka::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// As many as are remembered; those that come then begin anew.
const KEYS_MAX: u64 = 100_000;

/// The turns of each key. Whoever asks for more than its share waits for its own, and not the others.
pub struct Turns<K> {
    at_once: usize,
    by_key: Cache<K, Arc<Semaphore>>,
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Turns<K> {
    /// So many at once for each key.
    pub fn new(at_once: usize) -> Self {
        Self { at_once, by_key: Cache::new(KEYS_MAX) }
    }

    /// A turn, held until it is dropped; None when there was none by then.
    pub async fn take(&self, key: K, by: Instant) -> Option<OwnedSemaphorePermit> {
        self.take_many(key, 1, by).await
    }

    /// As [`take`](Self::take), several turns at once: at most as many as each key has.
    pub async fn take_many(&self, key: K, turns: u32, by: Instant) -> Option<OwnedSemaphorePermit> {
        let of_key = self.by_key.get_with(key, || Arc::new(Semaphore::new(self.at_once)));
        timeout_at(by, of_key.acquire_many_owned(turns)).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_has_many_waits_for_itself() {
        let turns = Turns::new(2);
        let by = Instant::now() + Duration::from_secs(1);
        let (first, _second) = (turns.take(1, by).await.expect("a turn"), turns.take(1, by).await.expect("a turn"));
        assert!(turns.take(2, by).await.is_some());
        assert!(turns.take(1, by).await.is_none());
        drop(first);
        assert!(turns.take(1, by).await.is_some());
        assert!(turns.take_many(3, 2, by).await.is_some() && turns.take_many(3, 3, by).await.is_none());
    }
}
