//! The table `adjustments`: what was asked for with an idempotency key, and what the stock was afterwards.

use lastro_database::Error;
use lastro_database::rows::{Type, all_of_ids, insert_rows};
use sea_orm::{ConnectionTrait, FromQueryResult};
use uuid::Uuid;

use super::hash;
use crate::domain::stock::Stock;

/// An adjustment that was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Adjustment {
    /// A hash of caller and key.
    pub id: Uuid,
    /// Of the call that made it.
    pub call_id: Uuid,
    pub request_hash: [u8; 32],
    pub product_id: Uuid,
    pub store_id: String,
    /// As it was afterwards.
    pub stock: Stock,
    pub create_time_us: i64,
}

#[derive(FromQueryResult)]
struct Row {
    id: Uuid,
    call_id: Uuid,
    request_hash: Vec<u8>,
    product_id: Uuid,
    store_id: String,
    on_hand: i64,
    reserved: i64,
    version: i64,
    create_time_us: i64,
}

const COLUMNS: &[(&str, Type)] = &[
    ("id", Type::Uuid),
    ("call_id", Type::Uuid),
    ("request_hash", Type::Bytes),
    ("product_id", Type::Uuid),
    ("store_id", Type::Text),
    ("on_hand", Type::BigInt),
    ("reserved", Type::BigInt),
    ("version", Type::BigInt),
    ("create_time_us", Type::BigInt),
];

/// An error of kind `Unique` where one of them exists.
pub async fn insert(on: &impl ConnectionTrait, adjustments: &[&Adjustment]) -> Result<(), Error> {
    let row = |one: &&Adjustment| {
        vec![
            one.id.into(),
            one.call_id.into(),
            one.request_hash.to_vec().into(),
            one.product_id.into(),
            one.store_id.clone().into(),
            one.stock.on_hand.into(),
            one.stock.reserved.into(),
            one.stock.version.into(),
            one.create_time_us.into(),
        ]
    };
    insert_rows(on, "adjustments", COLUMNS, "", adjustments.iter().map(row).collect()).await.map(|_| ())
}

/// Those of these ids that exist.
pub async fn by_ids(on: &impl ConnectionTrait, ids: &[Uuid]) -> Result<Vec<Adjustment>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let sql = "SELECT id, call_id, request_hash, product_id, store_id, on_hand, reserved, version, create_time_us FROM adjustments WHERE id {ids}";
    let rows: Vec<Row> = all_of_ids(on, sql, ids, []).await?;
    let read = |row: Row| {
        let Row { id, call_id, request_hash, product_id, store_id, on_hand, reserved, version, create_time_us } = row;
        let stock = Stock { on_hand, reserved, version };
        Ok(Adjustment { id, call_id, request_hash: hash(request_hash)?, product_id, store_id, stock, create_time_us })
    };
    rows.into_iter().map(read).collect()
}
