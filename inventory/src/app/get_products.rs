//! Products as they are at this moment, for services that sell them.

use futures_util::future::try_join_all;
use uuid::Uuid;

use super::App;
use crate::Error;
use crate::domain::product::Product;

/// In the order in which they were asked for; those that there are not are left out. Reads of many callers share a statement.
pub async fn get_products(app: &App, ids: &[Uuid]) -> Result<Vec<Product>, Error> {
    let found = try_join_all(ids.iter().map(|id| app.product_loader.load(*id))).await?;
    Ok(found.into_iter().flatten().collect())
}
