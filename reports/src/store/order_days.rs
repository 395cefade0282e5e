//! Orders counted by day, what their sagas took, and what was sold.

use std::collections::BTreeMap;

use lastro_database::rows::{Type, insert_rows};
use lastro_database::{Error, Transaction, all, one};
use sea_orm::{ConnectionTrait, DbBackend, FromQueryResult, Value};
use uuid::Uuid;

use super::daily::{added, newest};
use crate::domain::calendar::Day;
use crate::domain::order::{Changes, DayOf, OrderCounts, Sale, SaleOf, Status, TopProduct};
use crate::domain::total::Total;

/// Adds what a batch of events has changed. Rows are added in the order of their keys, so that two that add to the same ones never wait for each other in a
/// circle.
pub async fn add(tx: &Transaction, changes: Changes) -> Result<(), Error> {
    add_days(tx, changes.days).await?;
    add_times(tx, changes.times).await?;
    add_sales(tx, changes.sales).await
}

/// The columns that count orders by where they stand, in the order of [`Status::ALL`].
const BY_STATUS: [&str; Status::ALL.len()] = ["pending", "completed", "shipped", "delivered", "cancelled", "failed"];

async fn add_days(tx: &Transaction, days: BTreeMap<DayOf, OrderCounts>) -> Result<(), Error> {
    let key = [("day", Type::BigInt), ("currency_code", Type::Text)];
    let of_sagas = ["decided", "compensated", "took_us"];
    let numbers = || BY_STATUS.into_iter().chain(of_sagas);
    let columns: Vec<_> =
        key.into_iter().chain(numbers().chain(["revenue_billions", "revenue_rest", "newest_us"]).map(|name| (name, Type::BigInt))).collect();
    let row = |(of, counts): (DayOf, OrderCounts)| -> Vec<Value> {
        let OrderCounts { by_status, revenue, decided, compensated, took_us, newest_us } = counts;
        let (billions, rest) = revenue.parts();
        let numbers = by_status.into_iter().chain([decided, compensated, took_us, billions, rest, newest_us]).map(Value::from);
        [of.day.number().into(), of.currency_code.into()].into_iter().chain(numbers).collect()
    };
    let more: Vec<String> = numbers().map(|name| format!("{name} = order_days.{name} + excluded.{name}")).collect();
    let conflict =
        format!("ON CONFLICT (day, currency_code) DO UPDATE SET {}, {}, {}", more.join(", "), added("order_days", "revenue"), newest("order_days"));
    insert_rows(tx, "order_days", &columns, &conflict, days.into_iter().map(row).collect()).await.map(|_| ())
}

async fn add_times(tx: &Transaction, times: BTreeMap<(DayOf, i64), i64>) -> Result<(), Error> {
    let columns = [("day", Type::BigInt), ("currency_code", Type::Text), ("bucket", Type::BigInt), ("sagas", Type::BigInt)];
    let row = |((of, bucket), sagas): ((DayOf, i64), i64)| -> Vec<Value> {
        vec![of.day.number().into(), of.currency_code.into(), bucket.into(), sagas.into()]
    };
    let conflict = "ON CONFLICT (day, currency_code, bucket) DO UPDATE SET sagas = saga_times.sagas + excluded.sagas";
    insert_rows(tx, "saga_times", &columns, conflict, times.into_iter().map(row).collect()).await.map(|_| ())
}

async fn add_sales(tx: &Transaction, sales: BTreeMap<SaleOf, Sale>) -> Result<(), Error> {
    let columns = [
        ("account_id", Type::Uuid),
        ("day", Type::BigInt),
        ("product_id", Type::Uuid),
        ("product_name", Type::Text),
        ("currency_code", Type::Text),
        ("sold", Type::BigInt),
        ("paid_billions", Type::BigInt),
        ("paid_rest", Type::BigInt),
        ("returned", Type::BigInt),
        ("refunded_billions", Type::BigInt),
        ("refunded_rest", Type::BigInt),
        ("newest_us", Type::BigInt),
    ];
    let row = |(of, sale): (SaleOf, Sale)| -> Vec<Value> {
        let ((paid, paid_rest), (refunded, refunded_rest)) = (sale.paid.parts(), sale.refunded.parts());
        let key = [of.account_id.into(), of.day.number().into(), of.product_id.into(), sale.product_name.into(), sale.currency_code.into()];
        key.into_iter().chain([sale.sold, paid, paid_rest, sale.returned, refunded, refunded_rest, sale.newest_us].map(Value::from)).collect()
    };
    // Of the names that a product had on a day the latest one is kept, the same one whatever the order is in which events come: names are compared byte by byte.
    let bytes = if tx.get_database_backend() == DbBackend::Postgres { "\"C\"" } else { "BINARY" };
    let conflict = format!(
        "ON CONFLICT (account_id, day, product_id) DO UPDATE SET sold = sales.sold + excluded.sold, returned = sales.returned + excluded.returned, \
         product_name = CASE WHEN excluded.newest_us > sales.newest_us \
         OR (excluded.newest_us = sales.newest_us AND excluded.product_name COLLATE {bytes} > sales.product_name COLLATE {bytes}) \
         THEN excluded.product_name ELSE sales.product_name END, {}, {}, {}",
        added("sales", "paid"),
        added("sales", "refunded"),
        newest("sales")
    );
    insert_rows(tx, "sales", &columns, &conflict, sales.into_iter().map(row).collect()).await.map(|_| ())
}

#[derive(FromQueryResult)]
struct DayRow {
    day: i64,
    currency_code: String,
    pending: i64,
    completed: i64,
    shipped: i64,
    delivered: i64,
    cancelled: i64,
    failed: i64,
    revenue_billions: i64,
    revenue_rest: i64,
    decided: i64,
    compensated: i64,
    took_us: i64,
    newest_us: i64,
}

impl DayRow {
    fn counts(self) -> (DayOf, OrderCounts) {
        let Self { pending, completed, shipped, delivered, cancelled, failed, decided, compensated, took_us, newest_us, .. } = self;
        let counts = OrderCounts {
            by_status: [pending, completed, shipped, delivered, cancelled, failed],
            revenue: Total::of_parts(self.revenue_billions, self.revenue_rest),
            decided,
            compensated,
            took_us,
            newest_us,
        };
        (DayOf { day: Day::of_number(self.day), currency_code: self.currency_code }, counts)
    }
}

/// The orders that were accepted on these days, by day and currency; up to a limit.
pub async fn days(on: &impl ConnectionTrait, from: Day, to: Day, limit: u64) -> Result<BTreeMap<DayOf, OrderCounts>, Error> {
    let sql = format!("SELECT * FROM order_days WHERE day BETWEEN $1 AND $2 ORDER BY day, currency_code LIMIT {limit}");
    let rows: Vec<DayRow> = all(on, &sql, [from.number().into(), to.number().into()]).await?;
    Ok(rows.into_iter().map(DayRow::counts).collect())
}

#[derive(FromQueryResult)]
struct TimeRow {
    day: i64,
    currency_code: String,
    bucket: i64,
    sagas: i64,
}

/// How many sagas took how long.
pub type Times = BTreeMap<DayOf, BTreeMap<i64, i64>>;

/// How many sagas took how long of the orders that were accepted on these days; up to a limit of rows.
pub async fn saga_times(on: &impl ConnectionTrait, from: Day, to: Day, limit: u64) -> Result<Times, Error> {
    let sql = format!(
        "SELECT day, currency_code, bucket, sagas FROM saga_times WHERE day BETWEEN $1 AND $2 ORDER BY day, currency_code, bucket LIMIT {limit}"
    );
    let rows: Vec<TimeRow> = all(on, &sql, [from.number().into(), to.number().into()]).await?;
    let mut found = Times::new();
    for TimeRow { day, currency_code, bucket, sagas } in rows {
        found.entry(DayOf { day: Day::of_number(day), currency_code }).or_default().insert(bucket, sagas);
    }
    Ok(found)
}

#[derive(FromQueryResult)]
struct SaleRow {
    account_id: Uuid,
    day: i64,
    product_id: Uuid,
    product_name: String,
    currency_code: String,
    sold: i64,
    paid_billions: i64,
    paid_rest: i64,
    returned: i64,
    refunded_billions: i64,
    refunded_rest: i64,
    newest_us: i64,
}

impl SaleRow {
    fn sale(self) -> (SaleOf, Sale) {
        let of = SaleOf { account_id: self.account_id, day: Day::of_number(self.day), product_id: self.product_id };
        let sale = Sale {
            product_name: self.product_name,
            currency_code: self.currency_code,
            sold: self.sold,
            paid: Total::of_parts(self.paid_billions, self.paid_rest),
            returned: self.returned,
            refunded: Total::of_parts(self.refunded_billions, self.refunded_rest),
            newest_us: self.newest_us,
        };
        (of, sale)
    }
}

/// What was sold and paid to an account on these days, by day and product; up to a limit.
pub async fn sales(on: &impl ConnectionTrait, account_id: Uuid, from: Day, to: Day, limit: u64) -> Result<Vec<(SaleOf, Sale)>, Error> {
    let sql = format!(
        "SELECT account_id, day, product_id, product_name, currency_code, sold, paid_billions, paid_rest, returned, refunded_billions, refunded_rest, newest_us \
         FROM sales WHERE account_id = $1 AND day BETWEEN $2 AND $3 ORDER BY day, product_id LIMIT {limit}"
    );
    let rows: Vec<SaleRow> = all(on, &sql, [account_id.into(), from.number().into(), to.number().into()]).await?;
    Ok(rows.into_iter().map(SaleRow::sale).collect())
}

#[derive(FromQueryResult)]
struct TopRow {
    product_id: Uuid,
    product_name: String,
    currency_code: String,
    sold: i64,
    paid_billions: i64,
    paid_rest: i64,
    newest_us: i64,
}

/// The products of which most pieces were sold on these days, less those that came back; the best first.
pub async fn top_products(on: &impl ConnectionTrait, from: Day, to: Day, limit: u64) -> Result<Vec<TopProduct>, Error> {
    let sum = |what: &str| format!("CAST(sum({what}) AS bigint)");
    let sql = format!(
        "SELECT product_id, max(product_name) AS product_name, currency_code, {} AS sold, {} AS paid_billions, {} AS paid_rest, max(newest_us) AS newest_us FROM sales \
         WHERE day BETWEEN $1 AND $2 GROUP BY product_id, currency_code HAVING sum(sold - returned) > 0 ORDER BY 4 DESC, product_id LIMIT {limit}",
        sum("sold - returned"),
        sum("paid_billions - refunded_billions"),
        sum("paid_rest - refunded_rest")
    );
    let rows: Vec<TopRow> = all(on, &sql, [from.number().into(), to.number().into()]).await?;
    let read = |row: TopRow| TopProduct {
        product_id: row.product_id,
        name: row.product_name,
        currency_code: row.currency_code,
        quantity: row.sold,
        revenue: Total::of_parts(row.paid_billions, row.paid_rest),
        newest_us: row.newest_us,
    };
    Ok(rows.into_iter().map(read).collect())
}

/// All orders, whichever their day and currency.
pub async fn all_days(on: &impl ConnectionTrait) -> Result<OrderCounts, Error> {
    let numbers = BY_STATUS.into_iter().chain(["decided", "compensated", "took_us", "revenue_billions", "revenue_rest"]);
    let sums: Vec<String> = numbers.map(|name| format!("CAST(coalesce(sum({name}), 0) AS bigint) AS {name}")).collect();
    let sql = format!(
        "SELECT CAST(0 AS bigint) AS day, '' AS currency_code, coalesce(max(newest_us), 0) AS newest_us, {} FROM order_days",
        sums.join(", ")
    );
    let found: Option<DayRow> = one(on, &sql, []).await?;
    Ok(found.map(|row| row.counts().1).unwrap_or_default())
}
