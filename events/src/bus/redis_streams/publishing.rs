//! The relay's side: adds events to the streams and moves the marker, and keeps the streams within their bounds.

use std::collections::HashMap;
use std::sync::LazyLock;

use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands as _, Script};
use uuid::Uuid;

use super::marker::{EntryId, Marker};
use super::{RedisBus, keys_of_before, marker_key, stream_key};
use crate::bus::BusError;
use crate::event::Event;
use crate::inbox::{SHARDS, now_us};
use crate::store::Cursor;

/// Entries kept of each stream, roughly. Who falls further behind reads from the event store.
const ENTRIES_MAX: usize = 100_000;

static PUBLISH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("publish.lua")));

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
