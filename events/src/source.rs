//! Where a reader gets events from that is sure: the event store of whoever publishes them, complete and in order from a cursor, or the stream of one
//! aggregate from a version.

use std::pin::Pin;
use std::sync::Arc;

use lastro_database::Database;
use uuid::Uuid;

use crate::event::Event;
use crate::store::{Cursor, EventStore};

/// A page of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// In the order of the store.
    pub events: Vec<Event>,
    /// Where the next page begins.
    pub cursor: Cursor,
    /// Whether there is a next page already.
    pub has_more: bool,
}

/// Why a source gives nothing.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(pub String);

/// What a source gives, some time.
pub type Given<'a, T> = Pin<Box<dyn Future<Output = Result<T, SourceError>> + Send + 'a>>;

/// A way to the events of one topic.
pub trait Fetch: Send + Sync {
    /// The events after a cursor, up to `limit` of them or fewer: complete, and in an order in which no later call finds one before.
    fn after(&self, cursor: Cursor, limit: u32) -> Given<'_, Page>;

    /// The events of one aggregate from a version, up to `limit` of them or fewer, without a gap. None are left when it gives none.
    fn stream(&self, aggregate_id: Uuid, from_version: i64, limit: u32) -> Given<'_, Vec<Event>>;
}

/// Any way to the events of one topic. Cheap to clone.
pub type Source = Arc<dyn Fetch>;

/// An event store in this process.
pub struct Near {
    /// The table.
    pub store: EventStore,
    /// The publisher's database.
    pub database: Database,
}

impl Near {
    /// As a source.
    pub fn source(store: EventStore, database: &Database) -> Source {
        Arc::new(Self { store, database: database.clone() })
    }
}

impl Fetch for Near {
    fn after(&self, cursor: Cursor, limit: u32) -> Given<'_, Page> {
        Box::pin(async move {
            let (found, next) = self.store.read(&self.database, cursor, limit).await.map_err(|error| SourceError(error.to_string()))?;
            let has_more = found.len() >= limit as usize;
            Ok(Page { events: found.into_iter().map(|(_, event)| event).collect(), cursor: next, has_more })
        })
    }

    fn stream(&self, aggregate_id: Uuid, from_version: i64, limit: u32) -> Given<'_, Vec<Event>> {
        Box::pin(async move {
            self.store.stream_from(&self.database, aggregate_id, from_version, limit).await.map_err(|error| SourceError(error.to_string()))
        })
    }
}
