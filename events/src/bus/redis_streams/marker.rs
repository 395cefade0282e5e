//! How far Redis was filled: the ids of entries, and the marker beside the streams.

use std::fmt;
use std::str::FromStr;

use crate::inbox::SHARDS;
use crate::store::Cursor;

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
    pub fn end_of(&self, shard: usize) -> EntryId {
        EntryId { epoch: self.epoch, n: self.added[shard] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_reads_back() {
        let marker = Marker { cursor: Cursor { incarnation: 1, xid: 2, seq: 3, cluster: -4 }, epoch: 5, added: [6, 7, 8, 9], bytes: [1, 2, 3, 4] };
        assert_eq!(marker.to_string().parse(), Ok(marker));
        for text in ["", "1.2.3.4", "1.2.3.4 5 6", "5 1 2 3 4 5 6 7 8"] {
            assert_eq!(text.parse::<Marker>(), Err(()), "{text}");
        }
    }
}
