//! The bus on Redis Streams with consumer groups. Redis may lose everything at any time, or part of it: readers notice, and read what they miss from
//! the event store.
//!
//! To be noticed, a loss must leave a trace. So the entries of each stream are counted: the id of an entry is `<epoch>-<n>`, where `n` counts from 1
//! without a gap and the epoch is when the relay began to count, in milliseconds. A marker beside the streams says how far they were filled. A reader
//! misses something when the epoch is another one, when the first entry lies behind the group's place, when there are fewer entries than their ids
//! say, or when an entry that was delivered and not acknowledged is not there any more.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands as _, AsyncConnectionConfig, Client, Script, Value};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::BusError;
use super::wakes::Wakes;
use crate::event::{Event, digest};
use crate::inbox::{SHARDS, now_us};
use crate::store::Cursor;

/// Entries kept of each stream, roughly. Who falls further behind reads from the event store.
const ENTRIES_MAX: usize = 100_000;
/// Bytes kept of a topic if nothing else is said: of each stream an equal part.
pub const TOPIC_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Entries of each stream that one read brings: a few MB where each is as large as can be, which Redis holds until they are sent.
const BATCH: usize = 100;
const BLOCK: Duration = Duration::from_millis(500);
/// What a consumer took and never acknowledged is given to another after so long.
const CLAIM_AFTER: Duration = Duration::from_secs(15);
/// How long a reader waits before it looks again when nothing was published yet.
const UNMARKED_PAUSE: Duration = Duration::from_millis(100);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);

static PUBLISH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("publish.lua")));
static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("read.lua")));
static CLAIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("claim.lua")));

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

    pub(crate) async fn connect(&self) -> Result<MultiplexedConnection, BusError> {
        connect(&self.client, COMMAND_TIMEOUT).await
    }

    /// A member of a consumer group, which reads.
    pub(crate) fn subscribe(&self, topic: &'static str, group: &'static str) -> Subscription {
        Subscription { client: self.client.clone(), connection: None, topic, group, member: Uuid::new_v4().to_string(), claimed: None }
    }

    /// A look at the streams and at a consumer group from outside.
    pub(crate) async fn observe(&self, topic: &'static str, group: &'static str) -> Result<Observation, BusError> {
        let mut connection = self.connect().await?;
        make_groups(&mut connection, topic, group).await?;
        // All of it at one moment: what is claimed in between would be neither pending nor counted.
        let mut pipeline = redis::pipe();
        pipeline.atomic().get(marker_key(topic)).get(losses_key(topic, group)).hgetall(given_key(topic, group));
        for shard in 0..SHARDS {
            pipeline.cmd("XINFO").arg("STREAM").arg(stream_key(topic, shard));
            pipeline.cmd("XINFO").arg("GROUPS").arg(stream_key(topic, shard));
            pipeline.cmd("XPENDING").arg(stream_key(topic, shard)).arg(group);
        }
        let mut answers: std::vec::IntoIter<Value> = pipeline.query_async::<Vec<Value>>(&mut connection).await?.into_iter();
        let mut next = || answers.next().unwrap_or(Value::Nil);
        let marker: Option<String> = redis::from_redis_value(next())?;
        let marker = marker.and_then(|text| text.parse::<Marker>().ok());
        let losses: Option<u64> = redis::from_redis_value(next())?;
        let given: HashMap<String, String> = redis::from_redis_value(next())?;
        let mut shards = Vec::with_capacity(SHARDS as usize);
        for shard in 0..SHARDS {
            let given = marker.zip(given.get(&stream_key(topic, shard))).map_or(EntryId::default(), |(marker, noted)| given_in(marker.epoch, noted));
            let shard = Shard::read(next(), next(), next(), group)?;
            shards.push(Shard { delivered: shard.delivered.min(given), ..shard });
        }
        Ok(Observation { marker, losses: losses.unwrap_or_default(), shards })
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

/// What was noted there, if that was in this epoch.
fn given_in(epoch: u64, noted: &str) -> EntryId {
    let given = noted.split_once(' ').filter(|(of, _)| of.parse() == Ok(epoch));
    given.and_then(|(_, id)| id.parse().ok()).unwrap_or_default()
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

/// The id of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct EntryId {
    /// When the relay began to count, Unix milliseconds.
    pub epoch: u64,
    /// The number of the entry in its stream.
    pub n: u64,
}

impl FromStr for EntryId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (epoch, n) = text.split_once('-').ok_or(())?;
        Ok(Self { epoch: epoch.parse().map_err(|_| ())?, n: n.parse().map_err(|_| ())? })
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.epoch, self.n)
    }
}

/// How far Redis was filled: it says so itself, beside the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marker {
    /// The last event that was published.
    pub cursor: Cursor,
    /// When the relay began to count.
    pub epoch: u64,
    /// How many entries were added to each stream since.
    pub added: [u64; SHARDS as usize],
    /// And how many bytes.
    pub bytes: [u64; SHARDS as usize],
}

impl fmt::Display for Marker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.cursor, self.epoch)?;
        self.added.iter().chain(&self.bytes).try_for_each(|number| write!(formatter, " {number}"))
    }
}

impl FromStr for Marker {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split(' ');
        let cursor = parts.next().ok_or(())?.parse().map_err(|_| ())?;
        let numbers: Vec<u64> = parts.map(|part| part.parse().map_err(|_| ())).collect::<Result<_, _>>()?;
        let [epoch, a0, a1, a2, a3, b0, b1, b2, b3] = numbers[..] else { return Err(()) };
        Ok(Self { cursor, epoch, added: [a0, a1, a2, a3], bytes: [b0, b1, b2, b3] })
    }
}

impl Marker {
    /// The place of a group that has read everything that was published of a stream.
    fn end_of(&self, shard: usize) -> EntryId {
        EntryId { epoch: self.epoch, n: self.added[shard] }
    }
}

/// How a batch could not be published.
#[derive(Debug)]
pub(crate) enum Published {
    /// It is there.
    Yes(Marker),
    /// Another relay has published since the marker was read.
    Moved,
    /// Somebody else adds entries to the streams: counting must begin anew.
    Foreign(String),
}

/// What the marker says, and its text. None when Redis has none.
pub(crate) async fn published(connection: &mut MultiplexedConnection, topic: &str) -> Result<(Option<Marker>, String), BusError> {
    let text: Option<String> = connection.get(marker_key(topic)).await?;
    Ok((text.as_ref().and_then(|text| text.parse().ok()), text.unwrap_or_default()))
}

/// A marker of a new epoch, in which nothing is published yet.
pub(crate) fn new_epoch(cursor: Cursor) -> Marker {
    Marker { cursor, epoch: (now_us() / 1000).unsigned_abs(), added: [0; SHARDS as usize], bytes: [0; SHARDS as usize] }
}

/// Adds events and moves the marker, all or nothing. `read` is the marker's text as it was read, `before` what it says or a new epoch's; `attempted`
/// is set to the text that it has afterwards, before it is tried.
pub(crate) async fn publish(
    connection: &mut MultiplexedConnection,
    topic: &str,
    read: &str,
    before: Marker,
    events: &[(Cursor, Event)],
    attempted: &mut String,
) -> Result<Published, BusError> {
    let Some((last, _)) = events.last() else { return Ok(Published::Yes(before)) };
    let begins_epoch = before.added == [0; SHARDS as usize];
    let mut after = Marker { cursor: *last, ..before };
    let mut invocation = PUBLISH.prepare_invoke();
    invocation.key(marker_key(topic));
    (0..SHARDS).for_each(|shard| {
        invocation.key(stream_key(topic, shard));
    });
    let mut entries = Vec::with_capacity(events.len());
    for (cursor, event) in events {
        let shard = (event.aggregate_id.as_u128() % SHARDS) as usize;
        after.added[shard] += 1;
        after.bytes[shard] += bytes_of(event);
        entries.push((shard + 1, after.end_of(shard), *cursor, event, after.bytes[shard]));
    }
    *attempted = after.to_string();
    invocation.arg(read).arg(&*attempted).arg(u8::from(begins_epoch)).arg(ENTRIES_MAX);
    for (stream, id, cursor, event, bytes) in entries {
        let causation_id = event.causation_id.unwrap_or(Uuid::nil());
        invocation.arg(stream).arg(id.to_string()).arg(24);
        invocation.arg("id").arg(event.id.as_bytes()).arg("aggregate").arg(event.aggregate_id.as_bytes());
        invocation.arg("version").arg(event.version).arg("kind").arg(&event.kind).arg("payload").arg(&event.payload);
        invocation.arg("correlation").arg(&event.correlation_id).arg("causation").arg(causation_id.as_bytes());
        invocation.arg("recorded").arg(event.recorded_us).arg("digest").arg(&event.digest).arg("hash").arg(&event.hash);
        invocation.arg("position").arg(cursor.to_string()).arg("bytes").arg(bytes);
    }
    let answer: Vec<String> = invocation.invoke_async(connection).await?;
    match answer.first().map(String::as_str) {
        Some("ok") => {
            if begins_epoch {
                let _: i64 = connection.unlink(keys_of_before(topic)).await?;
            }
            Ok(Published::Yes(after))
        }
        Some("moved") => Ok(Published::Moved),
        Some("foreign") => Ok(Published::Foreign(answer[1..].join(" "))),
        _ => Err(BusError::Unexpected(answer.join(" "))),
    }
}

/// What an entry takes in a stream, about: its values, and some for its place.
fn bytes_of(event: &Event) -> u64 {
    200 + (event.payload.len() + event.kind.len() + event.correlation_id.len()) as u64
}

/// Cuts the streams of a topic to the bytes that it may have. Who is further behind reads from the event store.
pub(crate) async fn trim(connection: &mut MultiplexedConnection, bus: &RedisBus, topic: &str, marker: &Marker) -> Result<(), BusError> {
    let bytes_max = bus.bytes_max / SHARDS as u64;
    for (shard, end) in (0..SHARDS).zip(marker.bytes) {
        if end <= bytes_max {
            continue;
        }
        // Each cut is by the mean of what is there; large entries at the end need another one.
        loop {
            let first: Vec<(String, HashMap<String, Vec<u8>>)> = connection.xrange_count(stream_key(topic, shard), "-", "+", 1).await?;
            let Some((id, fields)) = first.into_iter().next() else { break };
            let begin = fields.get("bytes").and_then(|bytes| std::str::from_utf8(bytes).ok()?.parse::<u64>().ok());
            let (Some(begin), Ok(first)) = (begin, id.parse::<EntryId>()) else { break };
            let there = end.saturating_sub(begin);
            if there <= bytes_max || first.epoch != marker.epoch {
                break;
            }
            // Of what is there, since somebody may have deleted some. At least an eighth goes, so that few cuts suffice.
            let entries: u64 = connection.xlen(stream_key(topic, shard)).await?;
            let kept = (entries.saturating_mul(bytes_max) / there).min(entries.saturating_mul(7) / 8);
            let removed: u64 = redis::cmd("XTRIM").arg(stream_key(topic, shard)).arg("MAXLEN").arg(kept).query_async(connection).await?;
            if removed == 0 {
                break;
            }
        }
    }
    Ok(())
}

/// One look at the streams of a topic and at a group.
#[derive(Debug, Clone)]
pub(crate) struct Observation {
    pub marker: Option<Marker>,
    losses: u64,
    shards: Vec<Shard>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Shard {
    length: u64,
    first: Option<EntryId>,
    /// Of the entry that was added last, also when it was deleted since.
    last: EntryId,
    /// Entries that were added before the stream was made: of one that is whole, none.
    uncounted: u64,
    /// Of the last entry that somebody deleted from within.
    deleted: EntryId,
    /// How far the group was given entries.
    delivered: EntryId,
    /// The first entry that was given and not acknowledged.
    pending: Option<EntryId>,
}

impl Shard {
    fn read(stream: Value, groups: Value, pending: Value, group: &str) -> Result<Self, BusError> {
        let unexpected = |what: &str| BusError::Unexpected(what.to_owned());
        let stream: HashMap<String, Value> = redis::from_redis_value(stream)?;
        let id = |value: Option<&Value>| -> Result<EntryId, BusError> {
            let Some(value) = value else { return Ok(EntryId::default()) };
            redis::from_redis_value::<String>(value.clone())?.parse().map_err(|()| unexpected("an id of an entry"))
        };
        let first = match stream.get("first-entry") {
            None | Some(Value::Nil) => None,
            Some(entry) => {
                let (id, _): (String, Value) = redis::from_redis_value(entry.clone())?;
                Some(id.parse().map_err(|()| unexpected("an id of an entry"))?)
            }
        };
        let groups: Vec<HashMap<String, Value>> = redis::from_redis_value(groups)?;
        let own = |one: &&HashMap<String, Value>| {
            one.get("name").is_some_and(|name| redis::from_redis_value::<String>(name.clone()).is_ok_and(|name| name == group))
        };
        let of_group = groups.iter().find(own).ok_or_else(|| unexpected("a stream without the group"))?;
        let (_, pending, _, _): (i64, Option<String>, Value, Value) = redis::from_redis_value(pending)?;
        let last = id(stream.get("last-generated-id"))?;
        // Redis before 7 does not tell it.
        let added: Option<u64> = stream.get("entries-added").map(|added| redis::from_redis_value(added.clone())).transpose()?;
        Ok(Self {
            uncounted: added.map_or(0, |added| last.n.saturating_sub(added)),
            length: stream.get("length").map_or(Ok(0), |length| redis::from_redis_value(length.clone()))?,
            first,
            last,
            // Redis before 7 does not tell it.
            deleted: id(stream.get("max-deleted-entry-id"))?,
            delivered: id(of_group.get("last-delivered-id"))?,
            pending: pending.map(|id| id.parse().map_err(|()| unexpected("an id of an entry"))).transpose()?,
        })
    }

    /// Entries that are not there although their ids say so.
    fn holes(&self) -> u64 {
        match self.first {
            Some(first) if first.epoch == self.last.epoch => (self.last.n - first.n + 1).saturating_sub(self.length),
            _ => 0,
        }
    }
}

impl Observation {
    /// What a group misses that has read everything up to an earlier look from the event store; None when it can have missed nothing.
    pub fn missed_since(&self, earlier: &Self) -> Option<&'static str> {
        if self.marker.map(|marker| marker.epoch) != earlier.marker.map(|marker| marker.epoch) {
            return Some("redis lost the streams");
        }
        if self.losses != earlier.losses {
            return Some("a stream was gone, or what was being applied was trimmed");
        }
        for (index, (now, before)) in self.shards.iter().zip(&earlier.shards).enumerate() {
            if now.uncounted != before.uncounted {
                return Some("a stream was made anew");
            }
            if now.holes() != before.holes() || now.deleted != before.deleted {
                return Some("entries were deleted from a stream");
            }
            let end_of = |marker: Option<Marker>| marker.map(|marker| marker.end_of(index)).unwrap_or_default();
            let (end, covered) = (end_of(self.marker), end_of(earlier.marker));
            // What was there at the earlier look has been read from the event store since, whatever became of it.
            if end > covered && now.last < end {
                return Some("redis lost entries at the end of a stream");
            }
            // What was published at the earlier look has been read from the event store since.
            let has = now.delivered.max(covered);
            let first = now.first.unwrap_or(EntryId { n: now.last.n + 1, ..now.last });
            if has < first && first.n > if has.epoch == first.epoch { has.n + 1 } else { 1 } {
                return Some("a stream was trimmed beyond the reader's place");
            }
            if now.pending.is_some_and(|pending| covered < pending && pending < first) {
                return Some("a stream was trimmed beyond what was being applied");
            }
        }
        None
    }

    /// Whether the group has applied everything that was published at an earlier look.
    pub fn has_all_of(&self, earlier: &Marker) -> bool {
        let mut shards = self.shards.iter().enumerate();
        shards.all(|(index, shard)| {
            let end = earlier.end_of(index);
            (end.n == 0 || shard.delivered >= end) && shard.pending.is_none_or(|pending| pending > end)
        })
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn id(epoch: u64, n: u64) -> EntryId {
        EntryId { epoch, n }
    }

    fn marker(epoch: u64, added: u64) -> Marker {
        Marker { cursor: Cursor::default(), epoch, added: [added; 4], bytes: [0; 4] }
    }

    /// A stream with the entries 11 to 20 of epoch 7, of which the group was given 15.
    fn shard() -> Shard {
        Shard { length: 10, first: Some(id(7, 11)), last: id(7, 20), uncounted: 0, deleted: EntryId::default(), delivered: id(7, 15), pending: None }
    }

    fn observation(epoch: u64, shard: Shard) -> Observation {
        Observation { marker: Some(marker(epoch, 20)), losses: 0, shards: vec![shard; 4] }
    }

    #[test]
    fn every_loss_leaves_a_trace() {
        let before = observation(7, shard());
        assert_eq!(observation(7, shard()).missed_since(&before), None);
        let trimmed_up_to_its_place = Shard { length: 5, first: Some(id(7, 16)), ..shard() };
        assert_eq!(observation(7, trimmed_up_to_its_place).missed_since(&before), None);
        let all_trimmed_and_all_read = Shard { length: 0, first: None, delivered: id(7, 20), ..shard() };
        assert_eq!(observation(7, all_trimmed_and_all_read).missed_since(&before), None);
        let trimmed_up_to_what_the_earlier_look_had = Shard { length: 0, first: None, ..shard() };
        assert_eq!(observation(7, trimmed_up_to_what_the_earlier_look_had).missed_since(&before), None);
        let grown = Shard { length: 12, last: id(7, 22), ..shard() };
        assert_eq!(observation(7, grown).missed_since(&before), None);
        let nothing_published_yet = Observation { marker: Some(marker(7, 0)), losses: 0, shards: vec![Shard::default(); 4] };
        assert_eq!(nothing_published_yet.missed_since(&nothing_published_yet), None);
        let before = Observation { marker: Some(marker(7, 12)), ..before };
        for (what, now) in [
            ("another epoch", observation(8, shard())),
            ("no marker", Observation { marker: None, ..before.clone() }),
            ("a loss that was counted", Observation { losses: 1, ..before.clone() }),
            ("deleted and filled again", observation(7, Shard { length: 5, first: Some(id(7, 16)), uncounted: 15, ..shard() })),
            ("a hole", observation(7, Shard { length: 9, ..shard() })),
            ("the first entry deleted", observation(7, Shard { length: 9, first: Some(id(7, 12)), deleted: id(7, 11), ..shard() })),
            ("trimmed beyond its place", observation(7, Shard { length: 4, first: Some(id(7, 17)), ..shard() })),
            ("trimmed beyond what is pending", observation(7, Shard { length: 6, first: Some(id(7, 15)), pending: Some(id(7, 14)), ..shard() })),
            ("the end lost", observation(7, Shard { length: 8, last: id(7, 18), ..shard() })),
            ("all lost", observation(7, Shard::default())),
            ("all trimmed, not all read", observation(7, Shard { length: 0, first: None, ..shard() })),
            ("at an earlier epoch, and trimmed", observation(7, Shard { length: 7, first: Some(id(7, 14)), delivered: id(6, 90), ..shard() })),
        ] {
            assert!(now.missed_since(&before).is_some(), "{what}");
        }
    }

    #[test]
    fn a_group_has_all_when_it_was_given_all_and_nothing_is_pending() {
        let all = Shard { delivered: id(7, 20), ..shard() };
        assert!(observation(7, all).has_all_of(&marker(7, 20)));
        assert!(observation(7, Shard { pending: Some(id(7, 21)), ..all }).has_all_of(&marker(7, 20)));
        assert!(!observation(7, Shard { pending: Some(id(7, 20)), ..all }).has_all_of(&marker(7, 20)));
        assert!(!observation(7, shard()).has_all_of(&marker(7, 20)));
        assert!(observation(7, Shard::default()).has_all_of(&marker(7, 0)), "nothing was published yet");
    }

    #[test]
    fn a_marker_reads_back() {
        let marker = Marker { cursor: Cursor { incarnation: 1, xid: 2, seq: 3, cluster: -4 }, epoch: 5, added: [6, 7, 8, 9], bytes: [1, 2, 3, 4] };
        assert_eq!(marker.to_string().parse(), Ok(marker));
        for text in ["", "1.2.3.4", "1.2.3.4 5 6", "5 1 2 3 4 5 6 7 8"] {
            assert_eq!(text.parse::<Marker>(), Err(()), "{text}");
        }
    }
}
