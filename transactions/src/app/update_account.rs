//! Changes an account: its name, its credit limit, whether it is frozen.

use lastro_mesh::call::Call;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::status::Problem;
use lastro_money::Minor;
use lastro_proto::permissions::Permission;
use lastro_proto::transactions::v1::UpdateAccountRequest;
use uuid::Uuid;

use super::App;
use super::get_account::get_account;
use crate::store::account_events::Cause;
use crate::store::accounts::{self, AccountWithBalance};
use crate::{ACCOUNT_EVENTS, Error};

/// The account as it is then. What is not given, or is so already, stays as it is and is no event.
pub async fn update_account(app: &App, call: &Call, caller: &Caller, request: UpdateAccountRequest) -> Result<AccountWithBalance, Error> {
    let seen = get_account(app, caller, &request.id).await?;
    if request.display_name.is_some() && seen.account.owner_id != caller.id {
        return Err(Error::AccountNotYours("only its owner changes what an account is called"));
    }
    if (request.credit_limit.is_some() || request.frozen.is_some()) && !caller.may(Permission::AdministerAccounts) {
        return Err(
            Problem::permission(Permission::AdministerAccounts.name(), "only an administrator changes credit limits and freezes accounts").into()
        );
    }
    let credit_limit = request.credit_limit.map(|money| credit_limit(app, &seen, &money.currency_code, &money.amount)).transpose()?;
    let (id, cause) = (seen.account.id, Cause { correlation_id: call.correlation_id.as_str(), event_id: None });

    let tx = app.database.begin().await?;
    let mut account = lock(&tx, id).await?;
    if account.closed {
        return Err(Error::AccountClosed);
    }
    if let Some(name) = request.display_name.filter(|name| *name != account.display_name) {
        accounts::rename(&tx, id, &name, cause).await?;
        account.display_name = name;
    }
    if let Some(limit) = credit_limit.filter(|limit| *limit != account.credit_limit) {
        accounts::set_credit_limit(&tx, id, limit, cause).await?;
        account.credit_limit = limit;
    }
    if let Some(frozen) = request.frozen.filter(|frozen| *frozen != account.frozen) {
        accounts::set_frozen(&tx, id, frozen, cause).await?;
        account.frozen = frozen;
    }
    tx.commit().await.map_err(lastro_database::Error::from)?;
    app.bus.wake(ACCOUNT_EVENTS.topic);
    Ok(account)
}

/// The account, locked.
pub async fn lock(tx: &lastro_database::Transaction, id: Uuid) -> Result<AccountWithBalance, Error> {
    accounts::lock(tx, id).await?.filter(|account| !account.account.system).ok_or(Error::AccountNotFound { field: None })
}

/// Zero or more, in the currency of the account, and at most what one transaction may move.
fn credit_limit(app: &App, account: &AccountWithBalance, currency_code: &str, amount: &str) -> Result<Minor, Problem> {
    let currency = account.account.currency;
    if currency_code != currency.code() {
        return Err(Problem::field("credit_limit.currency_code", format!("must be {currency}, the currency of the account")));
    }
    let limit = lastro_money::parse(amount, currency).map_err(|error| Problem::field("credit_limit.amount", error.to_string()))?;
    if limit < Minor::ZERO {
        return Err(Problem::field("credit_limit.amount", "must not be negative"));
    }
    let most = app.settings.amount_minor_max;
    if limit > most {
        return Err(Problem::field("credit_limit", format!("must be at most {}", lastro_money::Amount::new(most, currency))));
    }
    Ok(limit)
}
