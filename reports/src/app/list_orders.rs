//! Lists of orders, newest first: filtered, of a buyer, or found by words.

use std::collections::BTreeSet;

use lastro_database::Database;
use lastro_mesh::call::Call;
use lastro_mesh::page::{BYTES_MAX, Page};
use lastro_mesh::status::Problem;
use uuid::Uuid;

use super::{App, date, sees_all};
use crate::Error;
use crate::domain::calendar::Day;
use crate::domain::order::{Order, Status, first_place_at};
use crate::domain::words::words;
use crate::store::orders::{self, Along, DIGITS, Places, Wanted as Sought};

/// Orders that one statement reads. A page of large orders is cut at 1 MiB: so many may be read for it and not be shown.
const ROWS_AT_ONCE: u64 = 256;
/// Orders that are looked at for a page. With a filter that leaves nearly everything out it ends there, short or empty, and its token leads on.
const LOOKED_AT_MAX: u64 = 2_000;
/// Words that cost as much as to look at an order: a search of many words looks at fewer orders for a page.
const WORDS_PER_LOOK: u64 = 4;
/// So many words of a search are compared, to go along the rarest of them: that of which this many orders reach back furthest.
const WORDS_COMPARED: usize = 8;
const WORD_REACHES: u64 = 50;

/// What is asked for.
#[derive(Debug, Default)]
pub struct Wanted<'a> {
    /// Only those that stand there.
    pub status: Option<Status>,
    /// Only those of this buyer.
    pub customer_id: Option<&'a str>,
    /// Only those with this product.
    pub product_id: Option<&'a str>,
    /// Only those that cost so much or more, in their own currency.
    pub min_total: Option<&'a str>,
    /// Only those that cost so much or less.
    pub max_total: Option<&'a str>,
    /// Only those that were accepted on this day or later.
    pub from: Option<&'a str>,
    /// Only those that were accepted on this day or earlier.
    pub to: Option<&'a str>,
    /// Only those that have all words of this text.
    pub text: Option<&'a str>,
}

/// Which orders a list has.
struct Filter {
    status: Option<Status>,
    customer_id: Option<Uuid>,
    product_id: Option<Uuid>,
    /// In ten thousandths of the currency's unit.
    min_total: Option<i128>,
    max_total: Option<i128>,
    /// The first place of those that were accepted on these days, and the first one after them.
    first: Uuid,
    end: Uuid,
    words: BTreeSet<String>,
}

/// A page of orders.
#[derive(Debug)]
pub struct Listed {
    /// Newest first.
    pub orders: Vec<Order>,
    /// Empty on the last page.
    pub next_page_token: String,
}

/// The caller's orders, newest first, up to 1,000 of them; an administrator's are everybody's. Refuses what is malformed, and the orders of somebody else.
pub async fn list_orders(app: &App, call: &Call, wanted: Wanted<'_>, page: Page) -> Result<Listed, Error> {
    let (caller, mut filter) = (call.user()?, read(app, &wanted)?);
    if !sees_all(caller) {
        if filter.customer_id.is_some_and(|id| id != caller.id) {
            return Err(Error::UserNotFound);
        }
        filter.customer_id = Some(caller.id);
    }
    // A text without a word is in no order.
    if wanted.text.is_some() && filter.words.is_empty() {
        return Ok(Listed { orders: Vec::new(), next_page_token: String::new() });
    }
    let database = app.database.clone();
    Ok(app.reads.read(call, caller.id, async move { read_page(&database, filter, page).await }).await?)
}

async fn read_page(database: &Database, filter: Filter, page: Page) -> Result<Listed, lastro_database::Error> {
    let on = database.reader();
    let mut left = Places { first: filter.first, end: page.before.map_or(filter.end, |before| before.min(filter.end)) };
    let (along, wanted) = filter.along(database, left).await?;
    let looked_at_max = LOOKED_AT_MAX / (1 + wanted.words.len() as u64 / WORDS_PER_LOOK);
    let (mut found, mut bytes, mut looked_at) = (Vec::<Order>::new(), 0, 0);
    while page.limit() > found.len() as u64 && bytes <= BYTES_MAX {
        if looked_at >= looked_at_max {
            return Ok(cut(page, found, Some(left.end)));
        }
        let limit = ROWS_AT_ONCE.min(page.limit() - found.len() as u64);
        let enough = promising(looked_at, found.len() as u64, limit).min(looked_at_max - looked_at);
        let look_at = with_spare(&wanted, looked_at, enough).min(looked_at_max - looked_at);
        let last = orders::last_places(on, &along, left, look_at).await?;
        let read = orders::list(on, &along, &wanted, last.unwrap_or(left), limit).await?;
        let is_full = read.len() as u64 == limit;
        bytes += read.iter().map(answer_bytes).sum::<usize>();
        found.extend(read);
        left.end = match (is_full, last) {
            // There may be more of them among these places.
            (true, _) => found.last().map_or(left.end, Order::place),
            (false, Some(places)) => places.first,
            (false, None) => return Ok(cut(page, found, None)),
        };
        looked_at += look_at;
    }
    Ok(cut(page, found, Some(left.end)))
}

/// How many orders to look at, where so many are promised to be enough: at first as many as one statement reads, and twice that where words have to fit
/// too; then twice as many as are promised, so that a page seldom needs a third look. Not simply all that may be looked at: to find the place where
/// they begin, the server reads all that lie behind it.
fn with_spare(wanted: &Sought, looked_at: u64, enough: u64) -> u64 {
    let at_least = if wanted.words.is_empty() { ROWS_AT_ONCE } else { 2 * ROWS_AT_ONCE };
    match (wanted.is_all(), looked_at) {
        (true, _) => enough,
        (false, 0) => enough.max(at_least),
        (false, _) => (2 * enough).max(at_least),
    }
}

/// How many orders have so many more that are wanted, if there are as many of these as among those that were looked at before.
const fn promising(looked_at: u64, found: u64, more: u64) -> u64 {
    match (looked_at, found) {
        (0, _) => more,
        (_, 0) => LOOKED_AT_MAX,
        (looked_at, found) => looked_at * more / found,
    }
}

/// The page, with a token of where it goes on: after the last order that fits, or else where it was looked to.
fn cut(page: Page, mut orders: Vec<Order>, next: Option<Uuid>) -> Listed {
    let after_last = page.cut(&mut orders, Order::place, answer_bytes);
    let next_page_token = if after_last.is_empty() { next.map(Page::token).unwrap_or_default() } else { after_last };
    Listed { orders, next_page_token }
}

/// How large an order is in the answer, roughly.
fn answer_bytes(order: &Order) -> usize {
    const ORDER: usize = 500;
    const ITEM: usize = 150;
    let items: usize = order.items.iter().map(|item| item.product_name.len() + ITEM).sum();
    order.reason.len() + order.detail.len() + order.external_id.len() + items + ORDER
}

fn read(app: &App, wanted: &Wanted<'_>) -> Result<Filter, Problem> {
    let id = |field: &str, text: Option<&str>| {
        let read = |text| Uuid::parse_str(text).map_err(|_| Problem::field(field, "must be a UUID"));
        text.map(read).transpose()
    };
    let day = |field: &str, text: Option<&str>| text.map(|text| date(field, text)).transpose();
    let amount = |field: &str, text: Option<&str>| {
        let rule = format!("must be an amount such as 10.50, with {DIGITS} digits after the point at most");
        text.map(|text| ten_thousandths(text).ok_or_else(|| Problem::field(field, rule))).transpose()
    };
    let (from, to) = (day("from", wanted.from)?, day("to", wanted.to)?);
    if from.zip(to).is_some_and(|(from, to)| from > to) {
        return Err(Problem::field("from", "must not be later than `to`"));
    }
    let (min_total, max_total) = (amount("min_total", wanted.min_total)?, amount("max_total", wanted.max_total)?);
    if min_total.zip(max_total).is_some_and(|(min, max)| min > max) {
        return Err(Problem::field("min_total", "must not be more than `maxTotal`"));
    }
    let calendar = &app.edition.get().calendar;
    let begin = |day: Day| first_place_at(calendar.begin_of(day));
    Ok(Filter {
        status: wanted.status,
        customer_id: id("customer_id", wanted.customer_id)?,
        product_id: id("product_id", wanted.product_id)?,
        min_total,
        max_total,
        first: from.map_or(Uuid::nil(), begin),
        end: to.map_or(Uuid::max(), |to| begin(to.plus(1))),
        words: wanted.text.map(words).unwrap_or_default(),
    })
}

/// A decimal string that is not negative, in ten thousandths.
fn ten_thousandths(text: &str) -> Option<i128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |digits: &str, most: usize| (1..=most).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit());
    if !is_number(whole, 18) || !is_number(fraction, DIGITS as usize) {
        return None;
    }
    let fraction: i128 = format!("{fraction:0<width$}", width = DIGITS as usize).parse().ok()?;
    Some(whole.parse::<i128>().ok()? * 10_i128.pow(DIGITS) + fraction)
}

impl Filter {
    /// The index that promises to have the fewest orders that do not fit, and what is left to be looked at of each.
    async fn along(self, database: &Database, places: Places) -> Result<(Along, Sought), lastro_database::Error> {
        let Self { mut status, mut customer_id, mut product_id, min_total, max_total, mut words, .. } = self;
        let along = if let Some(id) = customer_id.take() {
            Along::Customer(id)
        } else if !words.is_empty() {
            let rarest = rarest_word(database, &words, places).await?;
            words.remove(&rarest);
            Along::Word(rarest)
        } else if let Some(id) = product_id.take() {
            Along::Product(id)
        } else {
            status.take().map_or(Along::All, Along::Status)
        };
        let words = words.into_iter().collect();
        Ok((along, Sought { status, customer_id, product_id, min_total, max_total, words }))
    }
}

/// The word of which the newest orders reach back furthest, or have an end.
async fn rarest_word(database: &Database, words: &BTreeSet<String>, places: Places) -> Result<String, lastro_database::Error> {
    if let (1, Some(only)) = (words.len(), words.first()) {
        return Ok(only.clone());
    }
    let mut rarest: Option<(Uuid, &String)> = None;
    for word in words.iter().take(WORDS_COMPARED) {
        let last = orders::last_places(database.reader(), &Along::Word(word.clone()), places, WORD_REACHES).await?;
        let reaches_to = last.map_or(Uuid::nil(), |places| places.first);
        if rarest.is_none_or(|(reached, _)| reaches_to < reached) {
            rarest = Some((reaches_to, word));
        }
    }
    Ok(rarest.map(|(_, word)| word.clone()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_compared_whatever_their_digits() {
        for (text, expected) in [("10.5", Some(105_000)), ("10.50", Some(105_000)), ("0", Some(0)), ("7.0001", Some(70_001))] {
            assert_eq!(ten_thousandths(text), expected, "{text}");
        }
        for text in ["", ".", "1.", ".5", "-1", "+1", "1,5", "1e3", "1.00001", "1 ", &"9".repeat(19)] {
            assert_eq!(ten_thousandths(text), None, "{text}");
        }
    }

    fn order(number: i64) -> Order {
        let is_rare = number % 1_500 == 1;
        Order {
            id: Uuid::from_u128(number.unsigned_abs().into()),
            version: 1,
            customer_id: Uuid::from_u128(1),
            external_id: format!("cart {}", if is_rare { "rare" } else { "common" }),
            status: if number % 2 == 0 { Status::Completed } else { Status::Failed },
            reason: String::new(),
            detail: String::new(),
            items: Vec::new(),
            currency_code: "BRL".to_owned(),
            total: if is_rare { 100_000 } else { 100 },
            payment_method: "ACCOUNT".to_owned(),
            payment_id: Uuid::nil(),
            store_id: String::new(),
            // Ten of them at each instant.
            created_us: number / 10,
            updated_us: number / 10,
        }
    }

    #[tokio::test]
    async fn a_page_ends_where_it_has_looked_at_enough() {
        const ORDERS: i64 = 5_000;
        let folder = tempfile::tempdir().expect("a folder");
        let database = Database::open_sqlite(&folder.path().join("reports.db")).await.expect("a database");
        crate::SERVICE.migrator.run(&database).await.expect("the tables");
        let all: Vec<Order> = (1..=ORDERS).map(order).collect();
        let tx = database.begin().await.expect("a transaction");
        orders::keep(&tx, &all).await.expect("orders");
        crate::store::order_words::add(&tx, &all).await.expect("words");
        tx.commit().await.expect("stored");
        let none = || Filter {
            status: None,
            customer_id: None,
            product_id: None,
            min_total: None,
            max_total: None,
            first: Uuid::nil(),
            end: Uuid::max(),
            words: BTreeSet::new(),
        };
        let rare: Vec<i64> = (1..=ORDERS).rev().filter(|number| number % 1_500 == 1).collect();
        let cases: [(&dyn Fn() -> Filter, i32, Vec<i64>); 4] = [
            // Four of 5,000, looked for one after the other, and found by the rarest of two words.
            (&|| Filter { min_total: Some(10_000_000), ..none() }, 3, rare.clone()),
            (&|| Filter { words: words("rare CART"), ..none() }, 1, rare.clone()),
            (
                &|| Filter { words: words("rare"), status: Some(Status::Failed), ..none() },
                1,
                rare.into_iter().filter(|number| number % 2 == 1).collect(),
            ),
            (&|| Filter { status: Some(Status::Failed), ..none() }, 3, (1..=ORDERS).rev().filter(|number| number % 2 == 1).collect()),
        ];
        for (filter, pages, expected) in cases {
            let (mut page, mut found, mut read) = (Page { size: 1_000, before: None }, Vec::new(), 0);
            loop {
                let listed = read_page(&database, filter(), page).await.expect("a page");
                read += 1;
                found.extend(listed.orders.into_iter().map(|order| order.id.as_u128() as i64));
                if listed.next_page_token.is_empty() {
                    break;
                }
                page = Page::read(1_000, &listed.next_page_token).expect("our own token");
            }
            assert_eq!((read, found), (pages, expected));
        }
    }
}
