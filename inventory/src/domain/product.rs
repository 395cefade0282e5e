//! A product of the catalogue.

use lastro_money::Amount;
use uuid::Uuid;

/// A product. The price has a currency of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Product {
    pub id: Uuid,
    pub name: String,
    pub description: String,
    /// What one piece costs: more than zero.
    pub price: Amount,
    /// The account that is credited when a piece is sold, in the currency of the price.
    pub merchant_account_id: Uuid,
    pub active: bool,
    pub create_time_us: i64,
    pub update_time_us: i64,
}
