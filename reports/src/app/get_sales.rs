//! What a merchant has sold: by day and product of one of its accounts.

use lastro_mesh::call::Call;
use lastro_mesh::status::Problem;

use super::App;
use super::freshness::SeesBy;
use crate::Error;
use crate::domain::order::{Sale, SaleOf};
use crate::store::order_days;

/// Rows of one answer.
const ROWS_MAX: u64 = 10_000;

/// What was sold of one's products and paid to an account, and given back, from a day to another one; by default the last 30 days.
pub async fn get_sales(
    app: &App,
    call: &Call,
    account_id: &str,
    from: Option<&str>,
    to: Option<&str>,
    sees_by: Option<&SeesBy>,
) -> Result<Vec<(SaleOf, Sale)>, Error> {
    let (from, to) = app.days(from, to)?;
    let caller = call.user()?;
    let account = app.account(caller, account_id, sees_by).await?;
    let database = app.database.clone();
    let read = async move { order_days::sales(database.reader(), account.id, from, to, ROWS_MAX + 1).await };
    let rows = app.reads.read(call, caller.id, read).await?;
    if rows.len() as u64 > ROWS_MAX {
        return Err(Problem::field("from", format!("must be later: an answer has {ROWS_MAX} rows at most, and these days have more")).into());
    }
    Ok(rows)
}
