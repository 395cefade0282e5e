//! Stock on several replicas: many at once for few pieces, a frozen replica, what sagas ask for, caches that hear of each other, and a stampede.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use lastro_proto::internal::inventory::v1::reservations_service_client::ReservationsServiceClient;
use lastro_proto::internal::inventory::v1::saga_reservation::State;
use lastro_proto::internal::inventory::v1::{ConfirmRequest, ReleaseRequest, ReserveRequest, ReturnRequest, SagaCall, SagaItem};
use lastro_proto::inventory::v1::GetStockRequest;
use lastro_proto::inventory::v1::inventory_service_client::InventoryServiceClient;
use lastro_tests::Stack;
use lastro_tests::stack::Options;
use libtest_mimic::Trial;
use serde_json::json;
use sqlx::Connection as _;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::grpc::with_token;
use crate::inventory::Shop;
use crate::{World, block_on, failed};

/// Held by a journey that sends a crowd to the shared stack, and by the one that stands beside it: how fast others are is measured beside that crowd alone.
pub static CROWDS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

pub fn trials(world: impl Fn() -> Result<Arc<World>> + Clone + Send + 'static) -> Vec<Trial> {
    let shared = world.clone();
    vec![
        Trial::test("stack::reservations::many_at_once_for_few_pieces", || failed(block_on(many_at_once_for_few_pieces()))),
        Trial::test("stack::reservations::what_sagas_ask_for", move || failed(block_on(what_sagas_ask_for(shared()?.stack())))),
        Trial::test("stack::reservations::caches_hear_of_each_other", || failed(block_on(caches_hear_of_each_other()))),
        Trial::test("stack::reservations::a_stampede_leaves_others_fast", move || failed(block_on(a_stampede_leaves_others_fast(world()?.stack())))),
    ]
}

/// A connection to one replica of a service, such as `inventory-1`, as somebody whose certificate the policy knows.
pub async fn to_replica(stack: &Stack, replica: &str, who: &str) -> Result<Channel> {
    let service = replica.split('-').next().unwrap_or_default();
    let read = |file: String| std::fs::read(stack.path(&file));
    let identity = Identity::from_pem(read(format!("certs/{who}.pem"))?, read(format!("certs/{who}.key"))?);
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("certs/ca.pem".to_owned())?)).domain_name(service).identity(identity);
    Ok(Endpoint::new(format!("https://{}", stack.address(replica)))?.tls_config(tls)?.connect().await?)
}

/// 500 ask for 100 pieces in 3 stores, on two replicas, one of which freezes meanwhile: exactly 100 get one, and when their time is over all are back.
async fn many_at_once_for_few_pieces() -> Result<()> {
    let stack = Stack::start(Options::default())?;
    let front = stack.front();
    for freezes in [false, true] {
        let shop = Shop::open(&front).await?;
        for (store, pieces) in [("a", 40), ("b", 35), ("c", 25)] {
            assert_eq!(shop.adjust(&shop.product, store, pieces, &format!("{} {store}", shop.product)).await?.status, 200);
        }
        let ask = |number: usize| {
            let shop = &shop;
            async move {
                let name = format!("{} {number}", shop.product);
                let since = Instant::now();
                loop {
                    // Where nobody knows, the same name tells.
                    match shop.reserve(&name, json!([{ "productId": shop.product, "quantity": 1 }]), Some("20s")).await {
                        Ok(told) if ![502, 503, 504].contains(&told.status) => return Ok(told),
                        told => ensure!(since.elapsed() < Duration::from_secs(20), "{told:?}"),
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        let freeze = async {
            if freezes {
                tokio::time::sleep(Duration::from_millis(15)).await;
                stack.signal("inventory-1", "STOP")?;
                // Longer than its session may idle in a transaction.
                tokio::time::sleep(Duration::from_secs(4)).await;
                stack.signal("inventory-1", "CONT")?;
            }
            anyhow::Ok(())
        };
        let (told, frozen) = tokio::join!(join_all((0..500).map(ask)), freeze);
        frozen?;
        let told = told.into_iter().collect::<Result<Vec<_>>>()?;
        let got = told.iter().filter(|told| told.status < 300).count();
        let refused = told.iter().filter(|told| told.status == 409 && told.body["reason"] == "OUT_OF_STOCK").count();
        assert_eq!((got, refused), (100, 400), "freezes: {freezes}");
        shop.has(&shop.product, &[("a", 40, 40), ("b", 35, 35), ("c", 25, 25)]).await?;
        let since = Instant::now();
        loop {
            let pieces = shop.pieces(&shop.product, "").await?;
            if pieces.iter().all(|(_, _, reserved)| *reserved == 0) {
                assert_eq!(pieces.iter().map(|(_, on_hand, _)| on_hand).sum::<i64>(), 100);
                break;
            }
            ensure!(since.elapsed() < Duration::from_secs(40), "not all are back: {pieces:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    check(&stack).await
}

/// What is reserved is what reservations keep, and every stream comes to its stock.
async fn check(stack: &Stack) -> Result<()> {
    let mut session = sqlx::PgConnection::connect(&format!("{}/lastro_inventory", stack.postgres.url())).await?;
    for (rule, sql) in [
        (
            "stock is at the version of its last event",
            "SELECT count(*) FROM stock s WHERE s.version <> (SELECT coalesce(max(version), 0) FROM stock_events e WHERE e.aggregate_id = s.id)",
        ),
        (
            "nothing is reserved for nobody",
            "SELECT count(*) FROM stock WHERE reserved <> 0 AND NOT EXISTS (SELECT 1 FROM reservations WHERE state = 1)",
        ),
        ("versions have no gaps", "SELECT count(*) FROM (SELECT aggregate_id FROM stock_events GROUP BY 1 HAVING max(version) <> count(*)) x"),
    ] {
        let broken: i64 = sqlx::query_scalar(sql).fetch_one(&mut session).await?;
        ensure!(broken == 0, "{rule}: {broken}");
    }
    Ok(())
}

/// Each step with its undo; an undo may overtake what it undoes, and whoever has lost its lease is refused.
async fn what_sagas_ask_for(stack: &Stack) -> Result<()> {
    let shop = Shop::open(&stack.front()).await?;
    assert_eq!(shop.adjust(&shop.product, "a", 10, &shop.product).await?.status, 200);
    let channels = [to_replica(stack, "inventory-1", "operator").await?, to_replica(stack, "inventory-2", "operator").await?];
    let [mut one, mut two] = channels.map(ReservationsServiceClient::new);
    let saga = || uuid::Uuid::now_v7().to_string();
    let call = |saga: &str, epoch| {
        Some(SagaCall { on_behalf_of: uuid::Uuid::now_v7().to_string(), saga_id: saga.to_owned(), step: "reserve".to_owned(), epoch })
    };
    let items = |quantity| vec![SagaItem { product_id: shop.product.clone(), store_id: String::new(), quantity }];
    let reserve = |saga: &str, epoch, quantity| ReserveRequest { call: call(saga, epoch), items: items(quantity), ttl: None };
    let reason = |status: tonic::Status| lastro_mesh::status::reason_name(&status).unwrap_or_default();
    // Forth and back.
    let first = saga();
    let made = one.reserve(reserve(&first, 1, 4)).await?.into_inner();
    assert_eq!((made.state(), made.items[0].store_id.as_str()), (State::Reserved, "a"));
    assert_eq!(two.reserve(reserve(&first, 1, 4)).await?.into_inner().state(), State::Reserved, "the same again");
    assert_eq!(two.confirm(ConfirmRequest { call: call(&first, 1) }).await?.into_inner().state(), State::Confirmed);
    shop.has(&shop.product, &[("a", 6, 0)]).await?;
    assert_eq!(reason(one.release(ReleaseRequest { call: call(&first, 1) }).await.expect_err("it is confirmed")), "RESERVATION_CONFIRMED");
    assert_eq!(one.r#return(ReturnRequest { call: call(&first, 1) }).await?.into_inner().state(), State::Returned);
    assert_eq!(one.r#return(ReturnRequest { call: call(&first, 1) }).await?.into_inner().state(), State::Returned);
    shop.has(&shop.product, &[("a", 10, 0)]).await?;
    assert_eq!(reason(two.reserve(reserve(&first, 1, 4)).await.expect_err("it was undone")), "SAGA_CANCELLED");
    // What is only reserved is released by a return.
    let second = saga();
    one.reserve(reserve(&second, 1, 4)).await?;
    assert_eq!(two.r#return(ReturnRequest { call: call(&second, 1) }).await?.into_inner().state(), State::Released);
    assert_eq!(reason(one.confirm(ConfirmRequest { call: call(&second, 1) }).await.expect_err("released")), "RESERVATION_RELEASED");
    // The undo was faster: the do that comes late is refused, and keeps nothing. Both at once end in either order, never in a piece that is kept.
    let third = saga();
    assert_eq!(one.release(ReleaseRequest { call: call(&third, 1) }).await?.into_inner().state(), State::Released);
    assert_eq!(reason(two.reserve(reserve(&third, 1, 4)).await.expect_err("late")), "SAGA_CANCELLED");
    for _ in 0..20 {
        let saga = saga();
        let (mut one, mut two) = (one.clone(), two.clone());
        let (released, _) = tokio::join!(one.release(ReleaseRequest { call: call(&saga, 1) }), two.reserve(reserve(&saga, 1, 4)));
        assert_eq!(released?.into_inner().state(), State::Released);
    }
    shop.has(&shop.product, &[("a", 10, 0)]).await?;
    // A lease that was lost: whatever it asks for is refused, at either replica, also what it has asked for before.
    let fourth = saga();
    one.reserve(reserve(&fourth, 3, 1)).await?;
    assert_eq!(two.reserve(reserve(&fourth, 5, 1)).await?.into_inner().state(), State::Reserved);
    assert_eq!(reason(one.reserve(reserve(&fourth, 4, 1)).await.expect_err("stale")), "STALE_EPOCH");
    assert_eq!(reason(one.confirm(ConfirmRequest { call: call(&fourth, 4) }).await.expect_err("stale")), "STALE_EPOCH");
    assert_eq!(reason(one.release(ReleaseRequest { call: call(&fourth, 4) }).await.expect_err("stale")), "STALE_EPOCH");
    assert_eq!(two.release(ReleaseRequest { call: call(&fourth, 5) }).await?.into_inner().state(), State::Released);
    let fifth = saga();
    one.release(ReleaseRequest { call: call(&fifth, 7) }).await?;
    assert_eq!(reason(one.release(ReleaseRequest { call: call(&fifth, 6) }).await.expect_err("stale")), "STALE_EPOCH");
    assert_eq!(reason(one.confirm(ConfirmRequest { call: call(&saga(), 1) }).await.expect_err("nothing")), "RESERVATION_NOT_FOUND");
    // All of it is brought back or nothing: where one store has no room, no other one gets anything, however often that is tried.
    let (sixth, tea) = (saga(), shop.another().await?);
    assert_eq!(shop.adjust(&tea, "a", 5, &format!("{tea} a")).await?.status, 200);
    let both = [&shop.product, &tea].map(|product| SagaItem { product_id: product.clone(), store_id: "a".to_owned(), quantity: 5 });
    one.reserve(ReserveRequest { call: call(&sixth, 1), items: both.to_vec(), ttl: None }).await?;
    one.confirm(ConfirmRequest { call: call(&sixth, 1) }).await?;
    for (number, pieces) in [1_000_000_000, 1_000_000_000, 147_483_647].into_iter().enumerate() {
        assert_eq!(shop.adjust(&tea, "a", pieces, &format!("{tea} {number}")).await?.status, 200);
    }
    for _ in 0..3 {
        assert_eq!(reason(one.r#return(ReturnRequest { call: call(&sixth, 1) }).await.expect_err("no room")), "STOCK_OVERFLOW");
    }
    shop.has(&shop.product, &[("a", 5, 0)]).await?;
    assert_eq!(shop.adjust(&tea, "a", -5, &format!("{tea} room")).await?.status, 200);
    assert_eq!(two.r#return(ReturnRequest { call: call(&sixth, 1) }).await?.into_inner().state(), State::Returned);
    shop.has(&shop.product, &[("a", 10, 0)]).await?;
    shop.has(&tea, &[("a", 2_147_483_647, 0)]).await?;
    // The policy lets nobody else call.
    for who in ["gateway", "edge", "transactions"] {
        let mut other = ReservationsServiceClient::new(to_replica(stack, "inventory-1", who).await?);
        let refused = other.reserve(reserve(&saga(), 1, 1)).await.expect_err("not for these");
        assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{who}: {refused:?}");
    }
    Ok(())
}

/// What is written at one replica is read at the other within moments; without Redis nothing is kept in memory, and what is read is what is there.
async fn caches_hear_of_each_other() -> Result<()> {
    let stack = Stack::start(Options::default())?;
    let shop = Shop::open(&stack.front()).await?;
    let replicas = ["inventory-1", "inventory-2"];
    let mut clients = Vec::new();
    for replica in replicas {
        clients.push(InventoryServiceClient::new(to_replica(&stack, replica, "edge").await?));
    }
    let read = |client: InventoryServiceClient<Channel>| {
        let request = GetStockRequest { product_id: shop.product.clone(), ..GetStockRequest::default() };
        let request = with_token(&shop.administrator, request);
        let mut client = client;
        async move { anyhow::Ok(client.get_stock(request?).await?.into_inner().stores.iter().map(|store| store.on_hand).sum::<i32>()) }
    };
    let mut slowest = Duration::ZERO;
    for number in 1..=30 {
        assert_eq!(shop.adjust(&shop.product, "a", 1, &format!("{} {number}", shop.product)).await?.status, 200);
        let since = Instant::now();
        for client in &clients {
            while read(client.clone()).await? != number {
                ensure!(since.elapsed() < Duration::from_secs(2), "replica does not hear of {number}");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        slowest = slowest.max(since.elapsed());
    }
    eprintln!("both replicas had read what was written within {slowest:?} at most");
    let hits = |replica: &str| {
        let url = format!("http://{}/metrics", stack.ops(replica));
        async move {
            let text = reqwest::get(url).await?.text().await?;
            let line = text.lines().find(|line| line.starts_with("lastro_stock_cache_total") && line.contains("\"hit\"")).unwrap_or("x 0");
            anyhow::Ok(line.rsplit(' ').next().unwrap_or_default().parse::<u64>()?)
        }
    };
    let before = hits("inventory-1").await?;
    for _ in 0..50 {
        read(clients[0].clone()).await?;
    }
    assert!(hits("inventory-1").await? >= before + 49, "what has not changed comes from memory");
    // Redis goes away: nobody hears of anybody.
    stack.redis.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.stop();
    tokio::time::sleep(Duration::from_secs(1)).await;
    for number in 31..=40 {
        assert_eq!(shop.adjust(&shop.product, "a", 1, &format!("{} {number}", shop.product)).await?.status, 200);
        for client in &clients {
            assert_eq!(read(client.clone()).await?, number, "without Redis");
        }
    }
    Ok(())
}

/// Reads of one product's past that hang, as many as there can be: those of others are answered as ever.
async fn a_stampede_leaves_others_fast(stack: &Stack) -> Result<()> {
    let _alone = CROWDS.lock().await;
    // On a machine that is busy with other journeys everybody waits now and then. Who waits behind the stampede does so each time.
    for attempt in 1..=3 {
        match others_beside_a_stampede(stack).await {
            Ok((times, slowest)) if times > 20 && slowest < Duration::from_secs(1) => return Ok(()),
            told => eprintln!("others beside a stampede, attempt {attempt}: {:?}", told?),
        }
    }
    anyhow::bail!("three times others waited behind the reads of one product")
}

/// How often others read what they asked for beside the stampede, and how long the slowest of them took.
async fn others_beside_a_stampede(stack: &Stack) -> Result<(usize, Duration)> {
    let front = stack.front();
    let (hot, other) = (Shop::open(&front).await?, Shop::open(&front).await?);
    assert_eq!(other.adjust(&other.product, "a", 5, &other.product).await?.status, 200);
    assert_eq!(hot.adjust(&hot.product, "a", 5, &hot.product).await?.status, 200);
    let mut session = sqlx::PgConnection::connect(&format!("{}/lastro_inventory", stack.postgres.url())).await?;
    sqlx::raw_sql("BEGIN; LOCK TABLE stock_snapshots IN ACCESS EXCLUSIVE MODE").execute(&mut session).await?;
    let until = Instant::now() + Duration::from_secs(3);
    let stampede = join_all((0..200).map(|_| async {
        while Instant::now() < until {
            let told = hot.stock(&hot.product, "?asOf=2026-01-01T00:00:00Z").await?;
            ensure!([200, 503, 504].contains(&told.status), "{told:?}");
        }
        Ok(())
    }));
    let others = async {
        let (mut slowest, mut times) = (Duration::ZERO, 0);
        tokio::time::sleep(Duration::from_millis(300)).await;
        while Instant::now() < until {
            let since = Instant::now();
            let read = other.stock(&other.product, "").await?;
            ensure!(read.status == 200, "{read:?}");
            let products = other.api.get("/api/v1/products?pageSize=10", Some(&other.administrator)).await?;
            ensure!(products.status == 200, "{products:?}");
            slowest = slowest.max(since.elapsed());
            times += 1;
        }
        Ok((times, slowest))
    };
    let (stampeded, others) = tokio::join!(stampede, others);
    sqlx::raw_sql("ROLLBACK").execute(&mut session).await?;
    stampeded.into_iter().collect::<Result<Vec<()>>>()?;
    let others = others?;
    eprintln!("{} reads of others, the slowest {:?}", others.0, others.1);
    let since = Instant::now();
    loop {
        let told = hot.stock(&hot.product, "?asOf=2026-01-01T00:00:00Z").await?;
        if told.status == 200 {
            break;
        }
        ensure!(since.elapsed() < Duration::from_secs(10), "{told:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(others)
}
