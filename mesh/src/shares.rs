//! So many of something, of which each client's address has at most a share: one client does not take what is there for all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::serve::limited_address;

/// So many of something, of which each address has at most a share.
#[derive(Debug)]
pub struct Shares {
    per_address: usize,
    in_all: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    by_address: HashMap<IpAddr, usize>,
    in_all: usize,
}

/// Some of them, until it is dropped.
#[derive(Debug)]
pub struct Place {
    address: Option<IpAddr>,
    count: usize,
    shares: Arc<Shares>,
}

impl Shares {
    /// So many in all.
    pub fn new(per_address: usize, in_all: usize) -> Arc<Self> {
        Arc::new(Self { per_address, in_all, taken: Mutex::default() })
    }

    /// So many, if they are there. Of an unknown address only the limit in all counts.
    pub fn take(self: &Arc<Self>, address: Option<IpAddr>, count: usize) -> Option<Place> {
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
        Some(Place { address, count, shares: self.clone() })
    }

    /// Whether nothing is taken, and nothing is remembered of who had some.
    #[cfg(test)]
    pub fn is_unused(&self) -> bool {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.in_all == 0 && taken.by_address.is_empty()
    }
}

impl Place {
    /// How many they are.
    pub fn count(&self) -> usize {
        self.count
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.shares.taken.lock().unwrap_or_else(PoisonError::into_inner);
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
