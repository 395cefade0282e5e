//! A PostgreSQL that takes no writes: a standby behind the address, or one that an operator made read-only. Its connections are not used again,
//! since what a session was told when it began stays true for it: after a failover some would otherwise refuse writes for as long as they live.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::Error;

/// <https://www.postgresql.org/docs/15/errcodes-appendix.html>
pub const SQLSTATE: &str = "25006";

/// Whether a session takes writes.
pub const TAKES_WRITES: &str = "SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off' AS writes";

/// Instants are counted from here.
static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
/// When this process saw a read-only session last, in milliseconds after [`BEGIN`], rounded up; 0 for never.
static SEEN_MS: AtomicU64 = AtomicU64::new(0);

/// A read-only session was met: no connection that is open now, of whichever database, is used again.
pub fn note() {
    let now_ms = BEGIN.elapsed().as_millis() as u64 + 1;
    SEEN_MS.fetch_max(now_ms, Ordering::Relaxed);
}

/// As [`note`], with the error to answer.
pub fn seen() -> Error {
    note();
    Error::read_only("the session takes no writes")
}

/// Whether a connection of this age was opened after the last read-only session was met.
pub fn may_be_used(age: Duration) -> bool {
    let seen_ms = SEEN_MS.load(Ordering::Relaxed);
    seen_ms == 0 || BEGIN.elapsed().saturating_sub(age).as_millis() as u64 > seen_ms
}
