//! What processes tell each other through Redis Pub/Sub: it reaches whoever listens at that moment, and is lost to everybody else.

use futures_util::StreamExt as _;
use redis::Client;
use redis::aio::{MultiplexedConnection, PubSub};
use tokio::time::timeout;

use super::{COMMAND_TIMEOUT, connect};
use crate::bus::BusError;

/// Tells every process that listens; connects when first used, and anew after an error.
pub struct Announcer {
    client: Client,
    connection: Option<MultiplexedConnection>,
    channel: &'static str,
}

impl Announcer {
    pub(super) fn new(client: &Client, channel: &'static str) -> Self {
        Self { client: client.clone(), connection: None, channel }
    }

    /// Resolves once Redis has passed the message on to all who listen.
    pub async fn announce(&mut self, message: &[u8]) -> Result<(), BusError> {
        if self.connection.is_none() {
            self.connection = Some(connect(&self.client, COMMAND_TIMEOUT).await?);
        }
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let told: Result<(), _> = redis::cmd("PUBLISH").arg(key(self.channel)).arg(message).query_async(connection).await;
        if told.is_err() {
            self.connection = None;
        }
        Ok(told?)
    }
}

/// What others announce, from when it was opened until its connection breaks.
pub struct Announcements(PubSub);

impl Announcements {
    pub(super) async fn open(client: &Client, channel: &'static str) -> Result<Self, BusError> {
        let too_slow = |_| BusError::Unexpected("no answer to SUBSCRIBE in time".to_owned());
        let mut connection = timeout(COMMAND_TIMEOUT, client.get_async_pubsub()).await.map_err(too_slow)??;
        timeout(COMMAND_TIMEOUT, connection.subscribe(key(channel))).await.map_err(too_slow)??;
        Ok(Self(connection))
    }

    /// The next message; None where the connection has broken, so that messages may have been missed.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        self.0.on_message().next().await.map(|message| message.get_payload_bytes().to_vec())
    }
}

fn key(channel: &str) -> String {
    format!("lastro:{channel}:announcements")
}
