//! One account with its balances.

use lastro_mesh::identity::User as Caller;
use uuid::Uuid;

use super::{App, sees_all};
use crate::Error;
use crate::store::accounts::AccountWithBalance;

/// The caller's own, or any for an administrator.
pub async fn get_account(app: &App, caller: &Caller, id: &str) -> Result<AccountWithBalance, Error> {
    let id = Uuid::parse_str(id).map_err(|_| Error::AccountNotFound { field: None })?;
    let found = app.account_loader.load(id).await?;
    found.filter(|found| found.account.owner_id == caller.id || sees_all(caller)).ok_or(Error::AccountNotFound { field: None })
}
