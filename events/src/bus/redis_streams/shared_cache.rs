//! A cache that processes share: entries that live for a while, and that whoever changes what they were made of makes worthless. It may lose everything at
//! any time, and it never answers an entry that was made before it was last made worthless.
//!
//! Each entry is a hash of `value`, `of` and `mark`. Making it worthless sets another `mark`; an entry counts only if it was made `of` the mark that stands.
//! Whoever fills the cache names the mark that it had seen before it read what the entry is made of, so that one that reads slowly fills in nothing old.

use std::time::Duration;

use redis::aio::ConnectionManager;
use redis::{AsyncCommands as _, Client};
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::COMMAND_TIMEOUT;
use crate::bus::BusError;

/// How long a mark outlives its entry. Whoever fills the cache takes less.
const MARK_SECONDS: i64 = 60;

/// The way to it. Connects when first used.
pub struct SharedCache {
    client: Client,
    prefix: &'static str,
    seconds: i64,
    connection: OnceCell<ConnectionManager>,
}

/// What was found.
pub struct Looked {
    /// The entry, if it counts.
    pub value: Option<Vec<u8>>,
    mark: Vec<u8>,
}

impl SharedCache {
    pub(super) fn new(client: &Client, prefix: &'static str, lives: Duration) -> Self {
        let seconds = i64::try_from(lives.as_secs()).unwrap_or(i64::MAX);
        Self { client: client.clone(), prefix, seconds, connection: OnceCell::new() }
    }

    async fn connection(&self) -> Result<ConnectionManager, BusError> {
        let config = redis::aio::ConnectionManagerConfig::new()
            .set_connection_timeout(Some(COMMAND_TIMEOUT))
            .set_response_timeout(Some(COMMAND_TIMEOUT))
            .set_number_of_retries(0);
        let connect = || ConnectionManager::new_with_config(self.client.clone(), config);
        Ok(self.connection.get_or_try_init(connect).await?.clone())
    }

    fn key(&self, id: Uuid) -> String {
        format!("lastro:cache:{}:{id}", self.prefix)
    }

    /// Looks an entry up.
    pub async fn look(&self, id: Uuid) -> Result<Looked, BusError> {
        let found: (Option<Vec<u8>>, Option<Vec<u8>>, Option<Vec<u8>>) =
            self.connection().await?.hmget(self.key(id), &["value", "of", "mark"]).await?;
        let (value, of, mark) = found;
        let mark = mark.unwrap_or_default();
        Ok(Looked { value: value.filter(|_| of.is_some_and(|of| of == mark)), mark })
    }

    /// Fills an entry in that was made after it was looked up.
    pub async fn fill(&self, id: Uuid, looked: &Looked, value: &[u8]) -> Result<(), BusError> {
        let mut connection = self.connection().await?;
        let mut commands = redis::pipe();
        commands.hset_multiple(self.key(id), &[("value", value), ("of", looked.mark.as_slice())]).ignore();
        commands.expire(self.key(id), self.seconds).ignore();
        let () = commands.query_async(&mut connection).await?;
        Ok(())
    }

    /// Makes entries worthless.
    pub async fn forget(&self, ids: &[Uuid]) -> Result<(), BusError> {
        let mut connection = self.connection().await?;
        let mut commands = redis::pipe();
        for id in ids {
            commands.hdel(self.key(*id), "value").ignore();
            commands.hset(self.key(*id), "mark", Uuid::new_v4().as_bytes()).ignore();
            commands.expire(self.key(*id), MARK_SECONDS).ignore();
        }
        let () = commands.query_async(&mut connection).await?;
        Ok(())
    }
}
