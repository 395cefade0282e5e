//! The tables of orders: statements, and nothing else.

mod log;
pub mod order_events;
pub mod orders;
