//! Says whether an account can be credited in a currency, for services that keep where money is to go.

use uuid::Uuid;

use super::App;
use crate::Error;

/// What another service is told of an account.
pub struct Confirmed {
    pub exists: bool,
    pub is_in_currency: bool,
    pub is_closed: bool,
}

/// Whoever's it is.
pub async fn confirm_account(app: &App, account_id: &str, currency_code: &str) -> Result<Confirmed, Error> {
    let found = match Uuid::parse_str(account_id) {
        Ok(id) => app.account_loader.load(id).await?.filter(|found| !found.account.system),
        Err(_) => None,
    };
    Ok(Confirmed {
        exists: found.is_some(),
        is_in_currency: found.as_ref().is_some_and(|found| found.account.currency.code() == currency_code),
        is_closed: found.is_some_and(|found| found.closed),
    })
}
