//! Closes one account, for ever.

use lastro_mesh::call::Call;
use lastro_mesh::identity::User as Caller;
use lastro_money::Minor;
use lastro_proto::permissions::Permission;
use uuid::Uuid;

use super::App;
use super::get_account::get_account;
use super::update_account::lock;
use crate::store::account_events::Cause;
use crate::store::accounts::{self, AccountWithBalance};
use crate::store::operations::{self, Named};
use crate::{ACCOUNT_EVENTS, Error};

/// For its owner, or an administrator. What slips in later is REJECTED at settlement, since it finds the account closed.
pub async fn close_account(app: &App, call: &Call, caller: &Caller, id: &str) -> Result<AccountWithBalance, Error> {
    let seen = get_account(app, caller, id).await?;
    if seen.account.owner_id != caller.id && !caller.may(Permission::AdministerAccounts) {
        return Err(Error::AccountNotYours("only its owner or an administrator closes an account"));
    }
    // A hold is dead when its time is over, whether or not its release is written yet. It is released before the account is looked at: afterwards nobody
    // could tell an account that was kept by a hold, which was released since, from one that something else keeps.
    app.pipeline.release_expired(Named::Account(seen.account.id)).await?;
    close(app, call, seen.account.id).await
}

async fn close(app: &App, call: &Call, id: Uuid) -> Result<AccountWithBalance, Error> {
    let tx = app.database.begin().await?;
    let mut account = lock(&tx, id).await?;
    if account.closed {
        return Ok(account);
    }
    if account.posted != Minor::ZERO || account.held != Minor::ZERO {
        return Err(Error::AccountNotEmpty);
    }
    if operations::any_open_of_account(&tx, account.account.id).await? {
        return Err(Error::AccountInUse);
    }
    accounts::close(&tx, &[account.account.id], Cause { correlation_id: call.correlation_id.as_str(), event_id: None }).await?;
    tx.commit().await.map_err(lastro_database::Error::from)?;
    app.bus.wake(ACCOUNT_EVENTS.topic);
    account.closed = true;
    Ok(account)
}
