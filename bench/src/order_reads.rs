//! Orders read back: lists and searches over a million orders, and whether their projection keeps up with the saga at full speed. The million is written as
//! events into the event store of orders, from which reports make of it what they make of any order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lastro_database::Database;
use lastro_events::{Event, NewEvent};
use lastro_orders::ORDER_EVENTS;
use lastro_proto::orders::events::v1::{OrderCompleted, OrderCreated, OrderEvent, OrderFailed, OrderStatusUpdated, OrderedItem, order_event};
use lastro_proto::orders::v1::order;
use lastro_proto::reports::v1::reports_service_client::ReportsServiceClient;
use lastro_proto::reports::v1::{ListOrdersRequest, ListOrdersResponse, SearchOrdersRequest};
use lastro_tests::Postgres;
use lastro_tests::reader::count;
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tonic::Request;
use tonic::transport::Channel;
use uuid::{Builder, Uuid};

use crate::load;
use crate::orders::{self, Market, PRODUCTS};
use crate::reports::{lag, lag_since};
use crate::setup::{Bench, Rich};

const CONNECTIONS: usize = 4;
/// Readers at once.
const READERS: usize = 8;
/// Buyers at once, when sagas run at full speed.
const BUYERS: usize = 512;
/// Orders of one database transaction, and transactions at once.
const WRITTEN_AT_ONCE: usize = 1_000;
const WRITERS: usize = 4;
/// Buyers, of whom the first one reads.
const CUSTOMERS: usize = 1_000;
/// Two words of each product's name are among these, and a third one is its number.
const WORDS: [&str; 20] = [
    "Café", "Chá", "Açúcar", "Caneca", "Filtro", "Bule", "Moedor", "Lâmpada", "Caderno", "Lápis", "Mesa", "Cadeira", "Tapete", "Cortina", "Espelho",
    "Relógio", "Vaso", "Prato", "Copo", "Talher",
];
/// 2026-01-01T00:00:00Z, and from there on for a year.
const BEGIN_US: i64 = 1_767_225_600_000_000;
const SPAN_US: i64 = 365 * 86_400_000_000;

/// In one process on PostgreSQL.
pub async fn measure(bench: &Bench, postgres: &Postgres, orders: usize, rounds: usize, span: Duration) -> Result<()> {
    let open = async |name: &str| Database::open_postgres(&postgres.url().parse()?, name, WRITERS as u32).await.map_err(anyhow::Error::from);
    let (publisher, reports) = (open("lastro_orders").await?, open("lastro_reports").await?);
    let begun = Instant::now();
    let events = write(&publisher, Uuid::parse_str(&bench.rich.someone.id)?, orders).await?;
    let written = begun.elapsed();
    until_all_is_there(&publisher, &reports, Duration::from_secs(2)).await?;
    let rate = events as f64 / begun.elapsed().as_secs_f64();
    println!(
        "{orders} orders, {events} events, written in {written:.1?}: reports has all of it {:.1?} after the first one, {rate:.0} events/s",
        begun.elapsed()
    );
    let (reads, market) = (Arc::new(Reads::make(&bench.rich).await?), Arc::new(Market::make(&bench.rich).await?));
    for round in 1..=rounds {
        for what in Read::ALL {
            let found = reads.clone().read(what, 0, 0).await?;
            let reads = reads.clone();
            let calls = load::closed_loop(READERS, span, move |caller, number| {
                let reads = reads.clone();
                async move { reads.read(what, caller, number).await.map(|_| ()) }
            })
            .await?;
            println!("round {round}: {}, {found} on the first page, {READERS} readers: {calls}", what.name());
        }
        let metrics = format!("http://{}/metrics", bench.rich.front.ops);
        let before = lag(&metrics, "orders").await?;
        let bought = orders::buy(&market, BUYERS, PRODUCTS, span).await?;
        println!("round {round}: completed orders beside them, {BUYERS} at once: {bought}");
        let since = Instant::now();
        until_all_is_there(&publisher, &reports, Duration::from_millis(100)).await?;
        let (events, p99) = lag_since(&before, &lag(&metrics, "orders").await?);
        println!(
            "round {round}: events of orders applied: {:.0}/s, age when applied: p99 at most {p99} s; all there {:.1?} after the last order",
            events / span.as_secs_f64(),
            since.elapsed()
        );
    }
    publisher.close().await;
    reports.close().await;
    Ok(())
}

/// Writes so many orders of a year, oldest first; how many events that are.
async fn write(publisher: &Database, reader: Uuid, orders: usize) -> Result<usize> {
    let customers: Arc<[Uuid]> = std::iter::once(reader).chain((1..CUSTOMERS).map(|_| Uuid::now_v7())).collect();
    let products: Arc<[Uuid]> = (0..PRODUCTS).map(|_| Uuid::now_v7()).collect();
    let writers = (0..WRITERS).map(|writer| {
        let (publisher, customers, products) = (publisher.clone(), customers.clone(), products.clone());
        tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(writer as u64);
            let mut events = 0;
            for first in (writer * WRITTEN_AT_ONCE..orders).step_by(WRITERS * WRITTEN_AT_ONCE) {
                let numbers = first..(first + WRITTEN_AT_ONCE).min(orders);
                let batch: Vec<Event> = numbers.flat_map(|number| order(&mut random, number, orders, &customers, &products)).collect();
                let tx = publisher.begin().await?;
                ORDER_EVENTS.insert(&tx, &batch).await?;
                tx.commit().await?;
                events += batch.len();
            }
            anyhow::Ok(events)
        })
    });
    let writers: Vec<_> = writers.collect();
    let mut events = 0;
    for writer in writers {
        events += writer.await??;
    }
    Ok(events)
}

/// The events of one order: nine of ten are completed.
fn order(random: &mut StdRng, number: usize, orders: usize, customers: &[Uuid], products: &[Uuid]) -> Vec<Event> {
    let created_us = BEGIN_US + SPAN_US / (orders as i64) * (number as i64);
    let id = Builder::from_unix_timestamp_millis(created_us.unsigned_abs() / 1_000, &random.random()).into_uuid();
    let items: Vec<OrderedItem> = (0..random.random_range(1..=3)).map(|_| item(random, products)).collect();
    let total_minor = items.iter().map(|item| item.price_minor * i64::from(item.quantity)).sum();
    let created = OrderCreated {
        customer_id: customers[random.random_range(0..customers.len())].to_string(),
        items,
        currency_code: "BRL".to_owned(),
        total_minor,
        payment_method: "ACCOUNT".to_owned(),
        store_id: String::new(),
        external_id: format!("cart {number}"),
    };
    let mut events: Vec<Event> = Vec::with_capacity(3);
    let mut push = |kind: &'static str, event: order_event::Event| {
        let payload = OrderEvent { event: Some(event), trace_id: String::new() }.encode_to_vec();
        let recorded_us = created_us + 20_000 * (events.len() as i64);
        let new = NewEvent { id: Uuid::now_v7(), kind, payload, correlation_id: "bench".to_owned(), causation_id: None, recorded_us };
        events.push(match events.last() {
            Some(previous) => new.at(id, previous.version + 1, &previous.hash),
            None => new.at(id, 1, &lastro_events::event::GENESIS),
        });
    };
    push("ORDER_CREATED", order_event::Event::Created(created));
    let to = if number.is_multiple_of(10) {
        let (reason, detail) = ("INSUFFICIENT_FUNDS".to_owned(), "the account has too little".to_owned());
        push("ORDER_FAILED", order_event::Event::Failed(OrderFailed { reason, detail }));
        "FAILED"
    } else {
        push("ORDER_COMPLETED", order_event::Event::Completed(OrderCompleted { currency_code: "BRL".to_owned(), total_minor }));
        "COMPLETED"
    };
    push("ORDER_STATUS_UPDATED", order_event::Event::StatusUpdated(OrderStatusUpdated { from: "PENDING".to_owned(), to: to.to_owned() }));
    events
}

fn item(random: &mut StdRng, products: &[Uuid]) -> OrderedItem {
    let place = random.random_range(0..products.len());
    OrderedItem {
        product_id: products[place].to_string(),
        product_name: format!("{} {} {place}", WORDS[place % WORDS.len()], WORDS[place / WORDS.len() % WORDS.len()]),
        quantity: random.random_range(1..=5),
        price_minor: 100 + 17 * (place as i64),
        merchant_account_id: products[place % 100].to_string(),
    }
}

/// Waits until reports has applied every event of orders. To look takes the server some time, where there are a million.
async fn until_all_is_there(publisher: &Database, reports: &Database, look_every: Duration) -> Result<()> {
    let since = Instant::now();
    let wanted = count(publisher, "SELECT count(*) AS count FROM order_events").await?;
    while count(reports, "SELECT coalesce(sum(version), 0)::bigint AS count FROM orders").await? < wanted {
        ensure!(since.elapsed() < Duration::from_secs(1_200), "reports does not come to have every event of orders");
        tokio::time::sleep(look_every).await;
    }
    Ok(())
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
enum Read {
    OfBuyer,
    FailedInAWeek,
    OfProduct,
    Expensive,
    CommonWord,
    TwoWords,
    RareWord,
}

impl Read {
    const ALL: [Self; 7] = [Self::OfBuyer, Self::FailedInAWeek, Self::OfProduct, Self::Expensive, Self::CommonWord, Self::TwoWords, Self::RareWord];

    const fn name(self) -> &'static str {
        match self {
            Self::OfBuyer => "a buyer's own COMPLETED orders",
            Self::FailedInAWeek => "everybody's FAILED orders of a week",
            Self::OfProduct => "orders of a product that cost 150.00 or more",
            Self::Expensive => "everybody's orders that cost 1,500.00 or more",
            Self::CommonWord => "search for a word that is in a fifth of all orders",
            Self::TwoWords => "search for two words that a few thousand orders have",
            Self::RareWord => "search for a buyer's key",
        }
    }
}

struct Reads {
    channels: Vec<Channel>,
    buyer: String,
    administrator: String,
    products: Vec<String>,
    orders: usize,
}

impl Reads {
    async fn make(rich: &Rich) -> Result<Self> {
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            channels.push(rich.front.channel().await?);
        }
        let (buyer, administrator) = (rich.someone.token.clone(), rich.front.administrator().await?);
        let mut reads = Self { channels, buyer, administrator, products: Vec::new(), orders: 0 };
        let page = reads.list(0, &reads.administrator, ListOrdersRequest { page_size: 1_000, ..ListOrdersRequest::default() }).await?;
        reads.products = page.orders.iter().flat_map(|order| &order.items).map(|item| item.product_id.clone()).collect();
        let newest = page.orders.first().and_then(|order| order.external_id.strip_prefix("cart ")?.parse().ok());
        reads.orders = newest.unwrap_or_default();
        Ok(reads)
    }

    /// Asks for a page; how many orders it has.
    async fn read(self: Arc<Self>, what: Read, caller: usize, number: usize) -> Result<usize> {
        let everybodys = &self.administrator;
        let pick = |of: usize| (caller * 7_919 + number * 31) % of.max(1);
        let list = ListOrdersRequest::default();
        let page = match what {
            Read::OfBuyer => self.list(caller, &self.buyer, ListOrdersRequest { status: Some(order::Status::Completed as i32), ..list }).await?,
            Read::FailedInAWeek => {
                let day = |day: usize| Some(format!("2026-{:02}-{:02}", 1 + pick(12), day));
                let (from, to) = (day(1 + pick(20)), day(7 + pick(20)));
                self.list(caller, everybodys, ListOrdersRequest { status: Some(order::Status::Failed as i32), from, to, ..list }).await?
            }
            Read::OfProduct => {
                let product_id = Some(self.products[pick(self.products.len())].clone());
                self.list(caller, everybodys, ListOrdersRequest { product_id, min_total: Some("150.00".to_owned()), ..list }).await?
            }
            Read::Expensive => self.list(caller, everybodys, ListOrdersRequest { min_total: Some("1500.00".to_owned()), ..list }).await?,
            Read::CommonWord => self.search(caller, "cafe".to_owned()).await?,
            Read::TwoWords => self.search(caller, format!("LAPIS {}", WORDS[pick(WORDS.len())])).await?,
            Read::RareWord => self.search(caller, format!("{}", pick(self.orders))).await?,
        };
        Ok(page.orders.len())
    }

    async fn list(&self, caller: usize, token: &str, request: ListOrdersRequest) -> Result<ListOrdersResponse> {
        let mut request = Request::new(request);
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
        Ok(self.client(caller).list_orders(request).await?.into_inner())
    }

    async fn search(&self, caller: usize, q: String) -> Result<ListOrdersResponse> {
        let mut request = Request::new(SearchOrdersRequest { q, ..SearchOrdersRequest::default() });
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.administrator).parse()?);
        Ok(self.client(caller).search_orders(request).await?.into_inner())
    }

    fn client(&self, caller: usize) -> ReportsServiceClient<Channel> {
        ReportsServiceClient::new(self.channels[caller % CONNECTIONS].clone())
    }
}
