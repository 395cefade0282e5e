//! How many transactions there were, and how they ended.

use lastro_mesh::call::Call;
use lastro_mesh::status::Problem;
use uuid::Uuid;

use super::{App, sees_all};
use crate::Error;
use crate::domain::operation::{Counts, CountsOf};
use crate::store::counts;

/// Rows of one answer.
const ROWS_MAX: u64 = 10_000;

/// Those that the caller submitted; an administrator's are everybody's.
pub async fn get_transaction_report(app: &App, call: &Call, from: Option<&str>, to: Option<&str>) -> Result<Vec<(CountsOf, Counts)>, Error> {
    let (caller, (from, to)) = (call.user()?, app.days(from, to)?);
    let owner_id = if sees_all(caller) { Uuid::nil() } else { caller.id };
    let database = app.database.clone();
    let read = async move { counts::list(database.reader(), owner_id, from, to, ROWS_MAX + 1).await };
    let rows = app.reads.read(call, caller.id, read).await?;
    if rows.len() as u64 > ROWS_MAX {
        return Err(Problem::field("from", format!("must be later: an answer has {ROWS_MAX} rows at most, and these days have more")).into());
    }
    Ok(rows)
}
