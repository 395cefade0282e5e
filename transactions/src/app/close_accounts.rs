//! Closes every account of a user, or none: before it is deleted.

use lastro_mesh::call::Call;
use uuid::Uuid;

use super::App;
use crate::ACCOUNT_EVENTS;
use crate::Error;
use crate::store::account_events::Cause;
use crate::store::operations::{self, Named};
use crate::store::{accounts, users};

/// Refused while one of them has money, or is named by an operation that is not settled yet, or while deposits of others wait for what the user reports. What slips in later is REJECTED at settlement, since
/// it finds the account closed.
pub async fn close_accounts(app: &App, call: &Call, user_id: &str) -> Result<(), Error> {
    let user_id = Uuid::parse_str(user_id).map_err(|_| Error::OwnerNotAllowed)?;
    // As for one account: a hold whose time is over keeps nobody.
    app.pipeline.release_expired(Named::AccountsOf(user_id)).await?;
    close_all(app, call, user_id).await
}

async fn close_all(app: &App, call: &Call, user_id: Uuid) -> Result<(), Error> {
    let tx = app.database.begin().await?;
    users::lock_owner(&tx, user_id).await?;
    let open = accounts::lock_open(&tx, user_id).await?;
    if open.iter().any(|balance| !balance.is_empty()) || operations::any_open_of_owner(&tx, user_id).await? {
        return Err(Error::UserHasMoney);
    }
    // Nobody else reports what becomes of them, and the accounts that they credit could never be closed.
    if operations::any_waiting_for(&tx, user_id).await? {
        return Err(Error::UserHasMoney);
    }
    let open: Vec<Uuid> = open.iter().map(|balance| balance.account_id).collect();
    accounts::close(&tx, &open, Cause { correlation_id: call.correlation_id.as_str(), event_id: None }).await?;
    tx.commit().await.map_err(lastro_database::Error::from)?;
    app.bus.wake(ACCOUNT_EVENTS.topic);
    Ok(())
}
