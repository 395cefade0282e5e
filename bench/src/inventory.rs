//! Reservations of one piece, over many products and of one hot product, beside transfers in the same run; and reads of stock, from the cache and from the
//! database. Each reservation is released again, so that stock never runs out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lastro_proto::inventory::v1::inventory_service_client::InventoryServiceClient;
use lastro_proto::inventory::v1::{GetStockRequest, ReserveItem, ReserveStockRequest};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::load::{self, Calls, Kind};
use crate::report;
use crate::setup::{Bench, make_products};

const PRODUCTS: usize = 1_000;
const CALLERS: usize = 128;
const CONNECTIONS: usize = 4;

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
            found.push(measured.per_second());
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
        let products = make_products(&bench.rich.front, PRODUCTS, 1).await?;
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

/// Callers in a closed loop, each with numbers of its own.
async fn run<F: Future<Output = Result<(), Status>> + Send + 'static>(
    catalogue: &Arc<Catalogue>,
    span: Duration,
    call: impl Fn(Arc<Catalogue>, InventoryServiceClient<Channel>, usize) -> F + Clone + Send + 'static,
) -> Result<Calls> {
    let catalogue = catalogue.clone();
    load::closed_loop(CALLERS, span, move |caller, number| {
        let client = InventoryServiceClient::new(catalogue.channels[caller % CONNECTIONS].clone());
        let called = call(catalogue.clone(), client, caller + number * CALLERS);
        async move { Ok(called.await?) }
    })
    .await
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
