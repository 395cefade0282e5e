//! The tables of reports: SQL, one statement for a whole batch.

pub mod accounts;
pub mod calendar;
pub mod counts;
pub mod daily;
pub mod entries;
pub mod operations;
