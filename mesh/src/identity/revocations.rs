//! Sessions that are dead before their tokens expire. Each service keeps the set in its database and looks it up here, in memory.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use uuid::Uuid;

/// The revoked sessions that still matter. Cheap to clone; all clones are one set.
#[derive(Debug, Clone, Default)]
pub struct RevokedSessions(Arc<RwLock<HashMap<Uuid, i64>>>);

impl RevokedSessions {
    /// Whether a session is dead.
    pub fn contains(&self, session_id: Uuid) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains_key(&session_id)
    }

    /// Remembers dead sessions, each until the Unix second after which none of its tokens can live anyway.
    pub fn insert(&self, sessions: impl IntoIterator<Item = (Uuid, i64)>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).extend(sessions);
    }

    /// Forgets those that no longer matter.
    pub fn forget_before(&self, now_s: i64) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).retain(|_, forget_after_s| *forget_after_s >= now_s);
    }
}
