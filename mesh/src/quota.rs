//! A quota: a bounded number of permits, of which one client address gets at most a part, so that one client cannot use up what all share.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::serve::limited_address;

/// A bounded number of permits, in all and for each client address.
#[derive(Debug)]
pub struct Quota {
    per_address: usize,
    in_all: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    by_address: HashMap<IpAddr, usize>,
    in_all: usize,
}

/// Permits that were taken; dropping it gives them back.
#[derive(Debug)]
pub struct Permit {
    address: Option<IpAddr>,
    count: usize,
    quota: Arc<Quota>,
}

impl Quota {
    /// A quota of `in_all` permits, at most `per_address` of them for one address.
    pub fn new(per_address: usize, in_all: usize) -> Arc<Self> {
        Arc::new(Self { per_address, in_all, taken: Mutex::default() })
    }

    /// Takes `count` permits, or none if they would exceed the quota. For an unknown address only the limit in all counts.
    pub fn take(self: &Arc<Self>, address: Option<IpAddr>, count: usize) -> Option<Permit> {
        let address = address.map(limited_address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let from_it = address.and_then(|address| taken.by_address.get(&address).copied()).unwrap_or_default();
        if taken.in_all + count > self.in_all || address.is_some() && from_it + count > self.per_address {
            return None;
        }
        taken.in_all += count;
        if let Some(address) = address {
            taken.by_address.insert(address, from_it + count);
        }
        Some(Permit { address, count, quota: self.clone() })
    }

    /// Whether no permit is taken and no address is remembered.
    #[cfg(test)]
    pub fn is_unused(&self) -> bool {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.in_all == 0 && taken.by_address.is_empty()
    }
}

impl Permit {
    /// How many they are.
    pub fn count(&self) -> usize {
        self.count
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.quota.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.in_all -= self.count;
        let Some(address) = self.address else { return };
        if let Some(count) = taken.by_address.get_mut(&address) {
            *count -= self.count;
            if *count == 0 {
                taken.by_address.remove(&address);
            }
        }
    }
}
