//! The one message that a request is, in gRPC's frame. A compressed one is unpacked here, where its size is bounded by its method, and handed on as if
//! it had come plain.

use std::io::Read as _;

use bytes::{BufMut as _, Bytes, BytesMut};
use flate2::read::GzDecoder;
use http::{HeaderMap, HeaderValue};

use crate::status::{BODY_TOO_LARGE, MALFORMED_MESSAGE, Problem, UNIMPLEMENTED};

/// gRPC's own header before a message: whether it is compressed, and its length in four bytes.
pub(super) const HEADER_BYTES: usize = 5;
const ENCODING: &str = "grpc-encoding";
/// The encodings that are taken, for whoever sent another one.
pub(super) const ACCEPTED: (&str, HeaderValue) = ("grpc-accept-encoding", HeaderValue::from_static("identity,gzip"));

/// The frame of a plain message in place of the frame that came with these headers.
pub(super) fn plain(headers: &mut HeaderMap, frame: Bytes, bytes_max: usize) -> Result<Bytes, Problem> {
    let is_gzip = match headers.get(ENCODING) {
        None => false,
        Some(encoding) if encoding == "identity" => false,
        Some(encoding) if encoding == "gzip" => true,
        Some(encoding) => {
            let told = String::from_utf8_lossy(encoding.as_bytes());
            return Err(Problem::new(&UNIMPLEMENTED, format!("the grpc-encoding {told:?} is not taken; send identity or gzip")));
        }
    };
    let malformed = |why| Problem::new(&MALFORMED_MESSAGE, why);
    let Some((header, message)) = frame.split_first_chunk::<HEADER_BYTES>() else {
        return Err(malformed(if frame.is_empty() { "there is no message" } else { "the message ended early" }));
    };
    let [flag, a, b, c, d] = *header;
    match message.len().cmp(&(u32::from_be_bytes([a, b, c, d]) as usize)) {
        std::cmp::Ordering::Less => return Err(malformed("the message ended early")),
        std::cmp::Ordering::Equal => {}
        std::cmp::Ordering::Greater => return Err(malformed("there is more than one message")),
    }
    match flag {
        0 => {
            if is_gzip {
                headers.remove(ENCODING);
            }
            Ok(frame)
        }
        1 if is_gzip => {
            headers.remove(ENCODING);
            unpack(message, bytes_max)
        }
        1 => Err(malformed("the message is compressed, and the header grpc-encoding does not say how")),
        _ => Err(malformed("the message does not begin with gRPC's 0, or 1 for a compressed one")),
    }
}

fn unpack(packed: &[u8], bytes_max: usize) -> Result<Bytes, Problem> {
    let mut plain = Vec::with_capacity((2 * packed.len()).min(bytes_max + 1));
    let read = GzDecoder::new(packed).take(bytes_max as u64 + 1).read_to_end(&mut plain);
    read.map_err(|_| Problem::new(&MALFORMED_MESSAGE, "the message says that it is gzip, and is not"))?;
    if plain.len() > bytes_max {
        return Err(Problem::new(&BODY_TOO_LARGE, format!("a request of this method has at most {bytes_max} bytes, unpacked")));
    }
    let mut frame = BytesMut::with_capacity(HEADER_BYTES + plain.len());
    frame.put_u8(0);
    frame.put_u32(plain.len() as u32);
    frame.extend_from_slice(&plain);
    Ok(frame.freeze())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::status::Reason;

    fn packed(message: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(message).expect("in memory");
        encoder.finish().expect("in memory")
    }

    fn frame(flag: u8, message: &[u8]) -> Vec<u8> {
        [&[flag][..], &(message.len() as u32).to_be_bytes(), message].concat()
    }

    fn unpacked(encoding: Option<&str>, message: Vec<u8>) -> Result<Vec<u8>, &'static Reason> {
        let mut headers: HeaderMap =
            encoding.map(|text| (http::HeaderName::from_static(ENCODING), text.parse().expect("a value"))).into_iter().collect();
        let message = plain(&mut headers, message.into(), 1000).map_err(|problem| problem.reason)?;
        assert!(headers.get(ENCODING).is_none_or(|left| left == "identity"));
        Ok(message.to_vec())
    }

    #[test]
    fn one_whole_message_is_taken_plain_or_as_gzip() {
        let plain = frame(0, b"hello");
        for encoding in [None, Some("identity"), Some("gzip")] {
            assert_eq!(unpacked(encoding, plain.clone()), Ok(plain.clone()), "{encoding:?}");
        }
        assert_eq!(unpacked(Some("gzip"), frame(1, &packed(b"hello"))), Ok(plain.clone()));
        assert_eq!(unpacked(Some("gzip"), frame(1, &packed(&[7; 1000]))), Ok(frame(0, &[7; 1000])));
        assert_eq!(unpacked(Some("br"), plain), Err(&UNIMPLEMENTED));
        // A few hundred bytes that would be a hundred megabytes.
        assert_eq!(unpacked(Some("gzip"), frame(1, &packed(&[7; 1001]))), Err(&BODY_TOO_LARGE));
        assert_eq!(unpacked(Some("gzip"), frame(1, &packed(&vec![0; 100_000_000]))), Err(&BODY_TOO_LARGE));
        for broken in [frame(1, b"no gzip"), frame(1, &packed(b"hello")[..20])] {
            assert_eq!(unpacked(Some("gzip"), broken), Err(&MALFORMED_MESSAGE));
        }
        let two = [frame(0, b"a"), frame(0, b"b")].concat();
        for broken in [vec![], vec![0], vec![0, 0, 0, 0, 1], frame(0, b"half")[..7].to_vec(), two, frame(1, b"hello"), frame(2, b"hello")] {
            for encoding in [None, Some("identity")] {
                assert_eq!(unpacked(encoding, broken.clone()), Err(&MALFORMED_MESSAGE), "{broken:?}");
            }
        }
    }
}
