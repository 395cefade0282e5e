//! A cache that processes share: entries that live for a while, and that whoever changes what they were made of makes worthless. It may lose everything at
//! any time, and it never answers an entry that was made before it was last made worthless.
//!
//! Each entry is a hash of `value`, `of` and `mark`. Making it worthless sets another `mark`; an entry counts only if it was made `of` the mark that stands.
//! Whoever looks finds a mark, or sets one; and whoever fills the cache names the mark that it had seen before it read what the entry is made of. One that
//! reads slowly fills in nothing old: where that mark does not stand any more, nothing is filled in.

use std::sync::LazyLock;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, Script};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{COMMAND_TIMEOUT, connect};
use crate::bus::BusError;

/// Its value where it counts, and its mark; one is made where there is none.
static LOOK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local found = redis.call('HMGET', KEYS[1], 'value', 'of', 'mark') \
         if not found[3] then redis.call('HSET', KEYS[1], 'mark', ARGV[1]) redis.call('EXPIRE', KEYS[1], ARGV[2]) return {false, ARGV[1]} end \
         if found[2] == found[3] then return {found[1], found[3]} end \
         return {false, found[3]}",
    )
});
static FILL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('HGET', KEYS[1], 'mark') == ARGV[1] then \
         redis.call('HSET', KEYS[1], 'value', ARGV[2], 'of', ARGV[1]) redis.call('EXPIRE', KEYS[1], ARGV[3]) end",
    )
});

/// The way to it. Connects when first used, and anew after an error.
pub struct SharedCache {
    client: Client,
    prefix: &'static str,
    seconds: u64,
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// What was found.
pub struct Looked {
    /// The entry, if it counts.
    pub value: Option<Vec<u8>>,
    mark: Vec<u8>,
}

impl SharedCache {
    pub(super) fn new(client: &Client, prefix: &'static str, lives: Duration) -> Self {
        Self { client: client.clone(), prefix, seconds: lives.as_secs(), connection: Mutex::new(None) }
    }

    /// A command on the connection. One that fails takes the connection along: it may have gone silent.
    async fn run<T>(&self, command: impl AsyncFnOnce(&mut MultiplexedConnection) -> redis::RedisResult<T>) -> Result<T, BusError> {
        let connection = {
            let mut held = self.connection.lock().await;
            match &*held {
                Some(connection) => connection.clone(),
                None => held.insert(connect(&self.client, COMMAND_TIMEOUT).await?).clone(),
            }
        };
        let mut connection = connection;
        let done = command(&mut connection).await;
        if done.is_err() {
            *self.connection.lock().await = None;
        }
        Ok(done?)
    }

    fn key(&self, id: Uuid) -> String {
        format!("lastro:cache:{}:{id}", self.prefix)
    }

    /// Looks an entry up.
    pub async fn look(&self, id: Uuid) -> Result<Looked, BusError> {
        let new_mark = Uuid::new_v4();
        let (value, mark): (Option<Vec<u8>>, Vec<u8>) = self
            .run(async |connection| LOOK.key(self.key(id)).arg(new_mark.as_bytes().as_slice()).arg(2 * self.seconds).invoke_async(connection).await)
            .await?;
        Ok(Looked { value, mark })
    }

    /// Fills an entry in that was made after it was looked up.
    pub async fn fill(&self, id: Uuid, looked: &Looked, value: &[u8]) -> Result<(), BusError> {
        self.run(async |connection| FILL.key(self.key(id)).arg(&looked.mark).arg(value).arg(self.seconds).invoke_async(connection).await).await
    }

    /// Makes entries worthless.
    pub async fn forget(&self, ids: &[Uuid]) -> Result<(), BusError> {
        let mut commands = redis::pipe();
        for id in ids {
            commands.del(self.key(*id)).ignore();
        }
        self.run(async |connection| commands.query_async(connection).await).await
    }
}
