//! Reservations of one piece, over many products and of one hot product, beside transfers in the same run; and reads of stock, from the cache and from the
//! database. Each reservation is released again, so that stock never runs out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use hdrhistogram::Histogram;
use lastro_proto::inventory::v1::inventory_service_client::InventoryServiceClient;
use lastro_proto::inventory::v1::{GetStockRequest, ReserveItem, ReserveStockRequest};
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::load::{self, Kind};
use crate::report;
use crate::setup::Bench;

const PRODUCTS: usize = 1_000;
const CALLERS: usize = 128;
const CONNECTIONS: usize = 4;
/// More than any run reserves.
const PIECES: i64 = 100_000_000;

/// In turns: transfers, reservations over many products, reservations of one, reads.
pub async fn measure(bench: &Bench, rounds: usize, span: Duration) -> Result<()> {
    let catalogue = Arc::new(Catalogue::make(bench).await?);
    let (mut transfers, mut many, mut hot) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        let calls = load::measure(&bench.rich, Kind::Transfer, CALLERS, span).await?;
        println!("round {round}: settled transfers, {CALLERS} callers: {calls}");
        transfers.push(calls.per_second());
        for (what, products, found) in [("over 1,000 products", PRODUCTS, &mut many), ("of one hot product", 1, &mut hot)] {
            let measured =
                run(&catalogue, span, move |catalogue, client, number| async move { catalogue.reserve(client, number, products).await }).await?;
            println!("round {round}: reservations of one piece {what}, {CALLERS} callers: {measured}");
            found.push(measured.per_second);
        }
    }
    report::ratio(
        "reservations over 1,000 products / settled transfers",
        report::median(many.into_iter()),
        report::median(transfers.iter().copied()),
    );
    report::ratio("reservations of one hot product / settled transfers", report::median(hot.into_iter()), report::median(transfers.into_iter()));
    let cached = run(&catalogue, span, |catalogue, client, number| async move { catalogue.read(client, number, None).await }).await?;
    println!("reads of stock from the cache, {CALLERS} callers: {cached}");
    let now = lastro_proto::time::timestamp(lastro_mesh::clock::now_us());
    let past = run(&catalogue, span, move |catalogue, client, number| async move { catalogue.read(client, number, Some(now)).await }).await?;
    println!("reads of stock from the database, {CALLERS} callers: {past}");
    long_stream(&catalogue).await
}

/// Products with stock, and who may reserve it.
struct Catalogue {
    products: Vec<String>,
    token: String,
    channels: Vec<Channel>,
    rest: lastro_tests::Api,
    numbers: AtomicUsize,
}

impl Catalogue {
    async fn make(bench: &Bench) -> Result<Self> {
        let front = &bench.rich.front;
        let (rest, token) = (front.api(), front.administrator().await?);
        let merchant = rest.someone().await?;
        let account = rest.account(&merchant.token, "BRL").await?;
        println!("making {PRODUCTS} products …");
        let made = (0..PRODUCTS).map(|number| {
            let (rest, token, account) = (&rest, &token, &account);
            async move {
                let price = json!({ "currencyCode": "BRL", "amount": "1.00" });
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
        Ok(Self { products, token, channels, rest, numbers: AtomicUsize::new(0) })
    }

    fn request<T>(&self, message: T) -> Result<Request<T>, Status> {
        let mut request = Request::new(message);
        let token = format!("Bearer {}", self.token).parse().map_err(|_| Status::internal("a token that is no header"))?;
        request.metadata_mut().insert("authorization", token);
        Ok(request)
    }

    /// One piece of one of the first so many products, for a second.
    async fn reserve(&self, mut client: InventoryServiceClient<Channel>, number: usize, products: usize) -> Result<(), Status> {
        let product_id = self.products[number % products].clone();
        let reserve = ReserveStockRequest {
            reservation_id: format!("bench {} {number}", self.numbers.fetch_add(1, Ordering::Relaxed)),
            items: vec![ReserveItem { product_id, store_id: None, quantity: 1 }],
            ttl: Some(pbjson_types::Duration { seconds: 3600, nanos: 0 }),
        };
        client.reserve_stock(self.request(reserve)?).await.map(|_| ())
    }

    async fn read(
        &self,
        mut client: InventoryServiceClient<Channel>,
        number: usize,
        as_of: Option<lastro_proto::time::Timestamp>,
    ) -> Result<(), Status> {
        let product_id = self.products[number % PRODUCTS].clone();
        client.get_stock(self.request(GetStockRequest { product_id, store_id: None, as_of })?).await.map(|_| ())
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
        write!(formatter, "{:.0}/s, p50 {:.2} ms, p95 {:.2} ms, p99 {:.2} ms", self.per_second, at(0.5), at(0.95), at(0.99))
    }
}

/// Callers in a closed loop.
async fn run<F: Future<Output = Result<(), Status>> + Send + 'static>(
    catalogue: &Arc<Catalogue>,
    span: Duration,
    call: impl Fn(Arc<Catalogue>, InventoryServiceClient<Channel>, usize) -> F + Clone + Send + 'static,
) -> Result<Measured> {
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (catalogue, stop, call) = (catalogue.clone(), stop.clone(), call.clone());
            let client = InventoryServiceClient::new(catalogue.channels[caller % CONNECTIONS].clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                let mut number = caller;
                while !stop.load(Ordering::Relaxed) {
                    let since = Instant::now();
                    call(catalogue.clone(), client.clone(), number).await?;
                    latencies.push(since.elapsed());
                    number += CALLERS;
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

/// A stream of 100,000 events answers a read of now and of the past.
async fn long_stream(catalogue: &Arc<Catalogue>) -> Result<()> {
    const EVENTS: i64 = 100_000;
    let hot = catalogue.products[0].clone();
    let path = format!("/api/v1/inventory/{hot}");
    let version = || async {
        let stock = catalogue.rest.get(&path, Some(&catalogue.token)).await?;
        stock.body["stores"][0]["version"].as_i64().with_context(|| format!("{stock:?}"))
    };
    while version().await? < EVENTS {
        run(catalogue, Duration::from_secs(1), |catalogue, client, number| async move { catalogue.reserve(client, number, 1).await }).await?;
    }
    let events = version().await?;
    let mut report = Vec::new();
    for (what, query) in [("now", String::new()), ("of the past", format!("?asOf={}", past(catalogue, &hot, events / 2).await?))] {
        let mut latencies = Vec::new();
        for _ in 0..200 {
            let since = Instant::now();
            let read = catalogue.rest.get(&format!("{path}{query}"), Some(&catalogue.token)).await?;
            ensure!(read.status == 200, "{read:?}");
            latencies.push(since.elapsed());
        }
        latencies.sort_unstable();
        report.push(format!("{what}: p50 {:.2?}, p99 {:.2?}", latencies[100], latencies[197]));
    }
    println!("a stream of {events} events, over REST, {}", report.join("; "));
    Ok(())
}

/// When an event of the stream was recorded.
async fn past(catalogue: &Catalogue, product: &str, version: i64) -> Result<String> {
    use base64::Engine as _;
    let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(u128::try_from(version)?.to_be_bytes());
    let path = format!("/api/v1/inventory/{product}/events?storeId=a&pageSize=1&pageToken={token}");
    let page = catalogue.rest.get(&path, Some(&catalogue.token)).await?;
    page.body["events"][0]["recordTime"].as_str().map(str::to_owned).with_context(|| format!("{page:?}"))
}
