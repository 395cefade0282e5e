//! Transactions, newest first.

use lastro_mesh::identity::User as Caller;
use lastro_mesh::page::Page;

use super::get_account::get_account;
use super::{App, sees_all};
use crate::Error;
use crate::domain::operation::Operation;
use crate::store::operations::{self, Filter, Listed, Of};

/// Those of one account that the caller may see, or of all of its accounts; an administrator's are all. With a key the caller's own one alone.
pub async fn list_transactions(
    app: &App,
    caller: &Caller,
    account_id: Option<&str>,
    external_id: Option<&str>,
    filter: &Filter,
    page: Page,
) -> Result<(Vec<Operation>, String), Error> {
    let of = match account_id {
        Some(account_id) => Of::Account(get_account(app, caller, account_id).await?.account.id),
        None if sees_all(caller) => Of::Everybody,
        None => Of::Owner(caller.id),
    };
    let mut listed = match external_id {
        Some(key) => {
            let own = operations::by_keys(app.database.reader(), &[(caller.id, key)]).await?;
            let fits = |one: &Operation| is_of(one, of) && filter.has(one) && page.before.is_none_or(|before| one.id < before);
            Listed { operations: own.into_iter().filter(fits).collect(), scanned_to: None }
        }
        None => operations::list(&app.database, of, filter, page).await?,
    };
    let mut next = page.cut(&mut listed.operations, |operation| operation.id, Operation::answer_bytes);
    if let Some(scanned_to) = listed.scanned_to.filter(|_| next.is_empty()) {
        next = Page::token(scanned_to);
    }
    Ok((listed.operations, next))
}

/// Of the caller's own ones, which it sees whatever accounts they name.
fn is_of(operation: &Operation, of: Of) -> bool {
    match of {
        Of::Everybody | Of::Owner(_) => true,
        Of::Account(id) => operation.movement.parties().any(|party| party.account_id == id),
    }
}
