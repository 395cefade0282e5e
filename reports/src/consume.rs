//! What reports makes of the events of others.

pub mod accounts;
pub mod transactions;

use lastro_events::Event;
use lastro_events::consumer::Failure;
use prost::Message;
use uuid::Uuid;

fn decode<M: Message + Default>(event: &Event) -> Result<M, Failure> {
    M::decode(event.payload.as_slice()).map_err(|error| Failure::Event(error.to_string()))
}

fn id(field: &str, text: &str) -> Result<Uuid, Failure> {
    Uuid::parse_str(text).map_err(|error| Failure::Event(format!("{field}: {error}")))
}
