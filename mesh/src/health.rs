//! Readiness: named checks that components set, read by `/readyz` and by `grpc.health.v1`. Liveness is answering at all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// The checks of one process. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Health {
    checks: Arc<Mutex<BTreeMap<&'static str, bool>>>,
    ready: watch::Sender<bool>,
}

impl Health {
    /// No check yet: not ready.
    pub fn new() -> Self {
        Self { checks: Arc::default(), ready: watch::Sender::new(false) }
    }

    /// Sets one check. The process is ready when all are.
    pub fn set(&self, check: &'static str, passes: bool) {
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.insert(check, passes);
        let ready = checks.values().all(|passes| *passes);
        self.ready.send_if_modified(|current| std::mem::replace(current, ready) != ready);
    }

    /// Whether every check passes.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Follows readiness.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Each check by its name.
    pub fn checks(&self) -> BTreeMap<&'static str, bool> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}
