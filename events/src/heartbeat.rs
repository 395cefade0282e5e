//! Whether work that has nothing to do is alive, or stuck: who works says from time to time that it has done something, or has found nothing to do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

/// When it was last told that something is alive. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Heartbeat(Arc<AtomicU64>);

/// From when on instants are counted, in this process.
fn begin() -> Instant {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    *BEGIN.get_or_init(Instant::now)
}

fn now_ms() -> u64 {
    u64::try_from(begin().elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Heartbeat {
    /// It is alive now.
    pub fn beat(&self) {
        self.0.store(now_ms(), Ordering::Relaxed);
    }

    /// How long ago it was alive; from its making on, where it never was since.
    pub fn age(&self) -> Duration {
        Duration::from_millis(now_ms().saturating_sub(self.0.load(Ordering::Relaxed)))
    }
}

impl Default for Heartbeat {
    /// Alive as it is made.
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(now_ms())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_ages_until_it_beats() {
        let (heartbeat, other) = (Heartbeat::default(), Heartbeat::default());
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(heartbeat.age(), Duration::from_secs(7));
        heartbeat.clone().beat();
        assert_eq!((heartbeat.age(), other.age()), (Duration::ZERO, Duration::from_secs(7)));
    }
}
