//! Opens an account for the caller, whom customers confirms.

use lastro_database::Kind;
use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::status::Problem;
use lastro_money::Currency;
use lastro_proto::internal::customers::v1::ConfirmOwnerRequest;
use lastro_proto::transactions::v1::CreateAccountRequest;
use sha2::{Digest as _, Sha256};

use super::App;
use crate::ACCOUNT_EVENTS;
use crate::domain::account::Account;
use crate::store::account_events::Cause;
use crate::store::accounts::{self, AccountWithBalance, Key};
use crate::store::users;
use crate::{Error, store};

/// An account, and whether an earlier call opened it.
pub struct Opened {
    pub account: AccountWithBalance,
    pub replayed: bool,
}

/// With a balance of zero. The same key of the same caller: the same account.
pub async fn create_account(app: &App, call: &Call, caller: &Caller, request: CreateAccountRequest) -> Result<Opened, Error> {
    let currency = Currency::from_code(&request.currency_code)
        .ok_or_else(|| Problem::field("currency_code", format!("{:?} is no ISO 4217 currency", request.currency_code)))?;
    let key = (!request.external_id.is_empty())
        .then(|| Key { external_id: request.external_id, request_hash: request_hash(currency, &request.display_name) });
    if let Some(opened) = opened_before(app, caller, key.as_ref()).await? {
        return Ok(opened);
    }
    confirm(app, call, caller).await?;
    let account = Account { id: clock::new_id(), owner_id: caller.id, currency, system: false, create_time_us: clock::now_us() };
    let display_name = request.display_name;
    let cause = Cause { correlation_id: call.correlation_id.as_str(), event_id: None };
    let tx = app.database.begin().await?;
    if !users::lock_owner(&tx, caller.id).await? {
        return Err(Error::OwnerNotAllowed);
    }
    if !app.is_cleared(currency) {
        accounts::ensure_clearing(&tx, currency, account.create_time_us, cause).await?;
    }
    match accounts::open(&tx, &account, &display_name, key.as_ref(), cause).await {
        Err(error) if error.kind == Kind::Unique => {
            tx.rollback().await.map_err(lastro_database::Error::from)?;
            return opened_before(app, caller, key.as_ref()).await?.ok_or(Error::Database(error));
        }
        opened => opened?,
    }
    tx.commit().await.map_err(lastro_database::Error::from)?;
    app.note_cleared(currency);
    app.bus.wake(ACCOUNT_EVENTS.topic);
    Ok(Opened { account: AccountWithBalance::new(account, display_name), replayed: false })
}

/// What the caller asked for before with this key.
async fn opened_before(app: &App, caller: &Caller, key: Option<&Key>) -> Result<Option<Opened>, Error> {
    let Some(key) = key else { return Ok(None) };
    let Some((account, request_hash)) = accounts::by_key(app.database.reader(), caller.id, &key.external_id).await? else { return Ok(None) };
    if request_hash == key.request_hash { Ok(Some(Opened { account, replayed: true })) } else { Err(Error::IdempotencyKeyReused) }
}

fn request_hash(currency: Currency, display_name: &str) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(currency.code().as_bytes());
    hasher.update(display_name.as_bytes());
    hasher.finalize().into()
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
