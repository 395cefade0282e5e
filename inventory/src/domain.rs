//! The rules of products, stock and reservations, without any I/O.

pub mod product;
pub mod reservation;
pub mod stock;
