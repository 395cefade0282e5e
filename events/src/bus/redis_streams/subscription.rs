//! A reader's side: one member of a consumer group.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, Script, Value};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::marker::{EntryId, Marker};
use super::{COMMAND_TIMEOUT, connect, given_key, losses_key, make_groups, marker_key, stream_key};
use crate::bus::BusError;
use crate::event::{Event, digest};
use crate::inbox::SHARDS;

/// Entries of each stream that one read brings: a few MB where each is as large as can be, which Redis holds until they are sent.
const BATCH: usize = 100;
const BLOCK: Duration = Duration::from_millis(500);
/// What a consumer took and never acknowledged is given to another after so long.
const CLAIM_AFTER: Duration = Duration::from_secs(15);
/// How long a reader waits before it looks again when nothing was published yet.
const UNMARKED_PAUSE: Duration = Duration::from_millis(100);

static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("read.lua")));
static CLAIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("claim.lua")));

/// One member of a consumer group of one topic.
pub(crate) struct Subscription {
    client: Client,
    connection: Option<MultiplexedConnection>,
    topic: &'static str,
    group: &'static str,
    /// Unique to this member.
    member: String,
    claimed: Option<Instant>,
}

/// What one read brought.
#[derive(Debug, Default)]
pub(crate) struct Delivered {
    pub events: Vec<Event>,
    /// What is to be acknowledged, by stream.
    ids: HashMap<String, Vec<String>>,
    /// Entries that are no events of ours, with what is wrong with each.
    pub malformed: Vec<String>,
    /// Whether entries that the group has not been given are gone.
    pub has_hole: bool,
}

impl Subscription {
    pub(super) fn new(client: &Client, topic: &'static str, group: &'static str) -> Self {
        Self { client: client.clone(), connection: None, topic, group, member: Uuid::new_v4().to_string(), claimed: None }
    }

    /// The next entries; waits a while when there are none, and may give none. Where entries are gone that the group has not been given, none is given
    /// until what was published up to behind them has been read from the event store: `covered`.
    pub async fn next(&mut self, covered: Option<Marker>) -> Result<Delivered, BusError> {
        let result = self.read(covered).await;
        if result.is_err() {
            self.connection = None;
        }
        result
    }

    async fn connection(&mut self) -> Result<MultiplexedConnection, BusError> {
        if let Some(connection) = &self.connection {
            return Ok(connection.clone());
        }
        let mut connection = connect(&self.client, BLOCK + COMMAND_TIMEOUT).await?;
        make_groups(&mut connection, self.topic, self.group).await?;
        self.connection = Some(connection.clone());
        Ok(connection)
    }

    async fn read(&mut self, covered: Option<Marker>) -> Result<Delivered, BusError> {
        let mut connection = self.connection().await?;
        if self.claimed.is_none_or(|at| at.elapsed() > CLAIM_AFTER / 3) {
            self.claimed = Some(Instant::now());
            let claimed = self.claim(&mut connection).await?;
            if !claimed.ids.is_empty() {
                return Ok(claimed);
            }
        }
        let mut invocation = READ.prepare_invoke();
        invocation.key(marker_key(self.topic)).key(given_key(self.topic, self.group)).key(losses_key(self.topic, self.group));
        (0..SHARDS).for_each(|shard| {
            invocation.key(stream_key(self.topic, shard));
        });
        invocation.arg(self.group).arg(&self.member).arg(BATCH);
        (0..SHARDS as usize).for_each(|shard| {
            invocation.arg(covered.map_or(EntryId::default(), |covered| covered.end_of(shard)).to_string());
        });
        let mut answer: std::vec::IntoIter<Value> = invocation.invoke_async::<Vec<Value>>(&mut connection).await?.into_iter();
        let how: String = redis::from_redis_value(answer.next().unwrap_or(Value::Nil))?;
        let mut delivered = Delivered::default();
        match how.as_str() {
            "hole" => delivered.has_hole = true,
            // Nothing was published yet, or the relay is about to begin anew.
            "unmarked" => sleep(UNMARKED_PAUSE).await,
            "lost" => {
                make_groups(&mut connection, self.topic, self.group).await?;
                delivered.has_hole = true;
            }
            "none" => {
                let given = answer.map(redis::from_redis_value).collect::<Result<Vec<String>, _>>()?;
                self.wait(&mut connection, &given).await?;
            }
            _ => {
                let marker: String = redis::from_redis_value(answer.next().unwrap_or(Value::Nil))?;
                self.add(&mut delivered, &marker, answer)?;
            }
        }
        Ok(delivered)
    }

    /// Until something is added behind these entries, one of each stream, or for a while.
    async fn wait(&self, connection: &mut MultiplexedConnection, given: &[String]) -> Result<(), BusError> {
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(BLOCK.as_millis() as u64).arg("STREAMS");
        (0..SHARDS).for_each(|shard| {
            command.arg(stream_key(self.topic, shard));
        });
        command.arg(given);
        command.query_async::<Value>(connection).await?;
        Ok(())
    }

    /// Takes over what another member left, or this one in an earlier life.
    async fn claim(&self, connection: &mut MultiplexedConnection) -> Result<Delivered, BusError> {
        let mut invocation = CLAIM.prepare_invoke();
        invocation.key(marker_key(self.topic)).key(losses_key(self.topic, self.group));
        (0..SHARDS).for_each(|shard| {
            invocation.key(stream_key(self.topic, shard));
        });
        invocation.arg(self.group).arg(&self.member).arg(CLAIM_AFTER.as_millis() as u64).arg(BATCH);
        let mut claimed = Delivered::default();
        match invocation.invoke_async::<Vec<Value>>(connection).await {
            Ok(answer) => {
                let mut answer = answer.into_iter();
                let marker: String = redis::from_redis_value(answer.next().unwrap_or(Value::Nil))?;
                self.add(&mut claimed, &marker, answer)?;
            }
            // A stream or its group is not there: reading tells.
            Err(error) if error.code() == Some("NOGROUP") || error.to_string().contains("NOGROUP") => {}
            Err(error) => return Err(error.into()),
        }
        Ok(claimed)
    }

    /// Takes entries apart, given the marker of the same moment.
    fn add(&self, delivered: &mut Delivered, marker: &str, answer: impl Iterator<Item = Value>) -> Result<(), BusError> {
        let marker: Option<Marker> = marker.parse().ok();
        for stream in answer {
            let (stream, entries): (String, Vec<(String, Value)>) = redis::from_redis_value(stream)?;
            let shard = (0..SHARDS).find(|shard| stream_key(self.topic, *shard) == stream);
            // What the relay has added, it counted.
            let end = marker.zip(shard).map(|(marker, shard)| marker.end_of(shard as usize));
            let is_ours = |id: &str| end.zip(id.parse().ok()).is_some_and(|(end, id): (EntryId, EntryId)| id.epoch == end.epoch && id <= end);
            for (id, fields) in entries {
                let read = if is_ours(&id) { event(fields) } else { Err("it was not added by the relay".to_owned()) };
                match read {
                    Ok(event) => delivered.events.push(event),
                    Err(what) => delivered.malformed.push(format!("{what}, in the entry {id} of {stream}")),
                }
                delivered.ids.entry(stream.clone()).or_default().push(id);
            }
        }
        Ok(())
    }

    /// Tells Redis that entries are done with. Entries that are never acknowledged are delivered again.
    pub async fn acknowledge(&mut self, delivered: &Delivered) -> Result<(), BusError> {
        if delivered.ids.is_empty() {
            return Ok(());
        }
        let mut connection = self.connection().await?;
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        if !delivered.malformed.is_empty() {
            // Afterwards nothing else tells that something may be missing, and every replica has to know.
            pipeline.incr(losses_key(self.topic, self.group), 1).ignore();
        }
        for (stream, ids) in &delivered.ids {
            pipeline.xack(stream, self.group, ids).ignore();
        }
        Ok(pipeline.query_async::<()>(&mut connection).await?)
    }
}

/// Reads an entry, or says what is wrong with it.
fn event(fields: Value) -> Result<Event, String> {
    let mut fields: HashMap<String, Vec<u8>> = redis::from_redis_value(fields).map_err(|_| "its fields do not read".to_owned())?;
    let mut take = |name: &str| fields.remove(name).ok_or_else(|| format!("it has no {name}"));
    // PostgreSQL has no NUL in texts.
    let text =
        |bytes: Vec<u8>| String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).ok_or_else(|| "a text that does not read".to_owned());
    let number = |bytes: Vec<u8>| text(bytes)?.parse::<i64>().map_err(|_| "a number that does not read".to_owned());
    let uuid = |bytes: Vec<u8>| Uuid::from_slice(&bytes).map_err(|_| "an id that does not read".to_owned());
    let hash = |bytes: Vec<u8>| bytes.try_into().map_err(|_| "a hash that does not read".to_owned());
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
    if event.version < 1 || event.digest != digest(&event.kind, &event.payload) {
        return Err("its version or its digest cannot be".to_owned());
    }
    Ok(event)
}
