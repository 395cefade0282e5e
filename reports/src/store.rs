//! The tables of reports: SQL, one statement for a whole batch.

pub mod accounts;
pub mod counts;
pub mod daily;
pub mod early;
pub mod edition;
pub mod entries;
pub mod operations;
pub mod order_days;
pub mod order_words;
pub mod orders;
