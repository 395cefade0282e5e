//! Rate limits per address and per user. The services have none: they shed load by concurrency.

use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use lastro_mesh::serve::limited_address;
use uuid::Uuid;

/// Requests per second that one caller may send; as many at once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From one address.
    pub per_address: NonZeroU32,
    /// By one user.
    pub per_user: NonZeroU32,
}

/// Counts requests.
pub struct Limiter {
    by_address: DefaultKeyedRateLimiter<IpAddr>,
    by_user: DefaultKeyedRateLimiter<Uuid>,
}

impl Limiter {
    /// Nothing counted yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            by_address: RateLimiter::keyed(Quota::per_second(limits.per_address)),
            by_user: RateLimiter::keyed(Quota::per_second(limits.per_user)),
        }
    }

    /// How long an address has to wait, if it has to.
    pub fn address(&self, address: IpAddr) -> Option<Duration> {
        check(&self.by_address, &limited_address(address))
    }

    /// How long a user has to wait, if it has to.
    pub fn user(&self, user_id: Uuid) -> Option<Duration> {
        check(&self.by_user, &user_id)
    }

    /// Forgets callers that have been quiet for long enough to start afresh.
    pub fn forget_quiet(&self) {
        self.by_address.retain_recent();
        self.by_user.retain_recent();
    }
}

fn check<K: Hash + Eq + Clone>(limiter: &DefaultKeyedRateLimiter<K>, key: &K) -> Option<Duration> {
    limiter.check_key(key).err().map(|until| until.wait_time_from(DefaultClock::default().now()))
}
