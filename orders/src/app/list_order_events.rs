//! What has happened to an order, oldest first.

use lastro_events::Event;
use lastro_mesh::identity::User as Caller;

use super::App;
use crate::Error;
use crate::store::order_events::ORDER_EVENTS;

/// All of its events: an order has few.
pub async fn list_order_events(app: &App, caller: &Caller, id: &str) -> Result<Vec<Event>, Error> {
    let order = app.order_of(caller, id).await?;
    Ok(ORDER_EVENTS.stream(&app.database, order.placed.id).await?)
}
