//! The place where services read the wall clock. Domain code never does: it gets the time as an argument.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::{ContextV7, Timestamp, Uuid};

/// How far the time at which things happen is from the machine's, in microseconds: nothing, but in a demo.
static MOVED_US: AtomicI64 = AtomicI64::new(0);

/// The order of the ids that are made while the clock is moved.
static MOVED_IDS: Mutex<ContextV7> = Mutex::new(ContextV7::new());

#[allow(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
fn machine_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX))
}

/// The time at which things happen: now, in microseconds since the Unix epoch (UTC).
pub fn now_us() -> i64 {
    machine_us() + MOVED_US.load(Ordering::Relaxed)
}

/// The time by which tokens and certificates live: now, in seconds since the Unix epoch (UTC), as the machine has it.
pub fn now_s() -> i64 {
    machine_us() / 1_000_000
}

/// An id for something that happens now: a UUIDv7, which is greater than those that this process made before.
pub fn new_id() -> Uuid {
    if MOVED_US.load(Ordering::Relaxed) == 0 {
        return Uuid::now_v7();
    }
    let now_us = now_us();
    let nanos = u32::try_from(now_us.rem_euclid(1_000_000) * 1_000).unwrap_or_default();
    Uuid::new_v7(Timestamp::from_unix(&MOVED_IDS, now_us.div_euclid(1_000_000).unsigned_abs(), nanos))
}

/// Lets things happen at another time from here on, in this process: in a demo, which writes a month in seconds. Time never goes back: once it was moved, an
/// earlier time than now changes nothing.
pub fn move_to(us: i64) {
    let moved = us - machine_us();
    if MOVED_US.load(Ordering::Relaxed) == 0 || now_us() < us {
        MOVED_US.store(moved, Ordering::Relaxed);
    }
}
