//! The daily balances of an account, or of a user's accounts in a currency together.

use std::collections::BTreeMap;

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::status::Problem;
use lastro_money::Currency;
use uuid::Uuid;

use super::freshness::{SeesBy, wait_until_counted, wait_until_opened};
use super::{App, may_see};
use crate::Error;
use crate::domain::calendar::Day;
use crate::domain::total::Total;
use crate::store::accounts::{self, Account};
use crate::store::daily::{self, Days, Flow};

/// Days of one answer.
const DAYS_MAX: i64 = 366;

/// Accounts that are told of together.
const ACCOUNTS_MAX: usize = 1_000;
/// Record times are by the clocks of other machines, which may be ahead of ours by so much.
const CLOCKS_DIFFER_US: i64 = 5_000_000;

/// What is asked for.
#[derive(Debug, Default)]
pub struct Wanted<'a> {
    /// Which account; else the caller's in `currency_code`.
    pub account_id: Option<&'a str>,
    /// In which currency.
    pub currency_code: Option<&'a str>,
    /// The first day.
    pub from: Option<&'a str>,
    /// The last day.
    pub to: Option<&'a str>,
    /// As it was at this instant, Unix microseconds.
    pub as_of_us: Option<i64>,
}

/// A day of an account, or of several together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DailyBalance {
    /// The day, in the time zone of the ledger.
    pub day: Day,
    /// When it began.
    pub opening: Total,
    /// What came and what went.
    pub flow: Flow,
    /// When it ended.
    pub closing: Total,
}

/// Days of one currency.
#[derive(Debug)]
pub struct DailyBalances {
    /// The currency.
    pub currency: Currency,
    /// Every day that was asked for.
    pub days: Vec<DailyBalance>,
    /// When the newest posting that counts was recorded, Unix microseconds.
    pub as_of_us: Option<i64>,
}

/// The balances of every day from `from` to `to`, both included: at most 366 days, by default the last 30. Refuses days, instants, accounts and currencies that
/// are malformed or are not there, an account that is somebody else's, and a write that is not seen in time.
pub async fn list_daily_balances(app: &App, call: &Call, wanted: Wanted<'_>, sees_by: Option<&SeesBy>) -> Result<DailyBalances, Error> {
    let caller = call.user()?;
    let (from, to) = app.days(wanted.from, wanted.to)?;
    if to.number() - from.number() >= DAYS_MAX {
        return Err(
            Problem::field("from", format!("must be at most {} days before `to`: an answer has {DAYS_MAX} days at most", DAYS_MAX - 1)).into()
        );
    }
    if wanted.as_of_us.is_some_and(|as_of_us| as_of_us > clock::now_us() + CLOCKS_DIFFER_US) {
        return Err(Problem::field("as_of", "must not be more than 5 s in the future").into());
    }
    // Who waits for a write of its own is answered by the database.
    let cached = if sees_by.is_none() && wanted.as_of_us.is_none() { of_cache(app, call, &wanted, from, to).await? } else { None };
    let (currency, found) = match cached {
        Some(cached) => cached,
        None => {
            let (accounts, currency) = accounts_of(app, caller, &wanted, sees_by).await?;
            wait_until_counted(app, &accounts, sees_by).await?;
            let (database, as_of_us) = (app.database.clone(), wanted.as_of_us);
            let read = async move { daily::read(database.reader(), &accounts, from, to, as_of_us).await };
            (currency, app.reads.read(call, caller.id, read).await?)
        }
    };
    Ok(DailyBalances { currency, days: every_day(from, to, found.before, &found.days), as_of_us: found.newest_us })
}

/// The days of one account, as far as they are cached.
async fn of_cache(app: &App, call: &Call, wanted: &Wanted<'_>, from: Day, to: Day) -> Result<Option<(Currency, Days)>, Error> {
    let caller = call.user()?;
    let Some(account_id) = wanted.account_id else { return Ok(None) };
    let id = Uuid::parse_str(account_id).map_err(|_| Problem::field("account_id", "must be a UUID"))?;
    let known = match app.days_cache.peek(id).await {
        Some(known) => known,
        // Only for whoever may see it something is looked up, and kept.
        None => {
            app.account(caller, account_id, None).await?;
            let days_cache = app.days_cache.clone();
            app.reads.read(call, caller.id, async move { days_cache.get(id).await }).await?.ok_or(Error::AccountNotFound)?
        }
    };
    if !may_see(caller, &known.account) {
        return Err(Error::AccountNotFound);
    }
    Ok(known.range(from, to).zip(currency_of(&known.account, wanted.currency_code)?).map(|(days, currency)| (currency, days)))
}

/// The currency of an account, which is also the one that is asked for, if one is.
fn currency_of(account: &Account, wanted: Option<&str>) -> Result<Option<Currency>, Error> {
    if wanted.is_some_and(|code| code != account.currency_code) {
        return Err(Problem::field("currency_code", format!("must be {}, the currency of the account, or left out", account.currency_code)).into());
    }
    Ok(Currency::from_code(&account.currency_code))
}

async fn accounts_of(app: &App, caller: &Caller, wanted: &Wanted<'_>, sees_by: Option<&SeesBy>) -> Result<(Vec<Uuid>, Currency), Error> {
    let known = |code: &str| Currency::from_code(code);
    match (wanted.account_id, wanted.currency_code) {
        (Some(account_id), code) => {
            let account = app.account(caller, account_id, sees_by).await?;
            let currency =
                currency_of(&account, code)?.ok_or_else(|| lastro_database::Error::corrupt("an account in a currency that there is not"))?;
            Ok((vec![account.id], currency))
        }
        (None, Some(code)) => {
            let currency = known(code).ok_or_else(|| Problem::field("currency_code", "must be an ISO 4217 currency code, such as BRL"))?;
            wait_until_opened(app, sees_by).await?;
            let accounts = accounts::of_owner(app.database.reader(), caller.id, code, ACCOUNTS_MAX + 1).await?;
            if accounts.len() > ACCOUNTS_MAX {
                let rule = format!("has more than {ACCOUNTS_MAX} accounts of yours, too many to be told together; name one of them in `accountId`");
                return Err(Problem::field("currency_code", rule).into());
            }
            Ok((accounts, currency))
        }
        (None, None) => Err(Problem::field("currency_code", "is required without `accountId`: of which currency the balances are").into()),
    }
}

/// Days on which nothing happened are there too.
fn every_day(from: Day, to: Day, before: Flow, flows: &BTreeMap<Day, Flow>) -> Vec<DailyBalance> {
    let mut opening = before.credits - before.debits;
    let day = |number: i64| {
        let day = Day::of_number(number);
        let flow = flows.get(&day).copied().unwrap_or_default();
        let closing = opening + flow.credits - flow.debits;
        DailyBalance { day, opening: std::mem::replace(&mut opening, closing), flow, closing }
    };
    (from.number()..=to.number()).map(day).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_begins_with_what_the_one_before_ended_with() {
        let flow = |credits, debits| Flow { credits: Total::of(credits), debits: Total::of(debits) };
        let flows = BTreeMap::from([(Day::of_number(11), flow(10, 3)), (Day::of_number(13), flow(0, 8))]);
        let days = every_day(Day::of_number(10), Day::of_number(13), flow(100, 1), &flows);
        let balances: Vec<(i128, i128)> = days.iter().map(|day| (day.opening.minor_units(), day.closing.minor_units())).collect();
        assert_eq!(balances, [(99, 99), (99, 106), (106, 106), (106, 98)]);
    }
}
