//! How many registrations an address may make. Each takes a core for a while, and whoever makes them needs no account.

use std::net::IpAddr;
use std::num::NonZeroU32;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use lastro_mesh::call::Call;
use lastro_mesh::serve::limited_address;
use lastro_mesh::status::{Problem, RATE_LIMITED};

/// Counts registrations by address, in this process.
pub struct Registrations(DefaultKeyedRateLimiter<IpAddr>);

impl Registrations {
    pub fn new(per_minute: NonZeroU32, burst: NonZeroU32) -> Self {
        Self(RateLimiter::keyed(Quota::per_minute(per_minute).allow_burst(burst)))
    }

    /// Counts one, or says when to try again.
    pub fn take(&self, call: &Call) -> Result<(), Problem> {
        let Some(address) = call.address else { return Ok(()) };
        self.0.check_key(&limited_address(address)).map_err(|until| {
            let wait = until.wait_time_from(DefaultClock::default().now());
            Problem::new(&RATE_LIMITED, "too many registrations from this address").retry_after(wait)
        })
    }

    /// Forgets addresses that have been quiet for long enough to start afresh.
    pub fn forget_quiet(&self) {
        self.0.retain_recent();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_burst_and_then_waits_and_others_do_not() {
        let [per_minute, burst] = [1, 3].map(|number| NonZeroU32::new(number).expect("not zero"));
        let registrations = Registrations::new(per_minute, burst);
        let from = |address: &str| {
            let mut call = Call::start(std::time::Duration::from_secs(1));
            call.address = Some(address.parse().expect("an address"));
            registrations.take(&call).is_ok()
        };
        assert_eq!([(); 4].map(|()| from("2001:db8::1")), [true, true, true, false]);
        assert!(!from("2001:db8::2"), "one /64 is one");
        assert!(from("10.0.0.1"));
    }
}
