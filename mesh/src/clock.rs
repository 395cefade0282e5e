//! The one place that reads the wall clock. Domain code never does: it gets the time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, in microseconds since the Unix epoch (UTC).
#[allow(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
pub fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX))
}

/// Now, in seconds since the Unix epoch (UTC).
pub fn now_s() -> i64 {
    now_us() / 1_000_000
}
