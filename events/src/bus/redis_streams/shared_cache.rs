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
use tokio::time::Instant;
use uuid::Uuid;

use super::{COMMAND_TIMEOUT, connect};
use crate::bus::BusError;

/// Before a connection is tried again that could not be had.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

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
    connection: Mutex<Connection>,
}

/// The connection, or when there was none to be had.
#[derive(Default)]
struct Connection {
    open: Option<MultiplexedConnection>,
    failed: Option<Instant>,
}

/// What was found.
pub struct Looked {
    /// The entry, if it counts.
    pub value: Option<Vec<u8>>,
    mark: Vec<u8>,
}

impl SharedCache {
    pub(super) fn new(client: &Client, prefix: &'static str, lives: Duration) -> Self {
        Self { client: client.clone(), prefix, seconds: lives.as_secs(), connection: Mutex::default() }
    }

    /// A command on the connection. One to which there is no answer takes the connection along: it may have gone silent.
    async fn run<T>(&self, command: impl AsyncFnOnce(&mut MultiplexedConnection) -> redis::RedisResult<T>) -> Result<T, BusError> {
        let mut connection = self.open().await?;
        let done = command(&mut connection).await;
        if done.as_ref().is_err_and(|error| error.is_io_error() || error.is_timeout() || error.is_connection_dropped()) {
            *self.connection.lock().await = Connection { open: None, failed: Some(Instant::now()) };
        }
        Ok(done?)
    }

    /// Whoever finds somebody else connecting, or that it failed a moment ago, does without: nobody waits in a row for a Redis that is silent.
    async fn open(&self) -> Result<MultiplexedConnection, BusError> {
        let away = || BusError::Unexpected("no connection to the shared cache".to_owned());
        let mut held = self.connection.try_lock().map_err(|_| away())?;
        if let Some(open) = &held.open {
            return Ok(open.clone());
        }
        if held.failed.is_some_and(|failed| failed.elapsed() < AGAIN_AFTER) {
            return Err(away());
        }
        match connect(&self.client, COMMAND_TIMEOUT).await {
            Ok(open) => {
                *held = Connection { open: Some(open.clone()), failed: None };
                Ok(open)
            }
            Err(error) => {
                held.failed = Some(Instant::now());
                Err(error)
            }
        }
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
