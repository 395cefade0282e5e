//! What has happened to the stock of a product in a store.

use lastro_events::Event;
use lastro_mesh::call::Call;
use lastro_mesh::page::Page;
use uuid::Uuid;

use super::{App, id};
use crate::Error;
use crate::domain::stock::stock_id;
use crate::store::{products, stock};

/// A page of it, oldest first, with the token of the next one.
pub async fn list_stock_events(app: &App, call: &Call, product_id: &str, store_id: &str, page: Page) -> Result<(Vec<Event>, String), Error> {
    let product_id = id(product_id, "product_id")?;
    // A token names the last version that was read.
    let read_to = page.before.map_or(0, |last| i64::try_from(last.as_u128()).unwrap_or(i64::MAX));
    let limit = u32::try_from(page.limit()).unwrap_or(u32::MAX);
    let (database, stock_id) = (app.database.clone(), stock_id(product_id, store_id));
    let read = async move { stock::events(&database, stock_id, read_to.saturating_add(1), limit).await };
    let mut events = app.reads.read(call, product_id, read).await?;
    if events.is_empty() && products::get(app.database.reader(), product_id).await?.is_none() {
        return Err(Error::ProductNotFound { field: None });
    }
    let token = |event: &Event| Uuid::from_u128(u128::from(event.version.unsigned_abs()));
    let next = page.cut(&mut events, token, |event| 400 + event.payload.len() + event.correlation_id.len());
    Ok((events, next))
}
