//! Keeps pieces of products for somebody: all or none.

use std::collections::HashSet;

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::status::Problem;
use lastro_proto::inventory::v1::ReserveStockRequest;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{App, id, stored};
use crate::Error;
use crate::batches::{AskedItem, Made, NewReservation, Refused};
use crate::domain::reservation::{PUBLIC, reservation_id};
use crate::domain::stock::stock_id;
use crate::store::sagas::SagaEpoch;
use crate::store::stock;

const TTL_US: i64 = 15 * 60 * 1_000_000;
const TTL_US_MAX: i64 = 30 * 24 * 3600 * 1_000_000;

/// What is asked for of one product.
pub struct WantedItem {
    pub product_id: String,
    /// None: any store.
    pub store_id: Option<String>,
    pub quantity: i64,
}

/// What a reservation is to be, whoever asks for it.
pub struct Wanted {
    pub namespace: Uuid,
    pub name: String,
    pub items: Vec<WantedItem>,
    pub ttl_us: i64,
    pub fence: Option<SagaEpoch>,
}

/// The same name again with the same request: the same reservation, as it stands.
pub async fn reserve_stock(app: &App, call: &Call, request: ReserveStockRequest) -> Result<Made, Error> {
    let ttl_us = ttl_us(request.ttl.as_ref().map(|ttl| (ttl.seconds, ttl.nanos)))?;
    let wanted = |item: lastro_proto::inventory::v1::ReserveItem| WantedItem {
        product_id: item.product_id,
        store_id: item.store_id,
        quantity: i64::from(item.quantity),
    };
    let items = request.items.into_iter().map(wanted).collect();
    let made = reserve(app, call, Wanted { namespace: PUBLIC, name: request.reservation_id, items, ttl_us, fence: None }).await?;
    app.cache.told(&made.reservation.products()).await;
    Ok(made)
}

/// For a caller, or for a saga.
pub async fn reserve(app: &App, call: &Call, wanted: Wanted) -> Result<Made, Error> {
    let request_hash = request_hash(&wanted);
    let mut products = HashSet::new();
    let mut asked = Vec::with_capacity(wanted.items.len());
    for (index, item) in wanted.items.iter().enumerate() {
        let product_id = id(&item.product_id, &format!("items[{index}].product_id"))?;
        if !products.insert(product_id) {
            return Err(Problem::field(format!("items[{index}].product_id"), "must be another product than those before it").into());
        }
        // Not from the cache, which each reservation empties.
        let stores = app.stores_loader.load(product_id).await?;
        let stores = stores.ok_or_else(|| Error::ProductNotFound { field: Some(format!("items[{index}].product_id")) })?;
        // One that has never had anything is not locked, and has nothing.
        let is_asked_for = |store_id: &&String| item.store_id.as_ref().is_none_or(|asked| asked == *store_id);
        let stocks = stores.iter().filter(is_asked_for).map(|store_id| stock_id(product_id, store_id)).collect();
        asked.push(AskedItem { product_id, stocks, quantity: item.quantity });
    }
    let new = |items: Vec<AskedItem>| NewReservation {
        id: reservation_id(wanted.namespace, &wanted.name),
        namespace: wanted.namespace,
        name: wanted.name.clone(),
        call_id: clock::new_id(),
        request_hash: Some(request_hash),
        items,
        ttl_us: wanted.ttl_us,
        fence: wanted.fence,
        correlation_id: call.correlation_id.to_string(),
    };
    match stored(call, app.batches.reserve(new(asked.clone()))).await {
        // A product that came into a store a moment ago may be in it, and not in what was read.
        Err(Refused::OutOfStock(short)) => {
            let known = stock::stores_of(app.database.reader(), &products.iter().copied().collect::<Vec<_>>()).await?;
            let mut complete = asked.clone();
            for (item, wanted) in complete.iter_mut().zip(&wanted.items) {
                let is_asked_for = |store_id: &&String| wanted.store_id.as_ref().is_none_or(|asked| asked == *store_id);
                let stores = known.iter().filter(|(product_id, _)| *product_id == item.product_id).map(|(_, store_id)| store_id);
                item.stocks = stores.filter(is_asked_for).map(|store_id| stock_id(item.product_id, store_id)).collect();
            }
            let is_same = complete.iter().zip(&asked).all(|(now, then)| now.stocks.len() == then.stocks.len());
            if is_same { Err(Refused::OutOfStock(short).into()) } else { Ok(stored(call, app.batches.reserve(new(complete))).await?) }
        }
        made => Ok(made?),
    }
}

/// How long it lives, in microseconds.
pub fn ttl_us(ttl: Option<(i64, i32)>) -> Result<i64, Problem> {
    let Some((seconds, nanos)) = ttl else { return Ok(TTL_US) };
    let micros = seconds.checked_mul(1_000_000).and_then(|micros| micros.checked_add(i64::from(nanos) / 1000));
    micros.filter(|micros| (1_000_000..=TTL_US_MAX).contains(micros)).ok_or_else(|| Problem::field("ttl", "must be 1 s to 30 days, such as \"900s\""))
}

fn request_hash(wanted: &Wanted) -> [u8; 32] {
    let mut hash = Sha256::new();
    for item in &wanted.items {
        hash.update(item.product_id.to_lowercase());
        hash.update(b"\0");
        hash.update(item.store_id.as_deref().unwrap_or_default());
        hash.update(b"\0");
        hash.update(item.quantity.to_be_bytes());
    }
    hash.update(wanted.ttl_us.to_be_bytes());
    hash.finalize().into()
}
