//! The edition of the tables that this process knows of.

use std::sync::{Arc, PoisonError, RwLock};

use crate::store::edition::Edition;

/// The edition of the tables, as it was looked up last. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct CurrentEdition(Arc<RwLock<Edition>>);

impl CurrentEdition {
    /// This one, so far.
    pub fn new(edition: Edition) -> Self {
        Self(Arc::new(RwLock::new(edition)))
    }

    /// The edition.
    pub fn get(&self) -> Edition {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this is another one.
    pub fn is_another(&self, edition: &Edition) -> bool {
        self.get().begun_us != edition.begun_us
    }

    /// This one from now on.
    pub fn set(&self, edition: Edition) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = edition;
    }
}
