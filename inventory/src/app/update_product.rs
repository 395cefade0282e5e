//! Changes a product.

use lastro_database::group_commit::Lock;
use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_proto::inventory::v1::UpdateProductRequest;

use super::{App, confirm_merchant, id, read_price};
use crate::Error;
use crate::domain::product::Product;
use crate::store::products::{self, PRODUCT_EVENTS};

/// The product as it is then. What is not given, or is so already, stays as it is and is no event.
pub async fn update_product(app: &App, call: &Call, request: UpdateProductRequest) -> Result<Product, Error> {
    let product_id = id(&request.id, "id")?;
    let price = request.price.as_ref().map(|price| read_price(Some(price))).transpose()?;
    let merchant_account_id = request.merchant_account_id.as_deref().map(|account| id(account, "merchant_account_id")).transpose()?;
    let seen = products::get(app.database.reader(), product_id).await?.ok_or(Error::ProductNotFound { field: None })?;
    // Both together: an account in the currency of the price.
    if price.is_some() || merchant_account_id.is_some() {
        let account = merchant_account_id.unwrap_or(seen.merchant_account_id);
        confirm_merchant(app, call, account, price.unwrap_or(seen.price).currency()).await?;
    }
    let tx = app.database.begin().await?;
    let before = products::lock(&tx, product_id, Lock::Wait).await?.ok_or(Error::ProductNotFound { field: None })?;
    // Whoever changed one of the two meanwhile was confirmed with the other one as it was.
    if (price.is_some() || merchant_account_id.is_some())
        && (before.merchant_account_id != seen.merchant_account_id || before.price.currency() != seen.price.currency())
    {
        return Err(Error::ChangedMeanwhile);
    }
    let mut after = Product {
        name: request.name.unwrap_or_else(|| before.name.clone()),
        description: request.description.unwrap_or_else(|| before.description.clone()),
        price: price.unwrap_or(before.price),
        merchant_account_id: merchant_account_id.unwrap_or(before.merchant_account_id),
        active: request.active.unwrap_or(before.active),
        ..before.clone()
    };
    if after == before {
        return Ok(before);
    }
    after.update_time_us = clock::now_us().max(before.update_time_us);
    products::update(&tx, &after, call.correlation_id.as_str()).await?;
    tx.commit().await.map_err(lastro_database::Error::from)?;
    app.bus.wake(PRODUCT_EVENTS.topic);
    Ok(after)
}
