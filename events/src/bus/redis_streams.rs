//! The bus on Redis Streams with consumer groups. Redis may lose everything at any time, or part of it: readers notice, and read what they miss from
//! the event store.
//!
//! To be noticed, a loss must leave a trace. So the entries of each stream are counted: the id of an entry is `<epoch>-<n>`, where `n` counts from 1
//! without a gap and the epoch is when the relay began to count, in milliseconds. A marker beside the streams says how far they were filled. A reader
//! misses something when the epoch is another one, when the first entry lies behind the group's place, when there are fewer entries than their ids
//! say, or when an entry that was delivered and not acknowledged is not there any more.

mod announcements;
mod marker;
mod observation;
mod publishing;
mod shared_cache;
mod subscription;

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands as _, AsyncConnectionConfig, Client};
use tokio::sync::Notify;

use super::BusError;
use super::wakes::Wakes;
use crate::inbox::SHARDS;

pub use announcements::{Announcements, Announcer};
pub(crate) use marker::Marker;
pub(crate) use observation::Observation;
pub(crate) use publishing::{Published, new_epoch, publish, published, trim};
pub use shared_cache::{Looked, SharedCache};
pub(crate) use subscription::Subscription;

/// Bytes kept of a topic if nothing else is said: of each stream an equal part.
pub const TOPIC_BYTES_MAX: u64 = 32 * 1024 * 1024;
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);

/// The bus between processes.
#[derive(Clone)]
pub struct RedisBus {
    client: Client,
    wakes: Wakes,
    /// Of each topic.
    bytes_max: u64,
}

impl RedisBus {
    /// A bus on the server of a `redis://` URL, with so many bytes of each topic. Connects when first used.
    pub fn new(url: &str, bytes_max: u64) -> Result<Self, BusError> {
        Ok(Self { client: Client::open(url)?, wakes: Wakes::default(), bytes_max })
    }

    /// Wakes the relay of a topic.
    pub fn wake(&self, topic: &'static str) {
        self.stored(topic).notify_waiters();
    }

    /// Notified when something of a topic is stored by this process.
    pub(crate) fn stored(&self, topic: &'static str) -> Arc<Notify> {
        self.wakes.of(topic)
    }

    /// Tells all processes that listen to a channel.
    pub fn announcer(&self, channel: &'static str) -> Announcer {
        Announcer::new(&self.client, channel)
    }

    /// A cache that all processes share, whose entries live so long.
    pub fn shared_cache(&self, prefix: &'static str, lives: Duration) -> SharedCache {
        SharedCache::new(&self.client, prefix, lives)
    }

    /// Listens to what processes tell on a channel, this one included.
    pub async fn announcements(&self, channel: &'static str) -> Result<Announcements, BusError> {
        Announcements::open(&self.client, channel).await
    }

    pub(crate) async fn connect(&self) -> Result<MultiplexedConnection, BusError> {
        connect(&self.client, COMMAND_TIMEOUT).await
    }

    /// A member of a consumer group, which reads.
    pub(crate) fn subscribe(&self, topic: &'static str, group: &'static str) -> Subscription {
        Subscription::new(&self.client, topic, group)
    }

    /// A look at the streams and at a consumer group from outside.
    pub(crate) async fn observe(&self, topic: &'static str, group: &'static str) -> Result<Observation, BusError> {
        Observation::make(&mut self.connect().await?, topic, group).await
    }
}

async fn connect(client: &Client, response_timeout: Duration) -> Result<MultiplexedConnection, BusError> {
    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(COMMAND_TIMEOUT)).set_response_timeout(Some(response_timeout));
    Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
}

fn stream_key(topic: &str, shard: u128) -> String {
    format!("lastro:{{{topic}}}:stream:{shard}")
}

fn marker_key(topic: &str) -> String {
    format!("lastro:{{{topic}}}:marker")
}

/// How often something of a group was lost in a way that leaves no other trace.
fn losses_key(topic: &str, group: &str) -> String {
    format!("lastro:{{{topic}}}:losses:{group}")
}

/// The last entry of each stream that a group was given, with the epoch in which that was. Redis keeps such an id itself, which anybody may set.
fn given_key(topic: &str, group: &str) -> String {
    format!("lastro:{{{topic}}}:given:{group}")
}

/// The keys of versions up to 0.1.0, which counted nothing.
fn keys_of_before(topic: &str) -> Vec<String> {
    (0..SHARDS).map(|shard| format!("lastro:{{{topic}}}:{shard}")).chain([format!("lastro:{{{topic}}}:published")]).collect()
}

/// The group begins at the first entry that there is: what lies before is read from the event store.
async fn make_groups(connection: &mut MultiplexedConnection, topic: &str, group: &str) -> Result<(), BusError> {
    for shard in 0..SHARDS {
        let made: Result<(), _> = connection.xgroup_create_mkstream(stream_key(topic, shard), group, "0").await;
        match made {
            Err(error) if error.code() == Some("BUSYGROUP") => {}
            made => made?,
        }
    }
    Ok(())
}
