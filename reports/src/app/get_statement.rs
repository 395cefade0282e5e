//! The statement of an account.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lastro_database::Database;
use lastro_mesh::call::Call;
use lastro_mesh::page::BYTES_MAX;
use lastro_mesh::status::Problem;
use lastro_money::Currency;
use uuid::Uuid;

use super::freshness::{SeesBy, wait_until_counted};
use super::{App, date};
use crate::Error;
use crate::domain::calendar::Day;
use crate::domain::operation::Entry;
use crate::domain::total::Total;
use crate::store::entries::{self, Place, Which};
use crate::store::{accounts::Account, daily};

const PAGE_DEFAULT: u32 = 50;
/// Before the year 10000, in Unix microseconds.
const AS_OF_US_MAX: i64 = 253_402_200_000_000_000;
const TOKEN_BYTES: usize = 88;
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

/// Which statement a page is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Of {
    /// The edition of the tables, by when it was begun: days of another one may be in another time zone.
    edition_us: i64,
    account_id: Uuid,
    from: Day,
    to: Day,
}

/// Where a page begins. All pages of a statement are of the moment of the first one: postings after that version are in none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Begin {
    of: Of,
    after: Option<Place>,
    balance: Total,
    up_to_version: i64,
    as_of_us: Option<i64>,
}

/// A page of what was posted to an account that the caller may see: 1 to 1,000 entries, by default 50, in the order in which they count. Refuses days, ids and
/// tokens that are malformed, an account that is somebody else's, and a write that is not seen in time.
pub async fn get_statement(app: &App, call: &Call, wanted: Wanted<'_>, sees_by: Option<&SeesBy>) -> Result<Statement, Error> {
    let from = wanted.from.map(|from| date("from", from)).transpose()?.unwrap_or(EVER.0);
    let to = wanted.to.map(|to| date("to", to)).transpose()?.unwrap_or(EVER.1);
    if from > to {
        return Err(Problem::field("from", "must not be later than `to`").into());
    }
    let caller = call.user()?;
    let account = app.account(caller, wanted.account_id, sees_by).await?;
    wait_until_counted(app, &[account.id], sees_by).await?;
    let of = Of { edition_us: app.edition.get().begun_us, account_id: account.id, from, to };
    let size = u32::try_from(wanted.page_size).ok().filter(|size| *size > 0).unwrap_or(PAGE_DEFAULT);
    let known = match wanted.page_token {
        "" => None,
        token => Some(Begin::of_token(token).filter(|begin| begin.of == of).ok_or_else(|| {
            let rule = "must be a nextPageToken of an earlier page of the same account and days, as it was answered; where reports were made anew since, \
                        begin with the first page";
            Problem::field("page_token", rule)
        })?),
    };
    let database = app.database.clone();
    let read = async move {
        let begin = match known {
            Some(begin) => begin,
            None => first(&database, of).await?,
        };
        let which = Which { account_id: of.account_id, up_to_version: begin.up_to_version, from, to, after: begin.after };
        Ok((begin, entries::list(database.reader(), which, u64::from(size) + 1).await?))
    };
    let (begin, found) = app.reads.read(call, caller.id, read).await?;
    page(&account, begin, size, found)
}

async fn first(database: &Database, of: Of) -> Result<Begin, lastro_database::Error> {
    let found = daily::read(database.reader(), &[of.account_id], of.from, of.from, None).await?;
    Ok(Begin { of, after: None, balance: found.before.credits - found.before.debits, up_to_version: found.version, as_of_us: found.newest_us })
}

/// The page that begins there, from what was found: one entry more than fits, where there are so many.
fn page(account: &Account, begin: Begin, size: u32, mut found: Vec<Entry>) -> Result<Statement, Error> {
    let currency = Currency::from_code(&account.currency_code);
    let currency = currency.ok_or_else(|| lastro_database::Error::corrupt("an account in a currency that there is not"))?;
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
        let days = [self.of.from.number(), self.of.to.number(), self.of.edition_us];
        let numbers = numbers.into_iter().chain(days).flat_map(i64::to_be_bytes);
        let bytes: Vec<u8> = numbers.chain(self.balance.to_bytes()).chain(self.of.account_id.into_bytes()).collect();
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn of_token(token: &str) -> Option<Self> {
        let bytes: [u8; TOKEN_BYTES] = URL_SAFE_NO_PAD.decode(token).ok()?.try_into().ok()?;
        let (numbers, others) = bytes.split_at(56);
        let (balance, account_id) = others.split_at(16);
        let mut numbers = numbers.as_chunks::<8>().0.iter().map(|bytes| i64::from_be_bytes(*bytes));
        let (effective_us, account_version, up_to_version, as_of_us) = (numbers.next()?, numbers.next()?, numbers.next()?, numbers.next()?);
        let (from, to) = (Day::of_number(numbers.next()?), Day::of_number(numbers.next()?));
        let of = Of { edition_us: numbers.next()?, account_id: Uuid::from_slice(account_id).ok()?, from, to };
        // Whoever makes one up must not make the answer unwritable.
        if !(0..=AS_OF_US_MAX).contains(&as_of_us) {
            return None;
        }
        let after = Some(Place { effective_us, account_version });
        Some(Self { of, after, balance: Total::of_bytes(balance.try_into().ok()?), up_to_version, as_of_us: Some(as_of_us) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_where_the_next_page_begins() {
        let after = Some(Place { effective_us: -5, account_version: 7 });
        let of = Of { edition_us: 17, account_id: Uuid::from_u128(3), from: Day::of_number(-4), to: Day::of_number(5) };
        let begin = Begin { of, after, balance: Total::of(-9), up_to_version: 11, as_of_us: Some(13) };
        let never = Begin { as_of_us: Some(i64::MAX), ..begin };
        assert_eq!(Begin::of_token(&never.token()), None);
        assert_eq!(Begin::of_token(&begin.token()), Some(begin));
        for wrong in ["", "x", "AAAA", &begin.token()[1..]] {
            assert_eq!(Begin::of_token(wrong), None, "{wrong}");
        }
    }
}
