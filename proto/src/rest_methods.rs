//! The methods that REST offers, each as a type with what depends on its messages: the gateway has one handler for all of them.

use lastro_mesh::codec::Checked;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::methods::{METHODS, Method};
pub use crate::r#type::v1::Progress;

/// A method that REST offers.
pub trait RestMethod: Send + Sync + 'static {
    /// What the table says of it.
    const METHOD: &'static Method;
    /// What it takes.
    type Request: prost::Message + Default + DeserializeOwned + Checked + 'static;
    /// What it answers; one that streams, each time.
    type Answer: prost::Message + Default + Serialize + Checked + 'static;

    /// The idempotency key, where the header `Idempotency-Key` may carry it.
    fn external_id(_: &mut Self::Request) -> Option<&mut String> {
        None
    }

    /// For how long to wait for the outcome, where the header `Prefer` may say it.
    fn wait(_: &mut Self::Request) -> Option<&mut Option<pbjson_types::Duration>> {
        None
    }

    /// Whether the call stores nothing, and is only told what would happen.
    fn validates_only(_: &Self::Request) -> bool {
        false
    }

    /// Where the request says which page it wants: how many messages, and from where. Of a method whose pages a table has all of.
    fn page(_: &mut Self::Request) -> Option<(&mut i32, &mut String)> {
        None
    }

    /// From where the next page goes on; empty where there is none.
    fn next_page_token(_: &Self::Answer) -> &str {
        ""
    }

    /// Where the thing is that a call made.
    fn location(_: &Self::Answer) -> Option<String> {
        None
    }

    /// Whether the answer repeats what an earlier call made.
    fn is_replayed(_: &Self::Answer) -> bool {
        false
    }

    /// How far the state in the answer is from its end.
    fn progress(_: &Self::Answer) -> Progress {
        Progress::Final
    }

    /// Of a method that streams: the id of what it answers, by which a reader says later from where it goes on.
    fn event_id(_: &Self::Answer) -> &str {
        ""
    }

    /// Of a method that streams: the event after which it goes on, where the header `Last-Event-ID` may say it.
    fn last_event_id(_: &mut Self::Request) -> Option<&mut Option<String>> {
        None
    }
}

/// What is done with every method that REST offers.
pub trait Visitor {
    /// One that answers once.
    fn unary<M: RestMethod>(&mut self);
    /// One that answers again and again.
    fn streaming<M: RestMethod>(&mut self);
}

include!(concat!(env!("OUT_DIR"), "/rest_methods.rs"));

/// Everything but what RFC 3986 calls unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A text as it stands in a part of a URL.
pub fn escaped(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, RESERVED)
}
