//! The stock of a product, now or at an instant of the past.

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::status::Problem;
use uuid::Uuid;

use super::{App, id};
use crate::Error;
use crate::cache::ProductStock;
use crate::store::{products, stock};

/// In all stores, or in one. The stock of this moment comes from the cache.
pub async fn get_stock(
    app: &App,
    call: &Call,
    product_id: &str,
    store_id: Option<&str>,
    as_of_us: Option<i64>,
) -> Result<(Uuid, ProductStock), Error> {
    let product_id = id(product_id, "product_id")?;
    let not_found = || Error::ProductNotFound { field: None };
    let stock = match as_of_us {
        None => app.cache.get(product_id).await?.ok_or_else(not_found)?.as_ref().clone(),
        // Clocks of replicas and callers differ by a little.
        Some(at_us) if at_us > clock::now_us().saturating_add(5_000_000) => return Err(Problem::field("as_of", "must not be in the future").into()),
        Some(at_us) => {
            let database = app.database.clone();
            let read = async move { stock::of_product_at(database.reader(), product_id, at_us).await };
            let found = app.reads.read(call, product_id, read).await?;
            if found.is_empty() {
                products::get(app.database.reader(), product_id).await?.ok_or_else(not_found)?;
            }
            found
        }
    };
    let is_asked_for = |of: &str| store_id.is_none_or(|asked| asked == of);
    Ok((product_id, stock.into_iter().filter(|(store_id, _)| is_asked_for(store_id)).collect()))
}
