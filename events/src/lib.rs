//! The flow of events: the event store that is the outbox, the relay that publishes it, the bus with its two implementations, and the
//! consumer, which applies every event exactly once and in the order of its aggregate. Knows nothing of payments.

pub mod bus;
pub mod cache;
pub mod changes;
pub mod consumer;
mod cursor;
pub mod dead_letters;
pub mod event;
pub mod heartbeat;
pub mod inbox;
pub mod relay;
pub mod replay;
pub mod source;
pub mod store;

pub use consumer::{Consumer, Handler, Topic};
pub use event::{Event, NewEvent};
pub use heartbeat::Heartbeat;
pub use source::Source;
pub use store::EventStore;
