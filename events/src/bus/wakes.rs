//! Wake-ups within one process, by topic: whoever reads one topic does not look because something of another one was stored.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// Who waits for what. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub(crate) struct Wakes(Arc<Mutex<HashMap<&'static str, Arc<Notify>>>>);

impl Wakes {
    /// Notified whenever an event of this topic was stored.
    pub fn of(&self, topic: &'static str) -> Arc<Notify> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(topic).or_default().clone()
    }
}
