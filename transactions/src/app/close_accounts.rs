//! Closes every account of a user, or none: before it is deleted.

use uuid::Uuid;

use super::App;
use crate::Error;
use crate::store::{accounts, operations, users};

/// Refused while one of them has money, or is named by an operation that is not settled yet. What slips in later is REJECTED at settlement, since
/// it finds the account closed.
pub async fn close_accounts(app: &App, user_id: &str) -> Result<(), Error> {
    let user_id = Uuid::parse_str(user_id).map_err(|_| Error::OwnerNotAllowed)?;
    let tx = app.database.begin().await?;
    users::lock_owner(&tx, user_id).await?;
    let open = accounts::lock_open(&tx, user_id).await?;
    if open.iter().any(|balance| !balance.is_empty()) || operations::any_open_of(&tx, user_id).await? {
        return Err(Error::UserHasMoney);
    }
    accounts::close_empty(&tx, user_id, open.len()).await?;
    Ok(tx.commit().await.map_err(lastro_database::Error::from)?)
}
