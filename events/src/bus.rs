//! The bus: how events get from the service that stored them to those that listen. Two implementations: the embedded one reads the
//! event tables themselves, nothing is copied; the other is Redis Streams, filled by the relay.

pub mod embedded;
pub mod redis_streams;

use lastro_database::{Database, Error};

use crate::event::Event;
use crate::store::{Cursor, EventStore};

/// A delivered event and what its acknowledgement names.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The event.
    pub event: Event,
    pub(crate) position: Position,
}

#[derive(Debug, Clone)]
pub(crate) enum Position {
    Embedded(Cursor),
    Redis { stream: String, id: String },
}

/// Why the bus does not work right now.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The embedded bus, or the relay, cannot read or write a database.
    #[error(transparent)]
    Database(#[from] Error),
    /// Redis is away or refuses.
    #[error("redis: {0}")]
    Redis(#[from] redis::RedisError),
    /// Something on the bus is no event of ours.
    #[error("the bus holds something that is no event: {0}")]
    Malformed(String),
}

/// The bus of one process.
#[derive(Clone)]
pub enum Bus {
    /// Within one process.
    Embedded(embedded::EmbeddedBus),
    /// Between processes.
    Redis(redis_streams::RedisBus),
}

/// One consumer group's place in a topic.
pub enum Subscription {
    /// See [`embedded`].
    Embedded(embedded::EmbeddedSubscription),
    /// See [`redis_streams`].
    Redis(redis_streams::RedisSubscription),
}

impl Bus {
    /// Joins a consumer group, which starts at the first event that there is. `database` is the consumer's.
    pub fn subscribe(&self, store: EventStore, group: &'static str, database: &Database) -> Subscription {
        match self {
            Self::Embedded(bus) => Subscription::Embedded(bus.subscribe(store, group, database)),
            Self::Redis(bus) => Subscription::Redis(bus.subscribe(store.topic, group)),
        }
    }

    /// Tells that events were stored, so that nobody waits for the next look.
    pub fn wake(&self) {
        match self {
            Self::Embedded(bus) => bus.wake(),
            Self::Redis(bus) => bus.wake(),
        }
    }
}

impl Subscription {
    /// The next deliveries; waits a while when there are none, and may answer none.
    pub async fn next(&mut self) -> Result<Vec<Delivery>, BusError> {
        match self {
            Self::Embedded(subscription) => subscription.next().await,
            Self::Redis(subscription) => subscription.next().await,
        }
    }

    /// Tells that deliveries are done with. Those that never are come again.
    pub async fn acknowledge(&mut self, deliveries: &[Delivery]) -> Result<(), BusError> {
        match self {
            Self::Embedded(subscription) => subscription.acknowledge(deliveries).await,
            Self::Redis(subscription) => subscription.acknowledge(deliveries).await,
        }
    }
}
