//! Transactions, newest first.

use lastro_mesh::identity::User as Caller;
use lastro_mesh::page::Page;

use super::get_account::get_account;
use super::{App, sees_all};
use crate::Error;
use crate::domain::operation::Operation;
use crate::store::operations::{self, Of};

/// Those of one account that the caller may see, or of all of its accounts; an administrator's are all.
pub async fn list_transactions(app: &App, caller: &Caller, account_id: &str, page: Page) -> Result<(Vec<Operation>, String), Error> {
    let of = if !account_id.is_empty() {
        Of::Account(get_account(app, caller, account_id).await?.account.id)
    } else if sees_all(caller) {
        Of::Everybody
    } else {
        Of::Owner(caller.id)
    };
    let mut found = operations::list(app.database.reader(), of, page).await?;
    let next = page.cut(&mut found, |operation| operation.id, Operation::answer_bytes);
    Ok((found, next))
}
