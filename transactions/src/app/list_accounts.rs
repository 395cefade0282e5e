//! Accounts with their balances.

use lastro_mesh::identity::User as Caller;
use lastro_mesh::page::Page;
use uuid::Uuid;

use super::{App, sees_all};
use crate::Error;
use crate::store::accounts::{self, AccountWithBalance};

/// The caller's; for an administrator all, or those of `owner_id`. Somebody else's owner id finds nothing.
pub async fn list_accounts(app: &App, caller: &Caller, owner_id: Option<&str>, page: Page) -> Result<(Vec<AccountWithBalance>, String), Error> {
    let asked = owner_id.and_then(|id| Uuid::parse_str(id).ok());
    let owner = match asked {
        None if sees_all(caller) => None,
        None => Some(caller.id),
        Some(owner) if owner == caller.id || sees_all(caller) => Some(owner),
        Some(_) => return Ok((Vec::new(), String::new())),
    };
    let mut found = accounts::list(app.database.reader(), owner, page).await?;
    let next = page.cut(&mut found, |one| one.account.id, |one| 400 + one.display_name.len());
    Ok((found, next))
}
