//! W3C trace context: <https://www.w3.org/TR/trace-context/>.

use http::{HeaderMap, HeaderValue};

use crate::call::is_ambiguous;

/// The header that carries it.
pub const TRACEPARENT: &str = "traceparent";

/// The header in which an answer tells its trace: <https://w3c.github.io/trace-context/#trace-context-http-response-headers-format>.
pub const TRACERESPONSE: &str = "traceresponse";

/// A trace and the span in it that made the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// 16 bytes, never zero.
    pub trace_id: u128,
    /// 8 bytes, never zero.
    pub span_id: u64,
    /// The caller recorded it.
    pub sampled: bool,
}

impl TraceContext {
    /// A trace that starts here.
    pub fn start() -> Self {
        Self { trace_id: rand::random::<u128>().max(1), span_id: rand::random::<u64>().max(1), sampled: false }
    }

    /// The caller's, if there is one that is well-formed: `00-<32 hex>-<16 hex>-<2 hex>`.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        Self::accept(headers.get(TRACEPARENT).filter(|_| !is_ambiguous(headers, TRACEPARENT)))
    }

    fn accept(header: Option<&HeaderValue>) -> Option<Self> {
        let text = header?.to_str().ok()?;
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let lower_hex = |part: &str, width: usize| part.len() == width && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !lower_hex(version, 2) || version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        if !lower_hex(trace, 32) || !lower_hex(span, 16) || !lower_hex(flags, 2) {
            return None;
        }
        let trace_id = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
        let span_id = u64::from_str_radix(span, 16).ok().filter(|id| *id != 0)?;
        Some(Self { trace_id, span_id, sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1 })
    }

    /// The same trace, one span further.
    pub fn child(self) -> Self {
        Self { span_id: rand::random::<u64>().max(1), ..self }
    }

    /// As the header's value.
    pub fn to_header(self) -> HeaderValue {
        let text = format!("00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled));
        HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let context = TraceContext { sampled: true, ..TraceContext::start() };
        assert_eq!(TraceContext::accept(Some(&context.to_header())), Some(context));
    }

    #[test]
    fn refuses_what_the_specification_refuses() {
        let good = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
        for text in [
            format!("ff-{good}-01"),
            format!("00-{good}-01-x"),
            format!("00-{}-01", good.to_uppercase()),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01".to_owned(),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01".to_owned(),
            "00-4bf9-00f0-01".to_owned(),
        ] {
            let header = HeaderValue::from_str(&text).expect("ascii");
            assert_eq!(TraceContext::accept(Some(&header)), None, "{text}");
        }
        // A later version may say more; what we know of it is read.
        let later = HeaderValue::from_str(&format!("01-{good}-01-more")).expect("ascii");
        assert!(TraceContext::accept(Some(&later)).is_some());
    }
}
