//! Opens an account for the caller, whom customers confirms.

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::status::Problem;
use lastro_money::Currency;
use lastro_proto::internal::customers::v1::ConfirmOwnerRequest;
use lastro_proto::transactions::v1::CreateAccountRequest;
use uuid::Uuid;

use super::App;
use crate::domain::account::Account;
use crate::store::accounts::{self, AccountWithBalance};
use crate::{Error, store};

/// With a balance of zero.
pub async fn create_account(app: &App, call: &Call, caller: &Caller, request: CreateAccountRequest) -> Result<AccountWithBalance, Error> {
    let currency = Currency::from_code(&request.currency_code)
        .ok_or_else(|| Problem::field("currency_code", format!("{:?} is no ISO 4217 currency", request.currency_code)))?;
    confirm(app, call, caller).await?;
    let account = Account {
        id: Uuid::now_v7(),
        owner_id: caller.id,
        currency,
        display_name: request.display_name,
        system: false,
        create_time_us: clock::now_us(),
    };
    let tx = app.database.begin().await?;
    if !app.is_cleared(currency) {
        accounts::ensure_clearing(&tx, currency, account.create_time_us).await?;
    }
    accounts::insert(&tx, &account, None).await?;
    tx.commit().await.map_err(lastro_database::Error::from)?;
    app.note_cleared(currency);
    Ok(AccountWithBalance { account, posted: 0, held: 0 })
}

/// Customers has the last word; a user that is known here to be no owner is not even asked for.
async fn confirm(app: &App, call: &Call, caller: &Caller) -> Result<(), Error> {
    if store::users::may_own(app.database.reader(), caller.id).await? == Some(false) {
        return Err(Error::OwnerNotAllowed);
    }
    let request = call.request(ConfirmOwnerRequest { user_id: caller.id.to_string() });
    let confirmed = app.customers.clone().confirm_owner(request).await.map_err(|status| Error::Customers(Box::new(status)))?;
    if confirmed.get_ref().may_own { Ok(()) } else { Err(Error::OwnerNotAllowed) }
}
