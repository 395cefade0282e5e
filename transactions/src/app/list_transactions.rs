//! Transactions, newest first.

use lastro_mesh::identity::User as Caller;
use lastro_mesh::page::Page;
use uuid::Uuid;

use super::get_account::get_account;
use super::{App, sees_all};
use crate::Error;
use crate::store::accounts;
use crate::store::operations::{self, Operation};

/// Those of one account that the caller may see, or of all of its accounts; an administrator's are all.
pub async fn list_transactions(app: &App, caller: &Caller, account_id: &str, page: Page) -> Result<(Vec<Operation>, String), Error> {
    let reader = app.database.reader();
    let mut found = if !account_id.is_empty() {
        let account = get_account(app, caller, account_id).await?.account;
        operations::list_of_accounts(reader, &[account.id], page).await?
    } else if sees_all(caller) {
        operations::list(reader, page).await?
    } else {
        let accounts: Vec<Uuid> = accounts::ids_of(reader, caller.id).await?;
        operations::list_of_accounts(reader, &accounts, page).await?
    };
    let next = page.cut(&mut found, |operation| operation.id, Operation::answer_bytes);
    Ok((found, next))
}
