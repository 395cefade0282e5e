//! Orders as they stand, and the lists of them, newest first.

use std::collections::HashMap;

use lastro_database::rows::{Type, all_of_ids, insert_rows};
use lastro_database::{Error, Transaction, all, one};
use lastro_events::inbox::Progress;
use lastro_money::Currency;
use lastro_proto::orders::events::v1::{OrderCreated, OrderedItem};
use prost::Message as _;
use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use uuid::Uuid;

use crate::domain::order::{Item, Order, Status};

/// How far each order has come stands with it.
pub const PROGRESS: Progress = Progress::Own { table: "orders", id: "id", version: "version" };

/// `placed` is how it was placed, as its first event says it.
const COLUMNS: &str = "id, version, customer_id, status, currency_code, total, created_us, updated_us, reason, detail, payment_id, placed";

#[derive(FromQueryResult)]
struct Row {
    id: Uuid,
    version: i64,
    customer_id: Uuid,
    status: i64,
    currency_code: String,
    total: i64,
    created_us: i64,
    updated_us: i64,
    reason: String,
    detail: String,
    payment_id: Uuid,
    placed: Vec<u8>,
}

#[derive(FromQueryResult)]
struct Version {
    id: Uuid,
    version: i64,
}

/// Along which index a list goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Along {
    /// All orders.
    All,
    /// Those of a buyer.
    Customer(Uuid),
    /// Those that stand there.
    Status(Status),
    /// Those in which the product is.
    Product(Uuid),
    /// Those that have the word.
    Word(String),
}

/// Which of the orders along an index are wanted.
#[derive(Debug, Default)]
pub struct Wanted {
    pub status: Option<Status>,
    pub customer_id: Option<Uuid>,
    pub product_id: Option<Uuid>,
    /// What they cost at least, and at most, in ten thousandths of their currency's unit.
    pub min_total: Option<i128>,
    pub max_total: Option<i128>,
    /// All of these.
    pub words: Vec<String>,
}

impl Wanted {
    /// Whether each order along the index is wanted.
    pub const fn is_all(&self) -> bool {
        !self.asks_orders() && self.product_id.is_none() && self.words.is_empty()
    }

    /// Whether what an order itself tells decides, besides its place.
    const fn asks_orders(&self) -> bool {
        self.status.is_some() || self.customer_id.is_some() || self.min_total.is_some() || self.max_total.is_some()
    }
}

/// Digits after the point of an amount, at most: no currency has more.
pub const DIGITS: u32 = 4;

/// The parameters of a statement while it is put together, after those that it has already.
struct Statement {
    has: usize,
    values: Vec<Value>,
}

impl Statement {
    const fn after(has: usize) -> Self {
        Self { has, values: Vec::new() }
    }

    /// A parameter.
    fn value(&mut self, value: impl Into<Value>) -> String {
        self.values.push(value.into());
        format!("${}", self.has + self.values.len())
    }

    /// As a parameter: what is left to be found of a page is another number each time, and the text of a statement, by which it is kept prepared, is one.
    fn limit(&mut self, rows: u64) -> String {
        format!("LIMIT {}", self.value(i64::try_from(rows).unwrap_or(i64::MAX)))
    }

    /// The rows of these places along an index, newest first. Of two bounds whose values it does not know PostgreSQL believes that nearly nothing lies between
    /// them, and sorts everything instead of going along the index; it does not see that the second one, which compares rows, is a bound as well.
    fn along(&mut self, along: &Along, columns: &str, places: Places) -> String {
        let (end, first) = (self.value(places.end), self.value(places.first));
        let (table, condition) = match along {
            Along::All => ("orders", String::new()),
            Along::Customer(id) => ("orders", format!("AND customer_id = {}", self.value(*id))),
            Along::Status(status) => ("orders", format!("AND status = {}", self.value(status.number()))),
            Along::Product(id) => ("order_items", format!("AND product_id = {}", self.value(*id))),
            Along::Word(word) => ("order_words", format!("AND word = {}", self.value(word.clone()))),
        };
        format!("SELECT {columns} FROM {table} WHERE place < {end} AND (place, 0) >= ({first}, 0) {condition} ORDER BY place DESC")
    }

    /// What is found by a place alone. Each is one look into an index, and no plan reads everything that has a word.
    fn conditions_of_place(&mut self, wanted: &Wanted) -> String {
        let mut all = vec!["TRUE".to_owned()];
        if let Some(id) = wanted.product_id {
            all.push(format!("(SELECT 1 FROM order_items i WHERE i.product_id = {} AND i.place = o.place) = 1", self.value(id)));
        }
        for word in &wanted.words {
            all.push(format!("(SELECT 1 FROM order_words w WHERE w.word = {} AND w.place = o.place) = 1", self.value(word.clone())));
        }
        all.join(" AND ")
    }

    /// What the order itself tells.
    fn conditions(&mut self, wanted: &Wanted) -> String {
        let mut all = vec!["TRUE".to_owned()];
        if let Some(status) = wanted.status {
            all.push(format!("o.status = {}", self.value(status.number())));
        }
        if let Some(id) = wanted.customer_id {
            all.push(format!("o.customer_id = {}", self.value(id)));
        }
        if let Some(min) = wanted.min_total {
            all.push(format!("o.total >= {}", self.in_minor_units(min, |total, one| (total + one - 1) / one)));
        }
        if let Some(max) = wanted.max_total {
            all.push(format!("o.total <= {}", self.in_minor_units(max, |total, one| total / one)));
        }
        all.join(" AND ")
    }

    /// A total in the minor units of an order's currency. As parameters: the text of a statement, by which it is kept prepared, does not depend on amounts.
    fn in_minor_units(&mut self, total: i128, rounded: fn(i128, i128) -> i128) -> String {
        let [none, two, three, four] = [0, 2, 3, 4].map(|digits| {
            let minor = rounded(total, 10_i128.pow(DIGITS - digits));
            self.value(i64::try_from(minor).unwrap_or(i64::MAX))
        });
        format!("CASE o.digits WHEN 0 THEN {none} WHEN 2 THEN {two} WHEN 3 THEN {three} ELSE {four} END")
    }
}

/// A part of a list: from its first place up to its end, which is not part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    pub first: Uuid,
    pub end: Uuid,
}

/// Those of the last so many orders of a part along an index; all of it where there are fewer, and None. What is told of these places later is told of the same
/// ones, whatever has been added before or after them.
pub async fn last_places(on: &impl ConnectionTrait, along: &Along, places: Places, count: u64) -> Result<Option<Places>, Error> {
    let mut statement = Statement::after(0);
    let sql = format!("{} LIMIT 1 OFFSET {}", statement.along(along, "place", places), count.saturating_sub(1));
    let row: Option<Place> = one(on, &sql, statement.values).await?;
    Ok(row.map(|row| Places { first: row.place, end: places.end }))
}

/// The orders of these places that are wanted, newest first, up to a limit. All of these places are looked at, if need be.
pub async fn list(on: &impl ConnectionTrait, along: &Along, wanted: &Wanted, places: Places, limit: u64) -> Result<Vec<Order>, Error> {
    match along {
        Along::All | Along::Customer(_) | Along::Status(_) => {
            let mut statement = Statement::after(0);
            let rows = statement.along(along, "*", places);
            let (of_place, of_order) = (statement.conditions_of_place(wanted), statement.conditions(wanted));
            let limit = statement.limit(limit);
            let sql = format!("SELECT {COLUMNS} FROM ({rows}) o WHERE {of_order} AND {of_place} ORDER BY place DESC {limit}");
            read(all(on, &sql, statement.values).await?)
        }
        Along::Product(_) | Along::Word(_) => {
            let mut statement = Statement::after(0);
            let rows = statement.along(along, "place", places);
            let of_place = statement.conditions_of_place(wanted);
            // Where the order itself has nothing to say, each of these places is wanted, and there is no need for more of them.
            let limit_of_places = if wanted.asks_orders() { String::new() } else { statement.limit(limit) };
            let sql = format!("SELECT place FROM ({rows}) o WHERE {of_place} ORDER BY place DESC {limit_of_places}");
            let found: Vec<Place> = all(on, &sql, statement.values).await?;
            let found: Vec<Uuid> = found.into_iter().map(|row| row.place).collect();
            of_places(on, wanted, &found, limit).await
        }
    }
}

#[derive(FromQueryResult)]
struct Place {
    place: Uuid,
}

/// Those of these places that are wanted, newest first, up to a limit. Not joined: PostgreSQL would rather read all orders than look for each of so few.
async fn of_places(on: &impl ConnectionTrait, wanted: &Wanted, places: &[Uuid], limit: u64) -> Result<Vec<Order>, Error> {
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let mut statement = Statement::after(1);
    let (conditions, limit) = (statement.conditions(wanted), statement.limit(limit));
    let sql = format!("SELECT {COLUMNS} FROM orders o WHERE place {{ids}} AND {conditions} ORDER BY place DESC {limit}");
    read(all_of_ids(on, &sql, places, statement.values).await?)
}

fn read(rows: Vec<Row>) -> Result<Vec<Order>, Error> {
    rows.into_iter().map(Row::order).collect()
}

/// Those of these orders that are known.
pub async fn get(tx: &Transaction, ids: &[Uuid]) -> Result<HashMap<Uuid, Order>, Error> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let found = read(all_of_ids(tx, &format!("SELECT {COLUMNS} FROM orders WHERE id {{ids}}"), ids, []).await?)?;
    Ok(found.into_iter().map(|order| (order.id, order)).collect())
}

/// Keeps these as they are now.
pub async fn keep(tx: &Transaction, orders: &[Order]) -> Result<(), Error> {
    let columns = [
        ("id", Type::Uuid),
        ("place", Type::Uuid),
        ("version", Type::BigInt),
        ("customer_id", Type::Uuid),
        ("status", Type::BigInt),
        ("currency_code", Type::Text),
        ("total", Type::BigInt),
        ("created_us", Type::BigInt),
        ("updated_us", Type::BigInt),
        ("reason", Type::Text),
        ("detail", Type::Text),
        ("payment_id", Type::Uuid),
        ("placed", Type::Bytes),
        ("digits", Type::BigInt),
    ];
    let row = |order: &Order| {
        let values: Vec<Value> = vec![
            order.id.into(),
            order.place().into(),
            order.version.into(),
            order.customer_id.into(),
            order.status.number().into(),
            order.currency_code.clone().into(),
            order.total.into(),
            order.created_us.into(),
            order.updated_us.into(),
            order.reason.clone().into(),
            order.detail.clone().into(),
            order.payment_id.into(),
            placed(order).encode_to_vec().into(),
            digits(&order.currency_code).into(),
        ];
        values
    };
    let changes = ["version", "status", "updated_us", "reason", "detail", "payment_id"].map(|name| format!("{name} = excluded.{name}"));
    let conflict = format!("ON CONFLICT (id) DO UPDATE SET {}", changes.join(", "));
    insert_rows(tx, "orders", &columns, &conflict, orders.iter().map(row).collect()).await.map(|_| ())
}

/// Notes in which new orders which products are.
pub async fn add_items(tx: &Transaction, orders: &[Order]) -> Result<(), Error> {
    let of = |order: &Order| order.items.iter().map(|item| vec![item.product_id.into(), order.place().into()]).collect::<Vec<Vec<Value>>>();
    let columns = [("product_id", Type::Uuid), ("place", Type::Uuid)];
    insert_rows(tx, "order_items", &columns, "ON CONFLICT DO NOTHING", orders.iter().flat_map(of).collect()).await.map(|_| ())
}

/// How far orders have come, as far as they are known.
pub async fn versions(on: &impl ConnectionTrait, ids: &[Uuid]) -> Result<Vec<(Uuid, i64)>, Error> {
    let rows: Vec<Version> = all_of_ids(on, "SELECT id, version FROM orders WHERE id {ids}", ids, []).await?;
    Ok(rows.into_iter().map(|row| (row.id, row.version)).collect())
}

#[derive(FromQueryResult)]
struct Open {
    count: i64,
    oldest_us: i64,
}

/// How many orders are not decided yet, and when the oldest of them was accepted, Unix microseconds.
pub async fn open(on: &impl ConnectionTrait) -> Result<(i64, Option<i64>), Error> {
    let sql = "SELECT count(*) AS count, coalesce(min(created_us), 0) AS oldest_us FROM orders WHERE status = 1";
    let found: Option<Open> = one(on, sql, []).await?;
    Ok(found.map_or((0, None), |open| (open.count, (open.count > 0).then_some(open.oldest_us))))
}

/// Digits after the point of a currency.
fn digits(currency_code: &str) -> i64 {
    Currency::from_code(currency_code).map_or(0, |currency| currency.exponent().into())
}

fn placed(order: &Order) -> OrderCreated {
    let item = |item: &Item| OrderedItem {
        product_id: item.product_id.to_string(),
        product_name: item.product_name.clone(),
        quantity: i32::try_from(item.quantity).unwrap_or(i32::MAX),
        price_minor: item.price,
        merchant_account_id: item.merchant_account_id.to_string(),
    };
    OrderCreated {
        customer_id: order.customer_id.to_string(),
        items: order.items.iter().map(item).collect(),
        currency_code: order.currency_code.clone(),
        total_minor: order.total,
        payment_method: order.payment_method.clone(),
        store_id: order.store_id.clone(),
        external_id: order.external_id.clone(),
    }
}

impl Row {
    fn order(self) -> Result<Order, Error> {
        let placed = OrderCreated::decode(self.placed.as_slice()).map_err(Error::corrupt)?;
        let status = Status::of_number(self.status).ok_or_else(|| Error::corrupt("an order with a status that there is not"))?;
        Ok(Order {
            id: self.id,
            version: self.version,
            customer_id: self.customer_id,
            external_id: placed.external_id,
            status,
            reason: self.reason,
            detail: self.detail,
            items: placed.items.into_iter().map(item).collect::<Result<_, Error>>()?,
            currency_code: self.currency_code,
            total: self.total,
            payment_method: placed.payment_method,
            payment_id: self.payment_id,
            store_id: placed.store_id,
            created_us: self.created_us,
            updated_us: self.updated_us,
        })
    }
}

/// An item as events and rows have it.
pub fn item(item: OrderedItem) -> Result<Item, Error> {
    let id = |text: &str| Uuid::parse_str(text).map_err(Error::corrupt);
    Ok(Item {
        product_id: id(&item.product_id)?,
        product_name: item.product_name,
        quantity: item.quantity.into(),
        price: item.price_minor,
        merchant_account_id: id(&item.merchant_account_id)?,
    })
}
