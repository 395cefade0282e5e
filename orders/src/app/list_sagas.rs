//! The sagas of all orders, for administrators.

use lastro_mesh::page::Page;

use super::App;
use crate::Error;
use crate::domain::saga::State;
use crate::store::orders::{self, Order};

/// Bytes of an order in an answer, without what others have said about it.
const SAGA_BYTES: usize = 1_500;

/// A page, newest first, and the token of the next one.
pub async fn list_sagas(app: &App, state: Option<State>, page: Page) -> Result<(Vec<Order>, String), Error> {
    let mut found = orders::list_by_saga(app.database.reader(), state, page).await?;
    let bytes = |order: &Order| SAGA_BYTES + order.progress.saga.detail.len();
    let next = page.cut(&mut found, |order| order.placed.id, bytes);
    Ok((found, next))
}
