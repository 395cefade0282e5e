//! The statement of an account.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::page::BYTES_MAX;
use lastro_mesh::status::Problem;
use lastro_money::Currency;

use super::freshness::{SeesBy, wait_until_counted};
use super::{App, date};
use crate::Error;
use crate::domain::calendar::Day;
use crate::domain::operation::Entry;
use crate::domain::total::Total;
use crate::store::entries::{self, Place, Which};
use crate::store::{accounts::Account, daily};

const PAGE_DEFAULT: u32 = 50;
const TOKEN_BYTES: usize = 48;
/// Before and after every date that there is.
const EVER: (Day, Day) = (Day::of_number(-1_000_000), Day::of_number(10_000_000));

/// What is asked for.
#[derive(Debug, Default)]
pub struct Wanted<'a> {
    /// Which account.
    pub account_id: &'a str,
    /// The first day.
    pub from: Option<&'a str>,
    /// The last day.
    pub to: Option<&'a str>,
    /// Entries of a page; 0 for as many as usual.
    pub page_size: i32,
    /// Of the page before.
    pub page_token: &'a str,
}

/// A page of a statement.
#[derive(Debug)]
pub struct Statement {
    /// The currency.
    pub currency: Currency,
    /// In the order in which they count, each with the balance after it.
    pub entries: Vec<(Entry, Total)>,
    /// Leads to the next page; empty on the last.
    pub next_page_token: String,
    /// When the newest posting that counts was recorded, Unix microseconds.
    pub as_of_us: Option<i64>,
}

/// Where a page begins. All pages of a statement are of the moment of the first one: postings after that version are in none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Begin {
    after: Option<Place>,
    balance: Total,
    up_to_version: i64,
    as_of_us: Option<i64>,
}

/// A page of what was posted to an account that the caller may see.
pub async fn get_statement(app: &App, caller: &Caller, wanted: Wanted<'_>, sees_by: Option<SeesBy>) -> Result<Statement, Error> {
    let from = wanted.from.map(|from| date("from", from)).transpose()?.unwrap_or(EVER.0);
    let to = wanted.to.map(|to| date("to", to)).transpose()?.unwrap_or(EVER.1);
    if from > to {
        return Err(Problem::field("from", "must not be later than `to`").into());
    }
    let account = app.account(caller, wanted.account_id, sees_by).await?;
    wait_until_counted(app, &[account.id], sees_by).await?;
    let begin = match wanted.page_token {
        "" => first(app, &account, from).await?,
        token => {
            Begin::of_token(token).ok_or_else(|| Problem::field("page_token", "must be a nextPageToken of an earlier page, as it was answered"))?
        }
    };
    page(app, &account, (from, to), begin, wanted.page_size).await
}

async fn first(app: &App, account: &Account, from: Day) -> Result<Begin, Error> {
    let found = daily::read(app.database.reader(), &[account.id], from, from, None).await?;
    Ok(Begin { after: None, balance: found.before.credits - found.before.debits, up_to_version: found.version, as_of_us: found.newest_us })
}

async fn page(app: &App, account: &Account, (from, to): (Day, Day), begin: Begin, size: i32) -> Result<Statement, Error> {
    let currency = Currency::from_code(&account.currency_code);
    let currency = currency.ok_or_else(|| lastro_database::Error::corrupt("an account in a currency that there is not"))?;
    let size = u32::try_from(size).ok().filter(|size| *size > 0).unwrap_or(PAGE_DEFAULT);
    let which = Which { account_id: account.id, up_to_version: begin.up_to_version, from, to, after: begin.after };
    let mut found = entries::list(app.database.reader(), which, u64::from(size) + 1).await?;
    let kept = fitting(&found).min(size as usize);
    let has_more = found.len() > kept;
    found.truncate(kept);
    let mut balance = begin.balance;
    let with_balance = |entry: Entry| {
        balance += Total::of(entry.posted.amount);
        (entry, balance)
    };
    let entries: Vec<(Entry, Total)> = found.into_iter().map(with_balance).collect();
    let next = entries.last().filter(|_| has_more).map(|(last, balance)| {
        let after = Place { effective_us: last.effective_us, account_version: last.posted.account_version };
        Begin { after: Some(after), balance: *balance, ..begin }.token()
    });
    Ok(Statement { currency, entries, next_page_token: next.unwrap_or_default(), as_of_us: begin.as_of_us })
}

/// How many fit into one answer: one at least, so that whoever pages comes to the end.
fn fitting(entries: &[Entry]) -> usize {
    const OTHERS: usize = 200;
    let mut total = 0;
    let fits = |entry: &&Entry| {
        total += entry.description.len() + OTHERS;
        total <= BYTES_MAX
    };
    entries.iter().take_while(fits).count().max(1)
}

impl Begin {
    fn token(&self) -> String {
        let place = self.after.unwrap_or(Place { effective_us: i64::MIN, account_version: 0 });
        let numbers = [place.effective_us, place.account_version, self.up_to_version, self.as_of_us.unwrap_or_default()];
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).chain(self.balance.to_bytes()).collect();
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn of_token(token: &str) -> Option<Self> {
        let bytes: [u8; TOKEN_BYTES] = URL_SAFE_NO_PAD.decode(token).ok()?.try_into().ok()?;
        let (numbers, balance) = bytes.split_at(32);
        let mut numbers = numbers.as_chunks::<8>().0.iter().map(|bytes| i64::from_be_bytes(*bytes));
        let (effective_us, account_version, up_to_version, as_of_us) = (numbers.next()?, numbers.next()?, numbers.next()?, numbers.next()?);
        let after = Some(Place { effective_us, account_version });
        Some(Self { after, balance: Total::of_bytes(balance.try_into().ok()?), up_to_version, as_of_us: Some(as_of_us) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_where_the_next_page_begins() {
        let after = Some(Place { effective_us: -5, account_version: 7 });
        let begin = Begin { after, balance: Total::of(-9), up_to_version: 11, as_of_us: Some(13) };
        assert_eq!(Begin::of_token(&begin.token()), Some(begin));
        for wrong in ["", "x", "AAAA", &begin.token()[1..]] {
            assert_eq!(Begin::of_token(wrong), None, "{wrong}");
        }
    }
}
