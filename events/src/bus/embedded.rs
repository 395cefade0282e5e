//! The embedded bus: readers read the publishers' event stores from their cursors, and are woken when something was stored. Nothing is copied.

use std::sync::Arc;

use tokio::sync::Notify;

use super::wakes::Wakes;

/// The bus within one process.
#[derive(Clone, Default)]
pub struct EmbeddedBus {
    wakes: Wakes,
}

impl EmbeddedBus {
    /// Wakes the readers of a topic.
    pub fn wake(&self, topic: &'static str) {
        self.stored(topic).notify_waiters();
    }

    /// Notified when something of a topic is stored, by anybody in this process.
    pub(crate) fn stored(&self, topic: &'static str) -> Arc<Notify> {
        self.wakes.of(topic)
    }
}
