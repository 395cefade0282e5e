//! The bus: how a reader learns quickly that there are new events. Two implementations: the embedded one only wakes readers, who read the event store
//! itself; the other is Redis Streams, filled by the relay, from which readers take the events. Redis is the fast way and may lose everything at any
//! time; the event store is the sure one.

pub mod embedded;
pub mod redis_streams;
mod wakes;

use lastro_database::Error;

/// Why the bus does not work right now.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The relay cannot read or write its database.
    #[error(transparent)]
    Database(#[from] Error),
    /// Redis is away or refuses.
    #[error("redis: {0}")]
    Redis(#[from] redis::RedisError),
    /// Redis answers something that it should not.
    #[error("redis holds something unexpected: {0}")]
    Unexpected(String),
}

impl From<redis::ParsingError> for BusError {
    fn from(error: redis::ParsingError) -> Self {
        Self::Unexpected(error.to_string())
    }
}

/// The bus of one process.
#[derive(Clone)]
pub enum Bus {
    /// Within one process.
    Embedded(embedded::EmbeddedBus),
    /// Between processes.
    Redis(redis_streams::RedisBus),
}

impl Bus {
    /// Tells that events of a topic were stored, so that nobody waits for the next look.
    pub fn wake(&self, topic: &'static str) {
        match self {
            Self::Embedded(bus) => bus.wake(topic),
            Self::Redis(bus) => bus.wake(topic),
        }
    }
}
