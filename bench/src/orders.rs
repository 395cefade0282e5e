//! Orders from their submission until they are completed: over 1,000 products and of one hot product, by so many callers at once, beside transfers in the same
//! run. With what an order costs: commits of the database, and calls between services.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use hdrhistogram::Histogram;
use lastro_proto::orders::v1::orders_service_client::OrdersServiceClient;
use lastro_proto::orders::v1::{CreateOrderRequest, OrderItemRequest, OrderPayment, order, order_payment};
use lastro_tests::postgres::{as_postgres, bin};
use lastro_tests::{Postgres, run};
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::load::{self, Kind};
use crate::report;
use crate::setup::Bench;

const PRODUCTS: usize = 1_000;
/// The merchants that they are of, whose accounts get the money.
const MERCHANTS: usize = 100;
const AT_ONCE: [usize; 3] = [16, 64, 512];
const CONNECTIONS: usize = 4;
/// More than any run sells, and fewer than a store may have.
const PIECES: i64 = 100_000_000;

/// In turns: transfers, and orders by so many callers.
pub async fn measure(bench: &Bench, postgres: &Postgres, rounds: usize, span: Duration) -> Result<()> {
    let market = Arc::new(Market::make(bench).await?);
    let mut transfers = Vec::new();
    let mut found: Vec<Vec<f64>> = vec![Vec::new(); AT_ONCE.len()];
    for round in 1..=rounds {
        let calls = load::measure(&bench.rich, Kind::Transfer, 128, span).await?;
        println!("round {round}: settled transfers, 128 callers: {calls}");
        transfers.push(calls.per_second());
        for (what, products) in [("over 1,000 products", PRODUCTS), ("of one hot product", 1)] {
            for (place, callers) in AT_ONCE.into_iter().enumerate() {
                let before = Costs::read(bench, postgres).await?;
                let measured = buy(&market, callers, products, span).await?;
                let costs = Costs::read(bench, postgres).await?.since(&before, measured.latency_us.len());
                println!("round {round}: completed orders {what}, {callers} at once: {measured}; {costs}");
                if products == PRODUCTS {
                    found[place].push(measured.per_second);
                }
            }
        }
    }
    let open = sql(postgres, "lastro_orders", "SELECT count(*) FROM orders WHERE saga_class <> 0")?;
    ensure!(open == 0, "{open} orders are not completed");
    println!("every order is completed: none is open, given up or stuck");
    for (callers, found) in AT_ONCE.into_iter().zip(found) {
        let (found, transfers) = (report::median(found.into_iter()), report::median(transfers.iter().copied()));
        report::ratio(&format!("completed orders, {callers} at once / settled transfers"), found, transfers);
    }
    Ok(())
}

/// Products with stock, and who buys them.
struct Market {
    products: Vec<String>,
    accounts: Vec<String>,
    token: String,
    channels: Vec<Channel>,
    numbers: AtomicUsize,
}

impl Market {
    async fn make(bench: &Bench) -> Result<Self> {
        let front = &bench.rich.front;
        let (rest, administrator) = (front.api(), front.administrator().await?);
        let merchant = rest.someone().await?;
        let mut merchants = Vec::new();
        for _ in 0..MERCHANTS {
            merchants.push(rest.account(&merchant.token, "BRL").await?);
        }
        println!("making {PRODUCTS} products of {MERCHANTS} merchants …");
        let made = (0..PRODUCTS).map(|number| {
            let (rest, token, account) = (&rest, &administrator, &merchants[number % MERCHANTS]);
            async move {
                let price = json!({ "currencyCode": "BRL", "amount": "0.01" });
                let body = json!({ "name": format!("product {number}"), "description": "", "price": price, "merchantAccountId": account });
                let product = rest.post("/api/v1/products", Some(token), body).await?.text("id")?;
                let body = json!({ "storeId": "a", "quantity": PIECES, "externalId": format!("{product} a") });
                let stocked = rest.post(&format!("/api/v1/inventory/{product}/stock"), Some(token), body).await?;
                ensure!(stocked.status == 200, "{stocked:?}");
                Ok(product)
            }
        });
        let products = futures_util::stream::iter(made).buffered(32).collect::<Vec<Result<String>>>().await.into_iter().collect::<Result<_>>()?;
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            channels.push(front.channel().await?);
        }
        let (accounts, token) = (bench.rich.accounts.clone(), bench.rich.someone.token.clone());
        Ok(Self { products, accounts, token, channels, numbers: AtomicUsize::new(0) })
    }

    /// One piece of one of the first so many products, until the order is decided.
    async fn order(&self, mut client: OrdersServiceClient<Channel>, products: usize) -> Result<(), Status> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let account_id = Some(self.accounts[number % self.accounts.len()].clone());
        let mut request = Request::new(CreateOrderRequest {
            external_id: format!("bench {number}"),
            items: vec![OrderItemRequest { product_id: self.products[number % products].clone(), quantity: 1 }],
            payment: Some(OrderPayment { method: order_payment::Method::Account as i32, account_id, card_token: None }),
            wait: Some(pbjson_types::Duration { seconds: 30, nanos: 0 }),
            ..CreateOrderRequest::default()
        });
        let token = format!("Bearer {}", self.token).parse().map_err(|_| Status::internal("a token that is no header"))?;
        request.metadata_mut().insert("authorization", token);
        let order = client.create_order(request).await?.into_inner();
        if order.status() == order::Status::Completed { Ok(()) } else { Err(Status::unknown(format!("{order:?}"))) }
    }
}

/// What was measured.
struct Measured {
    per_second: f64,
    latency_us: Histogram<u64>,
}

impl std::fmt::Display for Measured {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = |quantile: f64| self.latency_us.value_at_quantile(quantile) as f64 / 1000.0;
        write!(formatter, "{:.0}/s, p50 {:.1} ms, p95 {:.1} ms, p99 {:.1} ms", self.per_second, at(0.5), at(0.95), at(0.99))
    }
}

/// Callers in a closed loop.
async fn buy(market: &Arc<Market>, callers: usize, products: usize, span: Duration) -> Result<Measured> {
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..callers)
        .map(|caller| {
            let (market, stop) = (market.clone(), stop.clone());
            let client = OrdersServiceClient::new(market.channels[caller % CONNECTIONS].clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let since = Instant::now();
                    market.order(client.clone(), products).await?;
                    latencies.push(since.elapsed());
                }
                Ok::<_, Status>(latencies)
            })
        })
        .collect();
    let since = Instant::now();
    tokio::time::sleep(span).await;
    stop.store(true, Ordering::Relaxed);
    let mut latency_us = Histogram::new_with_bounds(1, 60_000_000, 3)?;
    for caller in callers {
        for latency in caller.await?? {
            latency_us.record(u64::try_from(latency.as_micros())?.max(1))?;
        }
    }
    Ok(Measured { per_second: latency_us.len() as f64 / since.elapsed().as_secs_f64(), latency_us })
}

/// What was spent so far.
struct Costs {
    commits: i64,
    calls: f64,
}

impl Costs {
    async fn read(bench: &Bench, postgres: &Postgres) -> Result<Self> {
        // The server counts with a delay.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let commits = sql(postgres, "postgres", "SELECT coalesce(sum(xact_commit), 0) FROM pg_stat_database WHERE datname LIKE 'lastro%'")?;
        let text = reqwest::get(format!("http://{}/metrics", bench.server.ops)).await?.text().await?;
        let of_orders = text.lines().filter(|line| line.starts_with("lastro_outbound_total{service=\"orders\""));
        let calls = of_orders.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
        Ok(Self { commits, calls })
    }

    fn since(&self, before: &Self, orders: u64) -> String {
        let per_order = |count: f64| count / (orders.max(1) as f64);
        let (commits, calls) = (per_order((self.commits - before.commits) as f64), per_order(self.calls - before.calls));
        format!("{calls:.1} calls and {commits:.2} commits an order")
    }
}

fn sql(postgres: &Postgres, database: &str, statement: &str) -> Result<i64> {
    let mut command = as_postgres(&bin("psql")?);
    let port = postgres.port.to_string();
    let said = run(command.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port, "-At", "-d", database, "-c", statement]))?;
    said.trim().parse().with_context(|| format!("a number, and not {said:?}"))
}
