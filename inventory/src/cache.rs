//! The stock of products, cached: see [`lastro_events::cache`]. Every write of stock has its product forgotten before its caller is answered.

use std::time::Duration;

use lastro_database::{Database, Error};
use lastro_events::cache::{Cache, Cached};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::domain::stock::Stock;
use crate::store::{products, stock};

/// The stock of a product, by the name of the store.
pub type ProductStock = Vec<(String, Stock)>;

/// The cache of this process.
pub type StockCache = Cache<Stocks>;

/// The stock of products, as the database has it.
pub struct Stocks(pub Database);

impl Cached for Stocks {
    type Value = ProductStock;
    const CHANNEL: &'static str = "stock";
    const METRIC: &'static str = "lastro_stock_cache_total";
    const SHARED_FOR: Duration = Duration::from_secs(30);

    async fn query(&self, product_id: Uuid) -> Result<Option<ProductStock>, Error> {
        let rows = stock::of_product(self.0.reader(), product_id).await?;
        if rows.is_empty() && products::get(self.0.reader(), product_id).await?.is_none() {
            return Ok(None);
        }
        let rows = rows.into_iter().filter(|row| row.stock.version > 0);
        Ok(Some(rows.map(|row| (row.store_id, row.stock)).collect()))
    }

    async fn is_current(&self, _: Uuid, _: Option<&ProductStock>) -> Result<bool, Error> {
        // It is a moment old at most: Redis keeps it no longer than this process does.
        Ok(true)
    }

    fn to_bytes(stock: Option<&ProductStock>) -> Vec<u8> {
        let row = |(store_id, stock): &(String, Stock)| json!([store_id, stock.on_hand, stock.reserved, stock.version]);
        json!(stock.map(|stock| stock.iter().map(row).collect::<Vec<_>>())).to_string().into_bytes()
    }

    fn of_bytes(bytes: &[u8]) -> Option<Option<ProductStock>> {
        let row = |row: &Value| {
            let stock = Stock { on_hand: row[1].as_i64()?, reserved: row[2].as_i64()?, version: row[3].as_i64()? };
            Some((row[0].as_str()?.to_owned(), stock))
        };
        match serde_json::from_slice(bytes).ok()? {
            Value::Null => Some(None),
            Value::Array(rows) => rows.iter().map(row).collect::<Option<_>>().map(Some),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_reads_back() {
        let stock = vec![("a".to_owned(), Stock { on_hand: 3, reserved: 1, version: 7 }), ("b".to_owned(), Stock::default())];
        assert_eq!(Stocks::of_bytes(&Stocks::to_bytes(Some(&stock))), Some(Some(stock)));
        assert_eq!(Stocks::of_bytes(&Stocks::to_bytes(None)), Some(None));
        assert_eq!(Stocks::of_bytes(b"x"), None);
        assert_eq!(Stocks::of_bytes(b"[[1]]"), None);
    }
}
