//! The bus on Redis Streams with consumer groups. Redis may lose everything at any time: the group is made again from the first entry,
//! the relay publishes again what is missing, and the inbox of each consumer knows what it has seen.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands as _, AsyncConnectionConfig, Client, Value};
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::{BusError, Delivery, Position};
use crate::event::Event;
use crate::store::Cursor;

/// Streams of a topic; an aggregate's events are all in one.
const SHARDS: u128 = 4;
/// Entries kept of each stream, roughly. Who falls further behind is served from the event stores, not from here.
const ENTRIES_MAX: usize = 100_000;
const BATCH: usize = 200;
const BLOCK: Duration = Duration::from_millis(500);
/// What a consumer took and never acknowledged is given to another after so long.
const CLAIM_AFTER: Duration = Duration::from_secs(15);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);

/// The bus between processes.
#[derive(Clone)]
pub struct RedisBus {
    client: Client,
    stored: Arc<Notify>,
}

/// One member of a consumer group of one topic.
pub struct RedisSubscription {
    client: Client,
    connection: Option<MultiplexedConnection>,
    topic: &'static str,
    group: &'static str,
    /// Unique to this member.
    member: String,
    claimed: Option<Instant>,
}

impl RedisBus {
    /// A bus on the server of a `redis://` URL. Connects when first used.
    pub fn new(url: &str) -> Result<Self, BusError> {
        Ok(Self { client: Client::open(url)?, stored: Arc::default() })
    }

    /// Wakes the relay.
    pub fn wake(&self) {
        self.stored.notify_waiters();
    }

    pub(crate) fn stored(&self) -> Arc<Notify> {
        self.stored.clone()
    }

    pub(super) fn subscribe(&self, topic: &'static str, group: &'static str) -> RedisSubscription {
        RedisSubscription { client: self.client.clone(), connection: None, topic, group, member: Uuid::new_v4().to_string(), claimed: None }
    }

    pub(crate) async fn connect(&self) -> Result<MultiplexedConnection, BusError> {
        connect(&self.client, COMMAND_TIMEOUT).await
    }
}

async fn connect(client: &Client, response_timeout: Duration) -> Result<MultiplexedConnection, BusError> {
    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(COMMAND_TIMEOUT)).set_response_timeout(Some(response_timeout));
    Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
}

fn stream(topic: &str, shard: u128) -> String {
    format!("lastro:{{{topic}}}:{shard}")
}

fn marker(topic: &str) -> String {
    format!("lastro:{{{topic}}}:published")
}

/// How far Redis says that it was filled. None when it lost that too.
pub(crate) async fn published(connection: &mut MultiplexedConnection, topic: &str) -> Result<Option<Cursor>, BusError> {
    let text: Option<String> = connection.get(marker(topic)).await?;
    Ok(text.and_then(|text| {
        let (xid, seq) = text.split_once(':')?;
        Some(Cursor { xid: xid.parse().ok()?, seq: seq.parse().ok()? })
    }))
}

/// Adds events and moves the marker, in one transaction.
pub(crate) async fn publish(connection: &mut MultiplexedConnection, topic: &str, events: &[(Cursor, Event)]) -> Result<(), BusError> {
    let Some((last, _)) = events.last() else { return Ok(()) };
    let mut pipeline = redis::pipe();
    pipeline.atomic();
    for (_, event) in events {
        let shard = event.aggregate_id.as_u128() % SHARDS;
        pipeline.cmd("XADD").arg(stream(topic, shard)).arg("MAXLEN").arg("~").arg(ENTRIES_MAX).arg("*");
        pipeline.arg("id").arg(event.id.as_bytes()).arg("aggregate").arg(event.aggregate_id.as_bytes());
        pipeline.arg("version").arg(event.version).arg("kind").arg(&event.kind).arg("payload").arg(&event.payload);
        pipeline.arg("correlation").arg(&event.correlation_id).arg("causation").arg(event.causation_id.unwrap_or(Uuid::nil()).as_bytes());
        pipeline.arg("recorded").arg(event.recorded_us).arg("digest").arg(&event.digest).arg("hash").arg(&event.hash).ignore();
    }
    pipeline.set(marker(topic), format!("{}:{}", last.xid, last.seq)).ignore();
    Ok(pipeline.query_async::<()>(connection).await?)
}

impl RedisSubscription {
    pub(super) async fn next(&mut self) -> Result<Vec<Delivery>, BusError> {
        let result = self.read().await;
        if let Err(BusError::Redis(error)) = &result {
            if error.code() == Some("NOGROUP") {
                // Redis lost it: from the first entry again; the inbox skips what it knows.
                self.make_groups().await?;
                return Ok(Vec::new());
            }
            self.connection = None;
        }
        result
    }

    async fn connection(&mut self) -> Result<MultiplexedConnection, BusError> {
        if let Some(connection) = &self.connection {
            return Ok(connection.clone());
        }
        let connection = connect(&self.client, BLOCK + COMMAND_TIMEOUT).await?;
        self.connection = Some(connection.clone());
        self.make_groups().await?;
        Ok(connection)
    }

    async fn make_groups(&mut self) -> Result<(), BusError> {
        let Some(mut connection) = self.connection.clone() else { return Ok(()) };
        for shard in 0..SHARDS {
            let made: Result<(), _> = connection.xgroup_create_mkstream(stream(self.topic, shard), self.group, "0").await;
            match made {
                Err(error) if error.code() == Some("BUSYGROUP") => {}
                made => made?,
            }
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<Vec<Delivery>, BusError> {
        let mut connection = self.connection().await?;
        if self.claimed.is_none_or(|at| at.elapsed() > CLAIM_AFTER / 3) {
            self.claimed = Some(Instant::now());
            let claimed = self.claim(&mut connection).await?;
            if !claimed.is_empty() {
                return Ok(claimed);
            }
        }
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(self.group).arg(&self.member).arg("COUNT").arg(BATCH).arg("BLOCK").arg(BLOCK.as_millis() as u64).arg("STREAMS");
        (0..SHARDS).for_each(|shard| {
            command.arg(stream(self.topic, shard));
        });
        (0..SHARDS).for_each(|_| {
            command.arg(">");
        });
        // [[stream, [[id, [field, value, …]], …]], …], or nil when the wait ended.
        let reply: Option<Vec<(String, Vec<(String, Value)>)>> = command.query_async(&mut connection).await?;
        reply.into_iter().flatten().flat_map(|(stream, entries)| entries.into_iter().map(move |(id, fields)| delivery(&stream, id, fields))).collect()
    }

    /// Takes over what another member left, or this one in an earlier life.
    async fn claim(&self, connection: &mut MultiplexedConnection) -> Result<Vec<Delivery>, BusError> {
        let mut claimed = Vec::new();
        for shard in 0..SHARDS {
            let stream = stream(self.topic, shard);
            let mut command = redis::cmd("XAUTOCLAIM");
            command.arg(&stream).arg(self.group).arg(&self.member).arg(CLAIM_AFTER.as_millis() as u64).arg("0-0").arg("COUNT").arg(BATCH);
            // The third part lists entries that were trimmed before anybody applied them: they are gone from here for good, and the
            // relay's event store still has them.
            let (_, entries, trimmed): (String, Vec<(String, Value)>, Vec<String>) = command.query_async(connection).await?;
            if !trimmed.is_empty() {
                tracing::error!(topic = self.topic, trimmed = trimmed.len(), "entries were trimmed before they were consumed");
            }
            for (id, fields) in entries {
                claimed.push(delivery(&stream, id, fields)?);
            }
        }
        Ok(claimed)
    }

    pub(super) async fn acknowledge(&mut self, deliveries: &[Delivery]) -> Result<(), BusError> {
        let mut ids: HashMap<&str, Vec<&str>> = HashMap::new();
        for delivery in deliveries {
            if let Position::Redis { stream, id } = &delivery.position {
                ids.entry(stream).or_default().push(id);
            }
        }
        let mut connection = self.connection().await?;
        for (stream, ids) in ids {
            let _: i64 = connection.xack(stream, self.group, &ids).await?;
        }
        Ok(())
    }
}

fn delivery(stream: &str, id: String, fields: Value) -> Result<Delivery, BusError> {
    let malformed = |what: &str| BusError::Malformed(format!("{what} in {stream} {id}"));
    let mut fields: HashMap<String, Vec<u8>> = redis::from_redis_value(fields).map_err(|_| malformed("fields"))?;
    let mut take = |name: &str| fields.remove(name).ok_or_else(|| malformed(name));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|_| malformed("text"));
    let number = |bytes: Vec<u8>| text(bytes)?.parse::<i64>().map_err(|_| malformed("number"));
    let uuid = |bytes: Vec<u8>| Uuid::from_slice(&bytes).map_err(|_| malformed("id"));
    let hash = |bytes: Vec<u8>| bytes.try_into().map_err(|_| malformed("hash"));
    let causation_id = uuid(take("causation")?)?;
    let event = Event {
        id: uuid(take("id")?)?,
        aggregate_id: uuid(take("aggregate")?)?,
        version: number(take("version")?)?,
        kind: text(take("kind")?)?,
        payload: take("payload")?,
        digest: hash(take("digest")?)?,
        correlation_id: text(take("correlation")?)?,
        causation_id: (!causation_id.is_nil()).then_some(causation_id),
        recorded_us: number(take("recorded")?)?,
        hash: hash(take("hash")?)?,
    };
    Ok(Delivery { event, position: Position::Redis { stream: stream.to_owned(), id } })
}
