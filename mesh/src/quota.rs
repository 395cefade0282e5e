//! A quota: a bounded number of permits, of which one key, such as a client address or a user, gets at most a part, so that one client cannot use up
//! what all share.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// A bounded number of permits, in all and for each key.
#[derive(Debug)]
pub struct Quota<K: Hash + Eq> {
    per_key: usize,
    in_all: usize,
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    by_key: HashMap<K, usize>,
    in_all: usize,
}

/// Permits that were taken; dropping it gives them back.
#[derive(Debug)]
pub struct Permit<K: Hash + Eq> {
    key: Option<K>,
    count: usize,
    quota: Arc<Quota<K>>,
}

impl<K: Hash + Eq + Clone> Quota<K> {
    /// A quota of `in_all` permits, at most `per_key` of them for one key.
    pub fn new(per_key: usize, in_all: usize) -> Arc<Self> {
        Arc::new(Self { per_key, in_all, taken: Mutex::new(Taken { by_key: HashMap::new(), in_all: 0 }) })
    }

    /// Takes `count` permits, or none if they would exceed the quota. Without a key only the limit in all counts.
    pub fn take(self: &Arc<Self>, key: Option<K>, count: usize) -> Option<Permit<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_it = key.as_ref().and_then(|key| taken.by_key.get(key).copied()).unwrap_or_default();
        if taken.in_all + count > self.in_all || key.is_some() && of_it + count > self.per_key {
            return None;
        }
        taken.in_all += count;
        if let Some(key) = key.clone() {
            taken.by_key.insert(key, of_it + count);
        }
        Some(Permit { key, count, quota: self.clone() })
    }

    /// Whether no permit is taken and no key is remembered.
    #[cfg(test)]
    pub fn is_unused(&self) -> bool {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.in_all == 0 && taken.by_key.is_empty()
    }
}

impl<K: Hash + Eq> Permit<K> {
    /// How many they are.
    pub fn count(&self) -> usize {
        self.count
    }
}

impl<K: Hash + Eq> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut taken = self.quota.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.in_all -= self.count;
        let Some(key) = &self.key else { return };
        if let Some(count) = taken.by_key.get_mut(key) {
            *count -= self.count;
            if *count == 0 {
                taken.by_key.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_gets_a_part_and_all_together_get_no_more_than_there_is() {
        let quota = Quota::new(2, 3);
        let (first, _second) = (quota.take(Some("a"), 1).expect("the first"), quota.take(Some("a"), 1).expect("the second"));
        assert!(quota.take(Some("a"), 1).is_none(), "the part of one key");
        let third = quota.take(Some("b"), 1).expect("of another key");
        assert!(quota.take(Some("c"), 1).is_none() && quota.take(None, 1).is_none(), "all are taken");
        drop(first);
        drop(third);
        assert!(quota.take(Some("a"), 1).is_some() && quota.take(None, 2).is_some());
    }
}
