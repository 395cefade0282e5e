//! The rules of customers: no clock, no I/O.

pub mod role;
