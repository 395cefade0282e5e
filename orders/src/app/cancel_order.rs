//! Cancels an order: what was done for it is undone.

use std::sync::Arc;

use lastro_mesh::call::Call;
use lastro_mesh::identity::User as Caller;

use super::{App, change};
use crate::Error;
use crate::batches::{Accepted, Asked};

/// The order as it stands then. Its saga is taken over from whoever has it: what that one does meanwhile is refused, or undone.
pub async fn cancel_order(app: &Arc<App>, call: &Call, caller: &Caller, id: &str) -> Result<Accepted, Error> {
    let order = app.order_of(caller, id).await?;
    change(app, call, &order, Asked::Cancel).await
}
