//! The flow of events: the event store that is the outbox, the relay that publishes it, the bus with its two implementations, and the
//! inbox that applies every event exactly once and in the order of its aggregate. Knows nothing of payments.

pub mod bus;
pub mod consumer;
pub mod event;
pub mod inbox;
pub mod relay;
pub mod store;

pub use consumer::{Consumer, Handler};
pub use event::{Event, NewEvent};
pub use store::EventStore;
