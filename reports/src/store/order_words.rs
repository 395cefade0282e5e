//! The words by which orders are found. A row for each word of an order, so that a search reads the newest orders of its words, however many there are.

use std::collections::BTreeSet;

use lastro_database::rows::{Type, insert_rows};
use lastro_database::{Error, Transaction};
use sea_orm::Value;

use crate::domain::order::Order;
use crate::domain::words::words;

/// Rows of one statement: a buyer's key may have many words, and a statement has 5 s.
const ROWS_AT_ONCE: usize = 10_000;

/// Adds the words of new orders: of the names of their products, and of the buyer's key.
pub async fn add(tx: &Transaction, orders: &[Order]) -> Result<(), Error> {
    let columns = [("word", Type::Text), ("place", Type::Uuid)];
    let row = |word: String, order: &Order| -> Vec<Value> { vec![word.into(), order.place().into()] };
    let of = |order: &Order| words_of(order).into_iter().map(|word| row(word, order)).collect::<Vec<_>>();
    let rows: Vec<Vec<Value>> = orders.iter().flat_map(of).collect();
    for some in rows.chunks(ROWS_AT_ONCE) {
        insert_rows(tx, "order_words", &columns, "", some.to_vec()).await?;
    }
    Ok(())
}

/// The words of an order.
pub fn words_of(order: &Order) -> BTreeSet<String> {
    let names = order.items.iter().map(|item| item.product_name.as_str());
    names.chain([order.external_id.as_str()]).flat_map(words).collect()
}
