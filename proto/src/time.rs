//! Times on the wire are `google.protobuf.Timestamp`; inside they are Unix microseconds. The message is our own so that its JSON is what
//! the protobuf JSON mapping asks for: UTC, written with `Z`.

use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const MICROS: i64 = 1_000_000;

/// `google.protobuf.Timestamp`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Timestamp {
    /// Seconds since the Unix epoch.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// 0 to 999,999,999, counted forwards also before the epoch.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let timestamp = jiff::Timestamp::new(self.seconds, self.nanos).map_err(serde::ser::Error::custom)?;
        serializer.collect_str(&timestamp)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By a visitor, whose errors know their place in the text.
        deserializer.deserialize_str(Rfc3339)
    }
}

struct Rfc3339;

impl Visitor<'_> for Rfc3339 {
    type Value = Timestamp;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an RFC 3339 time such as 2026-01-31T12:00:00Z")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Timestamp, E> {
        let parsed: Option<jiff::Timestamp> = text.parse().ok().filter(|_| has_an_offset_of_a_day(text));
        let parsed = parsed.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))?;
        // jiff counts nanoseconds towards zero, protobuf always forwards.
        let (seconds, nanos) = (parsed.as_second(), parsed.subsec_nanosecond());
        Ok(if nanos < 0 { Timestamp { seconds: seconds - 1, nanos: nanos + 1_000_000_000 } } else { Timestamp { seconds, nanos } })
    }
}

/// RFC 3339 has offsets up to 23:59; the parser takes longer ones.
fn has_an_offset_of_a_day(text: &str) -> bool {
    let Some((_, offset)) = text.rsplit_once(['+', '-']).filter(|_| !text.ends_with(['Z', 'z'])) else { return true };
    offset.split(':').next().and_then(|hours| hours.get(..2)?.parse::<u8>().ok()).is_none_or(|hours| hours < 24)
}

/// Unix microseconds as a timestamp.
pub fn timestamp(us: i64) -> Timestamp {
    Timestamp { seconds: us.div_euclid(MICROS), nanos: (us.rem_euclid(MICROS) as i32) * 1000 }
}

/// A timestamp as Unix microseconds, cut to whole ones. None outside of the years 1 to 9999 or with nanoseconds out of range.
pub fn micros(timestamp: &Timestamp) -> Option<i64> {
    let in_range = (-62_135_596_800..=253_402_300_799).contains(&timestamp.seconds) && (0..1_000_000_000).contains(&timestamp.nanos);
    in_range.then(|| timestamp.seconds * MICROS + i64::from(timestamp.nanos / 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_utc_with_a_z() {
        for (us, text) in
            [(1_700_000_000_123_456, "\"2023-11-14T22:13:20.123456Z\""), (0, "\"1970-01-01T00:00:00Z\""), (-1, "\"1969-12-31T23:59:59.999999Z\"")]
        {
            assert_eq!(serde_json::to_string(&timestamp(us)).expect("in range"), text);
            assert_eq!(serde_json::from_str::<Timestamp>(text).expect("RFC 3339"), timestamp(us));
        }
        let offset: Timestamp = serde_json::from_str("\"2023-11-14T19:13:20-03:00\"").expect("RFC 3339");
        assert_eq!(offset.seconds, 1_700_000_000);
        for text in ["yesterday", "2024-01-01", "", "2024-01-01T00:00:00+25:00", "2024-01-01T00:00:00-24:00"] {
            assert!(serde_json::from_value::<Timestamp>(text.into()).is_err(), "{text}");
        }
        assert!(serde_json::from_value::<Timestamp>("2024-01-01T00:00:00+23:59".into()).is_ok());
    }
}
