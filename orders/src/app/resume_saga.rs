//! Goes on with a saga that waits or has failed, for an administrator.

use std::sync::Arc;

use lastro_mesh::call::Call;
use lastro_mesh::identity::User as Caller;

use super::{App, change};
use crate::Error;
use crate::batches::Asked;
use crate::store::orders::Order;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Retry,
    Compensate,
}

/// The order as it stands then.
pub async fn resume_saga(app: &Arc<App>, call: &Call, caller: &Caller, id: &str, action: Action) -> Result<Order, Error> {
    let order = app.order_of(caller, id).await?;
    let asked = match action {
        Action::Retry => Asked::Retry,
        Action::Compensate => Asked::GiveUp,
    };
    Ok(change(app, call, &order, asked).await?.order)
}
