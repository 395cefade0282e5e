//! The rules of reports: pure, without clock, database or wire.

pub mod calendar;
pub mod heads;
pub mod operation;
pub mod order;
pub mod total;
pub mod words;
