//! Orders that the adversary writes, and what reports are to tell of them.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use lastro_database::{Database, all};
use lastro_orders::ORDER_EVENTS;
use lastro_proto::orders::events::v1::{
    InventoryReserved, OrderCancelled, OrderCompleted, OrderCreated, OrderEvent, OrderFailed, OrderStatusUpdated, OrderedItem, PaymentFailed,
    PaymentProcessed, order_event,
};
use prost::Message as _;
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use sea_orm::FromQueryResult;
use uuid::Uuid;

use super::generate::{BEGIN_US, DAYS, HOUR_US, Stream, push};

const PRODUCTS: usize = 12;
const NAMES: [&str; 4] = ["Café com açúcar", "Mate 500 g", "Lamp", "Tea"];

/// What reports are to tell of orders, computed from what was generated and nothing else.
#[derive(Default)]
pub struct Expected {
    /// How many stand where, by the number of the status.
    by_status: BTreeMap<i64, i64>,
    /// Pieces sold and returned, by product.
    sold: BTreeMap<Uuid, (i64, i64)>,
    decided: i64,
    compensated: i64,
}

struct Writing {
    id: Uuid,
    events: Vec<lastro_events::Event>,
    now_us: i64,
}

impl Writing {
    fn tell(&mut self, kind: &'static str, event: order_event::Event) {
        self.now_us += 1_000;
        let payload = OrderEvent { event: Some(event), trace_id: String::new() }.encode_to_vec();
        push(&mut self.events, self.id, kind, payload, self.now_us);
    }

    fn becomes(&mut self, from: &str, to: &str) {
        let updated = OrderStatusUpdated { from: from.to_owned(), to: to.to_owned() };
        self.tell("ORDER_STATUS_UPDATED", order_event::Event::StatusUpdated(updated));
    }
}

/// So many orders, some of which are not carried out, and some cancelled afterwards.
pub fn generate(random: &mut StdRng, orders: usize) -> (Vec<Stream>, Expected) {
    let products: Vec<(Uuid, Uuid)> = (0..PRODUCTS).map(|_| (Uuid::now_v7(), Uuid::now_v7())).collect();
    let customers: Vec<Uuid> = (0..6).map(|_| Uuid::now_v7()).collect();
    let (mut streams, mut expected) = (Vec::new(), Expected::default());
    for number in 0..orders {
        let begin_us = BEGIN_US + (number as i64) * DAYS * 24 * HOUR_US / (orders.max(1) as i64);
        let customer = *customers.choose(random).expect("some");
        let events = order(random, &products, customer, begin_us, &mut expected);
        streams.push(Stream { store: ORDER_EVENTS, events });
    }
    (streams, expected)
}

fn order(random: &mut StdRng, products: &[(Uuid, Uuid)], customer_id: Uuid, begin_us: i64, expected: &mut Expected) -> Vec<lastro_events::Event> {
    let mut writing = Writing { id: Uuid::now_v7(), events: Vec::new(), now_us: begin_us };
    let (product_id, account_id) = *products.choose(random).expect("some");
    let quantity = random.random_range(1..9);
    let total_minor = 250 * i64::from(quantity);
    let item = OrderedItem {
        product_id: product_id.to_string(),
        product_name: (*NAMES.choose(random).expect("some")).to_owned(),
        quantity,
        price_minor: 250,
        merchant_account_id: account_id.to_string(),
    };
    let created = OrderCreated {
        customer_id: customer_id.to_string(),
        items: vec![item],
        currency_code: "BRL".to_owned(),
        total_minor,
        payment_method: "ACCOUNT".to_owned(),
        store_id: String::new(),
        external_id: format!("key-{}", random.random_range(0..1_000_000)),
    };
    writing.tell("ORDER_CREATED", order_event::Event::Created(created));
    let mut stands = |status: i64| *expected.by_status.entry(status).or_default() += 1;
    let choice = random.random_range(0..10);
    if choice == 0 {
        // It stays open.
        stands(1);
        return writing.events;
    }
    writing.tell("INVENTORY_RESERVED", order_event::Event::InventoryReserved(InventoryReserved::default()));
    expected.decided += 1;
    if choice <= 2 {
        let failed =
            PaymentFailed { reason: "INSUFFICIENT_FUNDS".to_owned(), refund: false, transaction_id: String::new(), detail: "not enough".to_owned() };
        writing.tell("PAYMENT_FAILED", order_event::Event::PaymentFailed(failed));
        let failed = OrderFailed { reason: "INSUFFICIENT_FUNDS".to_owned(), detail: "not enough".to_owned() };
        writing.tell("ORDER_FAILED", order_event::Event::Failed(failed));
        writing.becomes("PENDING", "FAILED");
        expected.compensated += 1;
        stands(6);
        return writing.events;
    }
    let paid = PaymentProcessed { transaction_id: Uuid::now_v7().to_string(), currency_code: "BRL".to_owned(), amount_minor: total_minor };
    writing.tell("PAYMENT_PROCESSED", order_event::Event::PaymentProcessed(paid));
    writing.tell("ORDER_COMPLETED", order_event::Event::Completed(OrderCompleted { currency_code: "BRL".to_owned(), total_minor }));
    writing.becomes("PENDING", "COMPLETED");
    let sold = expected.sold.entry(product_id).or_default();
    sold.0 += i64::from(quantity);
    match choice {
        3 => {
            let cancelled = OrderCancelled { was_completed: true, reason: "CANCELLED".to_owned(), detail: String::new() };
            writing.tell("ORDER_CANCELLED", order_event::Event::Cancelled(cancelled));
            writing.becomes("COMPLETED", "CANCELLED");
            sold.1 += i64::from(quantity);
            stands(5);
        }
        4 => {
            writing.becomes("COMPLETED", "SHIPPED");
            stands(3);
        }
        _ => stands(2),
    }
    writing.events
}

#[derive(FromQueryResult)]
struct Number {
    number: i64,
    count: i64,
}

#[derive(FromQueryResult)]
struct Sold {
    product_id: Uuid,
    sold: i64,
    returned: i64,
}

/// That reports tell of orders what was generated.
pub async fn compare(reports: &Database, expected: &Expected) -> Result<()> {
    let sql = "SELECT status AS number, count(*) AS count FROM orders GROUP BY status";
    let rows: Vec<Number> = all(reports.reader(), sql, []).await?;
    let found: BTreeMap<i64, i64> = rows.into_iter().map(|row| (row.number, row.count)).collect();
    ensure!(found == expected.by_status, "orders: {found:?}, and not {:?}", expected.by_status);
    for (number, name) in (1..).zip(["pending", "completed", "shipped", "delivered", "cancelled", "failed"]) {
        let found = super::count(reports, &format!("SELECT coalesce(sum({name}), 0)::bigint AS count FROM order_days")).await?;
        let wanted = expected.by_status.get(&number).copied().unwrap_or_default();
        ensure!(found == wanted, "{name}: {found}, and not {wanted}");
    }
    let sql = "SELECT product_id, sum(sold)::bigint AS sold, sum(returned)::bigint AS returned FROM sales GROUP BY product_id";
    let rows: Vec<Sold> = all(reports.reader(), sql, []).await?;
    let found: BTreeMap<Uuid, (i64, i64)> = rows.into_iter().map(|row| (row.product_id, (row.sold, row.returned))).collect();
    ensure!(found == expected.sold, "sales: {found:?}, and not {:?}", expected.sold);
    for (name, wanted) in [("decided", expected.decided), ("compensated", expected.compensated)] {
        let found = super::count(reports, &format!("SELECT coalesce(sum({name}), 0)::bigint AS count FROM order_days")).await?;
        ensure!(found == wanted, "{name}: {found}, and not {wanted}");
    }
    let found = super::count(reports, "SELECT coalesce(sum(sagas), 0)::bigint AS count FROM saga_times").await?;
    ensure!(found == expected.decided, "times of sagas: {found}, and not {}", expected.decided);
    Ok(())
}

/// How many events reports have seen of orders, and how many there are.
pub async fn are_all_there(reports: &Database, events: i64) -> Result<bool> {
    Ok(super::count(reports, "SELECT coalesce(sum(version), 0)::bigint AS count FROM orders").await? == events)
}
