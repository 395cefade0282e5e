//! The rules of orders and of their sagas: no clock, no I/O, no async. Time comes in as an argument.

pub mod order;
pub mod saga;
