//! Orders from their submission until they are completed: over 1,000 products and of one hot product, by so many callers at once, beside transfers in the same
//! run. With what an order costs: commits of the database, and calls between services.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lastro_proto::orders::v1::orders_service_client::OrdersServiceClient;
use lastro_proto::orders::v1::{CreateOrderRequest, OrderItemRequest, OrderPayment, order, order_payment};
use lastro_tests::postgres::{as_postgres, bin};
use lastro_tests::{Postgres, run};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::load::{self, Calls, Kind};
use crate::report;
use crate::setup::{Bench, Rich, make_products};

pub const PRODUCTS: usize = 1_000;
/// The merchants that they are of, whose accounts get the money.
const MERCHANTS: usize = 100;
const AT_ONCE: [usize; 3] = [16, 64, 512];
const CONNECTIONS: usize = 4;

/// In turns: transfers, and orders by so many callers.
pub async fn measure(bench: &Bench, postgres: &Postgres, rounds: usize, span: Duration) -> Result<()> {
    let market = Arc::new(Market::make(&bench.rich).await?);
    let mut transfers = Vec::new();
    let mut found: Vec<Vec<f64>> = vec![Vec::new(); AT_ONCE.len()];
    for round in 1..=rounds {
        let calls = load::measure(&bench.rich, Kind::Transfer, 128, span).await?;
        println!("round {round}: settled transfers, 128 callers: {calls}");
        transfers.push(calls.per_second());
        for (what, products) in [("over 1,000 products", PRODUCTS), ("of one hot product", 1)] {
            for (place, callers) in AT_ONCE.into_iter().enumerate() {
                let (placed, before) = (market.numbers.load(Ordering::Relaxed), Costs::read(bench, postgres).await?);
                let measured = buy(&market, callers, products, span).await?;
                let placed = market.numbers.load(Ordering::Relaxed) - placed;
                let costs = Costs::read(bench, postgres).await?.since(&before, placed);
                println!("round {round}: completed orders {what}, {callers} at once: {measured}; {costs}");
                if products == PRODUCTS {
                    found[place].push(measured.per_second());
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
pub struct Market {
    products: Vec<String>,
    accounts: Vec<String>,
    token: String,
    channels: Vec<Channel>,
    numbers: AtomicUsize,
}

impl Market {
    pub async fn make(rich: &Rich) -> Result<Self> {
        let front = &rich.front;
        let products = make_products(front, PRODUCTS, MERCHANTS).await?;
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            channels.push(front.channel().await?);
        }
        let (accounts, token) = (rich.accounts.clone(), rich.someone.token.clone());
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

/// So many callers in a closed loop, who buy the first so many products.
pub async fn buy(market: &Arc<Market>, callers: usize, products: usize, span: Duration) -> Result<Calls> {
    let market = market.clone();
    load::closed_loop(callers, span, move |caller, _| {
        let (market, client) = (market.clone(), OrdersServiceClient::new(market.channels[caller % CONNECTIONS].clone()));
        async move { Ok(market.order(client, products).await?) }
    })
    .await
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

    fn since(&self, before: &Self, orders: usize) -> String {
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
