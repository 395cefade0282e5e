//! Freshness tokens: how a caller reads what it has just written. A service that writes names in the header (over gRPC the metadata) `x-lastro-freshness`
//! which aggregates its answer speaks of, and the version of each. A service that reads what others write, and gets that header back, waits until it has come
//! so far. To whoever carries them the tokens are opaque.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use uuid::Uuid;

use crate::status::Problem;

/// The header, in answers of writes and in requests of reads. It may stand several times, and hold several tokens with commas between.
pub const FRESHNESS_HEADER: &str = "x-lastro-freshness";

/// What tokens must be.
pub const MUST_BE: &str = "must be values of this header, copied unchanged from earlier answers, of at most 256 characters each";

/// A token has at most so many characters.
const CHARS_MAX: usize = 256;
/// The first byte of a token says what follows the name of the topic: marks, or a place.
const MARKS: u8 = 1;
const PLACE: u8 = 2;
/// The bytes of one mark: an id, and a version.
const MARK_BYTES: usize = 20;
/// Marks and places that one read may ask for.
pub const MARKS_MAX: usize = 256;

/// An aggregate, and the version of it that a reader must have come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The topic in which its events are.
    pub topic: String,
    /// Its id.
    pub aggregate_id: Uuid,
    /// Of the event that the reader must have seen.
    pub version: i64,
}

/// What a request asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Aggregates that the reader must have seen.
    pub marks: Vec<Mark>,
    /// Topics, each with a place in the event store of its publisher up to which the reader must have come.
    pub places: Vec<(String, String)>,
}

impl Asked {
    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty() && self.places.is_empty()
    }

    /// The topics that it speaks of.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.marks.iter().map(|mark| mark.topic.as_str()).chain(self.places.iter().map(|(topic, _)| topic.as_str()))
    }
}

/// Adds to an answer that speaks of more aggregates than headers should name the place in the event store up to which all of them are stored.
pub fn tell_place(metadata: &mut MetadataMap, topic: &str, place: &str) {
    append(metadata, &head(PLACE, topic).into_iter().chain(place.bytes()).collect::<Vec<u8>>());
}

fn head(format: u8, topic: &str) -> Vec<u8> {
    [format, topic.len() as u8].into_iter().chain(topic.bytes()).collect()
}

fn append(metadata: &mut MetadataMap, token: &[u8]) {
    // Base64 is ASCII.
    if let Ok(value) = URL_SAFE_NO_PAD.encode(token).parse::<AsciiMetadataValue>() {
        metadata.append(FRESHNESS_HEADER, value);
    }
}

/// Adds tokens to an answer, as many as it takes.
pub fn tell(metadata: &mut MetadataMap, topic: &str, marks: impl IntoIterator<Item = (Uuid, i64)>) {
    let head = head(MARKS, topic);
    let in_a_token = (CHARS_MAX / 4 * 3 - head.len()) / MARK_BYTES;
    let marks: Vec<(Uuid, i64)> = marks.into_iter().collect();
    for some in marks.chunks(in_a_token) {
        let mark = |(id, version): &(Uuid, i64)| {
            let version = u32::try_from(*version).unwrap_or(u32::MAX);
            id.into_bytes().into_iter().chain(version.to_be_bytes())
        };
        append(metadata, &head.iter().copied().chain(some.iter().flat_map(mark)).collect::<Vec<u8>>());
    }
}

/// What the tokens of a request ask for.
pub fn asked(metadata: &MetadataMap) -> Result<Asked, Problem> {
    let malformed = || Problem::field(FRESHNESS_HEADER, MUST_BE);
    let mut asked = Asked::default();
    for value in metadata.get_all(FRESHNESS_HEADER) {
        for token in value.to_str().map_err(|_| malformed())?.split(',').map(str::trim).filter(|token| !token.is_empty()) {
            let bytes = if token.len() <= CHARS_MAX { URL_SAFE_NO_PAD.decode(token).ok() } else { None };
            bytes.as_deref().and_then(|bytes| asked.add(bytes)).ok_or_else(malformed)?;
            if asked.marks.len() + asked.places.len() > MARKS_MAX {
                return Err(Problem::field(
                    FRESHNESS_HEADER,
                    format!("names more than {MARKS_MAX} things; send only the tokens of your last writes"),
                ));
            }
        }
    }
    Ok(asked)
}

impl Asked {
    /// Adds what a token says; None for what is none.
    fn add(&mut self, token: &[u8]) -> Option<()> {
        let (&[format, length], rest) = token.split_first_chunk::<2>()?;
        let (topic, rest) = rest.split_at_checked(length.into())?;
        let topic = std::str::from_utf8(topic).ok()?.to_owned();
        match format {
            MARKS => self.marks.extend(marks_in(&topic, rest)?),
            PLACE => self.places.push((topic, std::str::from_utf8(rest).ok()?.to_owned())),
            _ => return None,
        }
        Some(())
    }
}

fn marks_in(topic: &str, bytes: &[u8]) -> Option<Vec<Mark>> {
    let (marks, odd) = bytes.as_chunks::<MARK_BYTES>();
    let mark = |bytes: &[u8; MARK_BYTES]| {
        let (id, version) = bytes.split_at(16);
        let version = u32::from_be_bytes(version.try_into().ok()?).into();
        Some(Mark { topic: topic.to_owned(), aggregate_id: Uuid::from_slice(id).ok()?, version })
    };
    if marks.is_empty() || !odd.is_empty() {
        return None;
    }
    marks.iter().map(mark).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(count: u128) -> (MetadataMap, Vec<(Uuid, i64)>) {
        let (mut metadata, marks) = (MetadataMap::new(), (0..count).map(|id| (Uuid::from_u128(id << 70 | 5), id as i64 + 1)).collect::<Vec<_>>());
        tell(&mut metadata, "transactions", marks.clone());
        (metadata, marks)
    }

    #[test]
    fn what_is_told_is_asked_for_in_tokens_that_are_short() {
        for count in [0, 1, 8, 9, 100] {
            let (metadata, marks) = told(count);
            let asked: Vec<(Uuid, i64)> = asked(&metadata).expect("ours").marks.into_iter().map(|mark| (mark.aggregate_id, mark.version)).collect();
            assert_eq!(asked, marks);
            assert!(metadata.get_all(FRESHNESS_HEADER).iter().all(|value| value.len() <= CHARS_MAX));
        }
    }

    #[test]
    fn several_tokens_may_stand_in_one_header() {
        let (metadata, marks) = told(20);
        let together = metadata.get_all(FRESHNESS_HEADER).iter().filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join(" ,, ");
        let mut one = MetadataMap::new();
        one.insert(FRESHNESS_HEADER, together.parse().expect("ASCII"));
        assert_eq!(asked(&one).expect("ours").marks.len(), marks.len());
    }

    #[test]
    fn a_place_is_told_as_it_is() {
        let (mut metadata, _) = told(1);
        tell_place(&mut metadata, "accounts", "0.7.9.11");
        assert_eq!(asked(&metadata).expect("ours").places, [("accounts".to_owned(), "0.7.9.11".to_owned())]);
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let (metadata, _) = told(1);
        let token = metadata.get(FRESHNESS_HEADER).and_then(|value| value.to_str().ok()).expect("one").to_owned();
        let long = "A".repeat(300);
        for wrong in ["x", "AQ", "AQA", &token[..token.len() - 1], &format!("{token}A"), &format!("D{}", &token[1..]), "AQxo", &long, "a b"] {
            let mut metadata = MetadataMap::new();
            metadata.insert(FRESHNESS_HEADER, wrong.parse().expect("ASCII"));
            assert!(asked(&metadata).is_err(), "{wrong}");
        }
    }
}
