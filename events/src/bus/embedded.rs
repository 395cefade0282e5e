//! The embedded bus: readers read the publishers' event stores from their cursors, and are woken when something was stored. Nothing is copied.

use std::sync::Arc;

use tokio::sync::Notify;

/// The bus within one process.
#[derive(Clone, Default)]
pub struct EmbeddedBus {
    stored: Arc<Notify>,
}

impl EmbeddedBus {
    /// Wakes every reader.
    pub fn wake(&self) {
        self.stored.notify_waiters();
    }

    /// Resolves when something is stored from now on.
    pub(crate) fn stored_by_anybody(&self) -> tokio::sync::futures::Notified<'_> {
        self.stored.notified()
    }
}
