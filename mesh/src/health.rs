//! Readiness: named checks that components set, read by `/readyz` and by `grpc.health.v1`. Liveness is answering at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// The checks of one process. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Health {
    checks: Arc<Mutex<BTreeMap<&'static str, bool>>>,
    degraded: Arc<Mutex<BTreeSet<&'static str>>>,
    ready: watch::Sender<bool>,
}

impl Health {
    /// No check yet: not ready.
    pub fn new() -> Self {
        Self { checks: Arc::default(), degraded: Arc::default(), ready: watch::Sender::new(false) }
    }

    /// Sets one check. The process is ready when all are.
    pub fn set(&self, check: &'static str, passes: bool) {
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.insert(check, passes);
        let ready = checks.values().all(|passes| *passes);
        self.ready.send_if_modified(|current| std::mem::replace(current, ready) != ready);
    }

    /// Says of something that calls do not wait for whether it is in trouble: readiness lists it, and does not depend on it.
    pub fn set_degraded(&self, what: &'static str, is_degraded: bool) {
        let mut degraded = self.degraded.lock().unwrap_or_else(PoisonError::into_inner);
        if is_degraded {
            degraded.insert(what)
        } else {
            degraded.remove(what)
        };
    }

    /// What is in trouble although calls are answered.
    pub fn degraded(&self) -> Vec<&'static str> {
        self.degraded.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
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
