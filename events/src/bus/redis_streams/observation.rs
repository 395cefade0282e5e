//! One look at the streams of a topic and at a consumer group from outside: what two of them tell of losses.

use std::collections::HashMap;

use redis::Value;
use redis::aio::MultiplexedConnection;

use super::marker::{EntryId, Marker};
use super::{given_key, losses_key, make_groups, marker_key, stream_key};
use crate::bus::BusError;
use crate::inbox::SHARDS;

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

/// What was noted there, if that was in this epoch.
fn given_in(epoch: u64, noted: &str) -> EntryId {
    let given = noted.split_once(' ').filter(|(of, _)| of.parse() == Ok(epoch));
    given.and_then(|(_, id)| id.parse().ok()).unwrap_or_default()
}

impl Observation {
    /// Looks at all of it at one moment, once the groups that are missing are made.
    pub(super) async fn make(connection: &mut MultiplexedConnection, topic: &str, group: &str) -> Result<Self, BusError> {
        make_groups(connection, topic, group).await?;
        // All of it at one moment: what is claimed in between would be neither pending nor counted.
        let mut pipeline = redis::pipe();
        pipeline.atomic().get(marker_key(topic)).get(losses_key(topic, group)).hgetall(given_key(topic, group));
        for shard in 0..SHARDS {
            pipeline.cmd("XINFO").arg("STREAM").arg(stream_key(topic, shard));
            pipeline.cmd("XINFO").arg("GROUPS").arg(stream_key(topic, shard));
            pipeline.cmd("XPENDING").arg(stream_key(topic, shard)).arg(group);
        }
        let mut answers: std::vec::IntoIter<Value> = pipeline.query_async::<Vec<Value>>(connection).await?.into_iter();
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
        Ok(Self { marker, losses: losses.unwrap_or_default(), shards })
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Cursor;

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
}
