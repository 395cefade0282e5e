//! One order, for who placed it and administrators.

use lastro_mesh::identity::User as Caller;

use super::App;
use crate::Error;
use crate::store::orders::Order;

/// As it stands.
pub async fn get_order(app: &App, caller: &Caller, id: &str) -> Result<Order, Error> {
    app.order_of(caller, id).await
}
