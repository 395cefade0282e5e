//! Says how far the pieces of an order are on their way.

use std::sync::Arc;

use lastro_mesh::call::Call;
use lastro_mesh::identity::User as Caller;

use super::{App, change};
use crate::Error;
use crate::batches::Asked;
use crate::domain::order::Status;
use crate::store::orders::Order;

/// The order as it stands then.
pub async fn update_order_status(app: &Arc<App>, call: &Call, caller: &Caller, id: &str, status: Status) -> Result<Order, Error> {
    let order = app.order_of(caller, id).await?;
    Ok(change(app, call, &order, Asked::SetStatus(status)).await?.order)
}
