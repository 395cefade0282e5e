//! Products, their stock in every store, and reservations.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::future::join_all;
use lastro_proto::inventory::v1::inventory_service_client::InventoryServiceClient;
use lastro_proto::inventory::v1::products_service_client::ProductsServiceClient;
use lastro_proto::inventory::v1::{
    AdjustStockRequest, ConfirmReservationRequest, CreateProductRequest, GetStockRequest, ListProductsRequest, ReserveItem, ReserveStockRequest,
    reservation,
};
use lastro_proto::r#type::v1::Money;
use lastro_tests::{Answer, Api, Front};
use serde_json::{Value, json};

use crate::World;
use crate::grpc::{channel, with_token};

/// An administrator, a merchant's account, and a product of it.
pub struct Shop {
    pub api: Api,
    pub administrator: String,
    pub account: String,
    pub product: String,
    /// Replicas hear of each other's writes within moments; one process needs none.
    patience: Duration,
}

impl Shop {
    pub async fn open(front: &Front) -> Result<Self> {
        let (api, administrator) = (front.api(), front.administrator().await?);
        let merchant = api.someone().await?;
        let account = api.account(&merchant.token, "BRL").await?;
        let made = api.post("/api/v1/products", Some(&administrator), new_product("Coffee", &account, "10.00")).await?;
        let patience = Duration::from_secs(u64::from(front.authority.is_some()));
        Ok(Self { product: made.text("id")?, api, administrator, account, patience })
    }

    pub async fn another(&self) -> Result<String> {
        self.api.post("/api/v1/products", Some(&self.administrator), new_product("Tea", &self.account, "1.00")).await?.text("id")
    }

    pub async fn adjust(&self, product: &str, store: &str, quantity: i64, key: &str) -> Result<Answer> {
        self.adjust_if(product, json!({ "storeId": store, "quantity": quantity, "externalId": key })).await
    }

    async fn adjust_if(&self, product: &str, body: Value) -> Result<Answer> {
        self.api.post(&format!("/api/v1/inventory/{product}/stock"), Some(&self.administrator), body).await
    }

    pub async fn reserve(&self, name: &str, items: Value, ttl: Option<&str>) -> Result<Answer> {
        let mut body = json!({ "reservationId": name, "items": items });
        if let Some(ttl) = ttl {
            body["ttl"] = json!(ttl);
        }
        self.api.post("/api/v1/inventory/reserve", Some(&self.administrator), body).await
    }

    pub async fn resolve(&self, verb: &str, name: &str) -> Result<Answer> {
        self.api.post(&format!("/api/v1/inventory/{verb}"), Some(&self.administrator), json!({ "reservationId": name })).await
    }

    pub async fn stock(&self, product: &str, query: &str) -> Result<Answer> {
        self.api.get(&format!("/api/v1/inventory/{product}{query}"), Some(&self.administrator)).await
    }

    /// That the stock of a product is this: on hand and reserved, by the name of the store.
    pub async fn has(&self, product: &str, expected: &[(&str, i64, i64)]) -> Result<()> {
        let since = Instant::now();
        loop {
            let pieces = self.pieces(product, "").await?;
            if pieces.iter().map(|(store, on_hand, reserved)| (store.as_str(), *on_hand, *reserved)).eq(expected.iter().copied()) {
                return Ok(());
            }
            anyhow::ensure!(since.elapsed() < self.patience, "expected {expected:?}, and there is {pieces:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// On hand and reserved, by the name of the store.
    pub async fn pieces(&self, product: &str, query: &str) -> Result<Vec<(String, i64, i64)>> {
        let answer = self.stock(product, query).await?;
        let store = |store: &Value| Some((store["storeId"].as_str()?.to_owned(), store["onHand"].as_i64()?, store["reserved"].as_i64()?));
        answer.body["stores"].as_array().with_context(|| format!("{answer:?}"))?.iter().map(|one| store(one).context("a store")).collect()
    }
}

pub fn new_product(name: &str, account: &str, price: &str) -> Value {
    let price = json!({ "currencyCode": "BRL", "amount": price });
    json!({ "name": name, "description": "Whole beans", "price": price, "merchantAccountId": account })
}

fn refused(answer: &Answer, status: u16, reason: &str) {
    assert_eq!((answer.status, answer.body["reason"].as_str()), (status, Some(reason)), "{answer:?}");
}

fn is_reserved(answer: &Answer, status: u16, state: &str) {
    assert_eq!((answer.status, answer.body["state"].as_str()), (status, Some(state)), "{answer:?}");
}

pub async fn products_are_added_and_changed(world: &World) -> Result<()> {
    let shop = Shop::open(&world.server).await?;
    let (api, administrator) = (&shop.api, &shop.administrator);
    let someone = api.someone().await?;
    let path = format!("/api/v1/products/{}", shop.product);
    let read = api.get(&path, Some(&someone.token)).await?;
    assert_eq!((read.status, &read.body["active"], &read.body["price"]["amount"]), (200, &json!(true), &json!("10.00")), "{read:?}");
    refused(&api.post("/api/v1/products", Some(&someone.token), new_product("x", &shop.account, "1.00")).await?, 403, "PERMISSION_MISSING");
    // By key: the same request is the same product, another one is refused.
    let keyed = |name: &str, key: &str| {
        let mut body = new_product(name, &shop.account, "2.00");
        body["externalId"] = json!(key);
        api.post("/api/v1/products", Some(administrator), body)
    };
    let key = uuid::Uuid::new_v4().to_string();
    let first = keyed("Tea", &key).await?;
    assert_eq!((first.status, first.header("location")), (201, format!("/api/v1/products/{}", first.text("id")?).as_str()), "{first:?}");
    let again = keyed("Tea", &key).await?;
    assert_eq!((again.status, &again.body["id"], &again.body["replayed"]), (200, &first.body["id"], &json!(true)), "{again:?}");
    refused(&keyed("Cake", &key).await?, 422, "IDEMPOTENCY_KEY_REUSED");
    let many = join_all((0..20).map(|_| keyed("Pie", &format!("{key} at once")))).await.into_iter().collect::<Result<Vec<_>>>()?;
    assert!(many.iter().all(|one| [200, 201].contains(&one.status) && one.body["id"] == many[0].body["id"]), "{many:?}");
    // Changed in part; what is so already is no change.
    let patch = |body: Value| api.json(reqwest::Method::PATCH, &path, Some(administrator), &[], Some(body));
    let changed = patch(json!({ "price": { "currencyCode": "BRL", "amount": "12.50" }, "active": false })).await?;
    assert_eq!((changed.status, &changed.body["active"], &changed.body["name"]), (200, &json!(false), &json!("Coffee")), "{changed:?}");
    assert_eq!(patch(json!({ "active": false })).await?.body, changed.body);
    let dollars = patch(json!({ "price": { "currencyCode": "USD", "amount": "1.00" } })).await?;
    assert_eq!((dollars.status, &dollars.body["errors"][0]["field"]), (400, &json!("price.currencyCode")), "{dollars:?}");
    refused(&patch(json!({ "merchantAccountId": uuid::Uuid::now_v7() })).await?, 404, "ACCOUNT_NOT_FOUND");
    // Listed, newest first, of all or of those that are active.
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let page = api.get(&format!("/api/v1/products?pageSize=2&active=false&pageToken={token}"), Some(&someone.token)).await?;
        seen.extend(page.body["products"].as_array().into_iter().flatten().map(|product| product["id"].as_str().unwrap_or_default().to_owned()));
        token = page.text("nextPageToken")?;
        if token.is_empty() {
            break;
        }
    }
    assert!(seen.contains(&shop.product) && !seen.contains(&first.text("id")?) && seen.is_sorted_by(|a, b| a > b), "{seen:?}");
    Ok(())
}

pub async fn bad_products_are_named(world: &World) -> Result<()> {
    let shop = Shop::open(&world.server).await?;
    let with = |change: &dyn Fn(&mut Value)| {
        let mut body = new_product("x", &shop.account, "1.00");
        change(&mut body);
        body
    };
    let none = uuid::Uuid::now_v7().to_string();
    for (body, status, field) in [
        (with(&|body| body["name"] = json!("")), 400, "name"),
        (with(&|body| body["name"] = json!("x".repeat(201))), 400, "name"),
        (with(&|body| body["description"] = json!("x".repeat(2001))), 400, "description"),
        (with(&|body| body["price"] = Value::Null), 400, "price"),
        (with(&|body| body["price"]["amount"] = json!("0.00")), 400, "price.amount"),
        (with(&|body| body["price"]["amount"] = json!("-1.00")), 400, "price.amount"),
        (with(&|body| body["price"]["amount"] = json!("1.001")), 400, "price.amount"),
        (with(&|body| body["price"]["amount"] = json!("10000000000000.01")), 400, "price.amount"),
        (with(&|body| body["price"]["currencyCode"] = json!("USD")), 400, "price.currencyCode"),
        (with(&|body| body["merchantAccountId"] = json!("x")), 400, "merchantAccountId"),
        (with(&|body| body["merchantAccountId"] = json!(none)), 404, "merchantAccountId"),
        (with(&|body| body["externalId"] = json!("x".repeat(129))), 400, "externalId"),
    ] {
        let told = shop.api.post("/api/v1/products", Some(&shop.administrator), body.clone()).await?;
        assert_eq!((told.status, told.body["errors"][0]["field"].as_str()), (status, Some(field)), "{body} {told:?}");
    }
    refused(&shop.api.get(&format!("/api/v1/products/{none}"), Some(&shop.administrator)).await?, 404, "PRODUCT_NOT_FOUND");
    Ok(())
}

pub async fn stock_is_adjusted(world: &World) -> Result<()> {
    let shop = Shop::open(&world.server).await?;
    let product = shop.product.as_str();
    let key = uuid::Uuid::new_v4().to_string();
    assert_eq!(shop.stock(product, "").await?.body["stores"], json!([]));
    let added = shop.adjust(product, "rio", 10, &key).await?;
    let expected = json!({ "productId": product, "storeId": "rio", "onHand": 10, "reserved": 0, "available": 10, "version": 1 });
    assert_eq!((added.status, &added.body), (200, &expected), "{added:?}");
    // The same key again tells what it has made, whatever happened since; another request with it is refused.
    assert_eq!(shop.adjust(product, "sao-paulo", 5, &format!("{key} sp")).await?.status, 200);
    assert_eq!(shop.adjust(product, "rio", -3, &format!("{key} less")).await?.body["onHand"], 7);
    assert_eq!(shop.adjust(product, "rio", 10, &key).await?.body, expected);
    refused(&shop.adjust(product, "rio", 11, &key).await?, 422, "IDEMPOTENCY_KEY_REUSED");
    shop.has(product, &[("rio", 7, 0), ("sao-paulo", 5, 0)]).await?;
    assert_eq!(shop.stock(product, "?storeId=rio").await?.body["stores"].as_array().map(Vec::len), Some(1));
    // No more goes than is there, also from where nothing ever was.
    let too_much = shop.adjust(product, "rio", -8, &format!("{key} too much")).await?;
    refused(&too_much, 409, "OUT_OF_STOCK");
    assert_eq!(too_much.body["errors"][0]["field"], "quantity", "{too_much:?}");
    refused(&shop.adjust(product, "nowhere", -1, &format!("{key} nowhere")).await?, 409, "OUT_OF_STOCK");
    assert_eq!(shop.adjust(product, "full", 1_000_000_000, &format!("{key} f1")).await?.status, 200);
    assert_eq!(shop.adjust(product, "full", 1_000_000_000, &format!("{key} f2")).await?.status, 200);
    refused(&shop.adjust(product, "full", 1_000_000_000, &format!("{key} f3")).await?, 409, "STOCK_OVERFLOW");
    // Only where nobody else was faster.
    let body = |version: i64, key: &str| json!({ "storeId": "rio", "quantity": 1, "externalId": key, "expectedVersion": version });
    let stale = shop.adjust_if(product, body(1, &format!("{key} v1"))).await?;
    refused(&stale, 409, "VERSION_CONFLICT");
    // Nor does it come into a store where it is not.
    let nowhere = json!({ "storeId": "nowhere", "quantity": 1, "externalId": format!("{key} nowhere at 5"), "expectedVersion": 5 });
    refused(&shop.adjust_if(product, nowhere).await?, 409, "VERSION_CONFLICT");
    // What was made with the version that it had then is made.
    let versioned = json!({ "storeId": "sao-paulo", "quantity": 1, "externalId": format!("{key} once"), "expectedVersion": 1 });
    let once = shop.adjust_if(product, versioned.clone()).await?;
    assert_eq!(once.status, 200, "{once:?}");
    for _ in 0..6 {
        assert_eq!(shop.adjust_if(product, versioned.clone()).await?.body, once.body);
    }
    assert!(!stale.header("retry-after").is_empty(), "{stale:?}");
    assert_eq!(shop.adjust_if(product, body(2, &format!("{key} v2"))).await?.body["version"], 3);
    let at_once = (0..20).map(|number| shop.adjust_if(product, body(3, &format!("{key} at once {number}"))));
    let at_once = join_all(at_once.collect::<Vec<_>>()).await.into_iter().collect::<Result<Vec<_>>>()?;
    assert_eq!(at_once.iter().filter(|one| one.status == 200).count(), 1, "{at_once:?}");
    for (body, field) in [
        (json!({ "storeId": "Rio", "quantity": 1, "externalId": "k" }), "storeId"),
        (json!({ "storeId": "", "quantity": 1, "externalId": "k" }), "storeId"),
        (json!({ "storeId": "rio", "quantity": 0, "externalId": "k" }), "quantity"),
        (json!({ "storeId": "rio", "quantity": 1_000_000_001, "externalId": "k" }), "quantity"),
        (json!({ "storeId": "rio", "quantity": 1 }), "externalId"),
        (json!({ "storeId": "rio", "quantity": 1, "externalId": "k", "expectedVersion": -1 }), "expectedVersion"),
    ] {
        let told = shop.adjust_if(product, body.clone()).await?;
        assert_eq!((told.status, told.body["errors"][0]["field"].as_str()), (400, Some(field)), "{body} {told:?}");
    }
    let none = uuid::Uuid::now_v7().to_string();
    refused(&shop.adjust(&none, "rio", 1, "k").await?, 404, "PRODUCT_NOT_FOUND");
    refused(&shop.stock(&none, "").await?, 404, "PRODUCT_NOT_FOUND");
    let someone = shop.api.someone().await?;
    let path = format!("/api/v1/inventory/{product}/stock");
    let told = shop.api.post(&path, Some(&someone.token), json!({ "storeId": "rio", "quantity": 1, "externalId": "k" })).await?;
    refused(&told, 403, "PERMISSION_MISSING");
    assert_eq!(shop.api.get(&format!("/api/v1/inventory/{product}"), Some(&someone.token)).await?.status, 200, "whoever has a token reads");
    Ok(())
}

pub async fn reservations_keep_pieces(world: &World) -> Result<()> {
    let shop = Shop::open(&world.server).await?;
    let (coffee, tea) = (shop.product.clone(), shop.another().await?);
    let key = uuid::Uuid::new_v4().to_string();
    for (product, store, quantity) in [(&coffee, "a", 5), (&coffee, "b", 8), (&tea, "a", 2)] {
        assert_eq!(shop.adjust(product, store, quantity, &format!("{key} {product} {store}")).await?.status, 200);
    }
    // Several products and stores: from the fullest store first.
    let items = json!([{ "productId": coffee, "quantity": 10 }, { "productId": tea, "storeId": "a", "quantity": 2 }]);
    let made = shop.reserve(&format!("{key} 1"), items.clone(), None).await?;
    is_reserved(&made, 201, "RESERVED");
    let kept: Vec<(&Value, &Value)> = made.body["items"].as_array().into_iter().flatten().map(|item| (&item["storeId"], &item["quantity"])).collect();
    assert_eq!(kept, [(&json!("b"), &json!(8)), (&json!("a"), &json!(2)), (&json!("a"), &json!(2))], "{made:?}");
    assert_eq!(made.header("location"), format!("/api/v1/reservations/{}", format!("{key} 1").replace(' ', "%20")));
    shop.has(&coffee, &[("a", 5, 2), ("b", 8, 8)]).await?;
    // The same again, at whichever replica, is what was made, although there would not be enough for another one.
    for _ in 0..8 {
        let again = shop.reserve(&format!("{key} 1"), items.clone(), None).await?;
        assert_eq!((again.status, &again.body["replayed"]), (200, &json!(true)), "{again:?}");
    }
    refused(&shop.reserve(&format!("{key} 1"), json!([{ "productId": coffee, "quantity": 9 }]), None).await?, 422, "IDEMPOTENCY_KEY_REUSED");
    // All or none, and every product of which there is too little is named.
    let short = shop.reserve(&format!("{key} 2"), json!([{ "productId": tea, "quantity": 1 }, { "productId": coffee, "quantity": 4 }]), None).await?;
    refused(&short, 409, "OUT_OF_STOCK");
    let fields: Vec<&Value> = short.body["errors"].as_array().into_iter().flatten().map(|error| &error["field"]).collect();
    assert_eq!(fields, ["items[0].quantity", "items[1].quantity"], "{short:?}");
    assert_eq!(short.body["metadata"]["productIds"], format!("{tea},{coffee}"), "{short:?}");
    shop.has(&coffee, &[("a", 5, 2), ("b", 8, 8)]).await?;
    // What is reserved does not go.
    refused(&shop.adjust(&coffee, "b", -1, &format!("{key} gone")).await?, 409, "OUT_OF_STOCK");
    // Confirmed, what is kept leaves; released, it is back. Each once, and not the one after the other.
    is_reserved(&shop.resolve("confirm", &format!("{key} 1")).await?, 200, "CONFIRMED");
    is_reserved(&shop.resolve("confirm", &format!("{key} 1")).await?, 200, "CONFIRMED");
    refused(&shop.resolve("release", &format!("{key} 1")).await?, 409, "RESERVATION_CONFIRMED");
    shop.has(&coffee, &[("a", 3, 0), ("b", 0, 0)]).await?;
    is_reserved(&shop.reserve(&format!("{key} 3"), json!([{ "productId": coffee, "quantity": 3 }]), None).await?, 201, "RESERVED");
    is_reserved(&shop.resolve("release", &format!("{key} 3")).await?, 200, "RELEASED");
    is_reserved(&shop.resolve("release", &format!("{key} 3")).await?, 200, "RELEASED");
    refused(&shop.resolve("confirm", &format!("{key} 3")).await?, 409, "RESERVATION_RELEASED");
    let read = shop.api.get(&format!("/api/v1/reservations/{}", format!("{key} 3").replace(' ', "%20")), Some(&shop.administrator)).await?;
    is_reserved(&read, 200, "RELEASED");
    // One whose time is over is dead at once, whether or not that is written, and what it kept is there for others.
    is_reserved(&shop.reserve(&format!("{key} 4"), json!([{ "productId": coffee, "quantity": 3 }]), Some("1s")).await?, 201, "RESERVED");
    tokio::time::sleep(Duration::from_millis(1005)).await;
    is_reserved(&shop.reserve(&format!("{key} 5"), json!([{ "productId": coffee, "quantity": 3 }]), Some("1s")).await?, 201, "RESERVED");
    refused(&shop.resolve("confirm", &format!("{key} 4")).await?, 409, "RESERVATION_EXPIRED");
    is_reserved(&shop.resolve("release", &format!("{key} 4")).await?, 200, "EXPIRED");
    let since = Instant::now();
    while shop.has(&coffee, &[("a", 3, 0), ("b", 0, 0)]).await.is_err() {
        assert!(since.elapsed() < Duration::from_secs(10), "it is not given back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let events = shop.api.get(&format!("/api/v1/inventory/{coffee}/events?storeId=b"), Some(&shop.administrator)).await?;
    let kinds: Vec<&Value> = events.body["events"].as_array().into_iter().flatten().map(|event| &event["type"]).collect();
    assert_eq!(kinds, ["ADDED", "RESERVED", "COMMITTED"], "{events:?}");
    Ok(())
}

pub async fn bad_reservations_are_named(world: &World) -> Result<()> {
    let shop = Shop::open(&world.server).await?;
    let product = shop.product.as_str();
    let none = uuid::Uuid::now_v7().to_string();
    let item = |quantity: i64| json!({ "productId": product, "quantity": quantity });
    for (name, items, ttl, status, field) in [
        ("", json!([item(1)]), None, 400, "reservationId"),
        (&*"x".repeat(101), json!([item(1)]), None, 400, "reservationId"),
        ("n", json!([]), None, 400, "items"),
        ("n", Value::Array(vec![item(1); 101]), None, 400, "items"),
        ("n", json!([item(0)]), None, 400, "items[0].quantity"),
        ("n", json!([item(1_000_001)]), None, 400, "items[0].quantity"),
        ("n", json!([item(1), item(2)]), None, 400, "items[1].productId"),
        ("n", json!([{ "productId": "x", "quantity": 1 }]), None, 400, "items[0].productId"),
        ("n", json!([item(1), { "productId": none, "quantity": 1 }]), None, 404, "items[1].productId"),
        ("n", json!([{ "productId": product, "storeId": "A", "quantity": 1 }]), None, 400, "items[0].storeId"),
        ("n", json!([item(1)]), Some("0.9s"), 400, "ttl"),
        ("n", json!([item(1)]), Some("2592001s"), 400, "ttl"),
        ("n", json!([item(1)]), Some("-5s"), 400, "ttl"),
    ] {
        let told = shop.reserve(name, items.clone(), ttl).await?;
        assert_eq!((told.status, told.body["errors"][0]["field"].as_str()), (status, Some(field)), "{items} {ttl:?} {told:?}");
    }
    refused(&shop.reserve("nothing there", json!([item(1)]), None).await?, 409, "OUT_OF_STOCK");
    for verb in ["confirm", "release"] {
        refused(&shop.resolve(verb, &none).await?, 404, "RESERVATION_NOT_FOUND");
    }
    refused(&shop.api.get(&format!("/api/v1/reservations/{none}"), Some(&shop.administrator)).await?, 404, "RESERVATION_NOT_FOUND");
    let someone = shop.api.someone().await?;
    let body = json!({ "reservationId": "n", "items": [item(1)] });
    refused(&shop.api.post("/api/v1/inventory/reserve", Some(&someone.token), body).await?, 403, "PERMISSION_MISSING");
    Ok(())
}

pub async fn the_past_is_there(world: &World) -> Result<()> {
    let shop = Shop::open(&world.server).await?;
    let product = shop.product.as_str();
    let key = uuid::Uuid::new_v4().to_string();
    let before = chrono_now();
    let mut instants = Vec::new();
    // More than two snapshots' worth, in several at once.
    for round in 0..23_i64 {
        let adjusted = join_all((0..10).map(|number| {
            let (shop, key) = (&shop, format!("{key} {round} {number}"));
            async move { shop.adjust(product, "rio", 1, &key).await }
        }));
        assert!(adjusted.await.into_iter().all(|one| one.is_ok_and(|one| one.status == 200)));
        instants.push((chrono_now(), (round + 1) * 10));
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    for (instant, pieces) in &instants {
        assert_eq!(shop.pieces(product, &format!("?asOf={instant}")).await?, [("rio".to_owned(), *pieces, 0)], "at {instant}");
    }
    assert_eq!(shop.pieces(product, &format!("?asOf={before}")).await?, [], "before anything");
    assert_eq!(shop.pieces(product, &format!("?asOf={}&storeId=other", instants[3].0)).await?, []);
    let future = shop.stock(product, "?asOf=2999-01-01T00:00:00Z").await?;
    assert_eq!((future.status, &future.body["errors"][0]["field"]), (400, &json!("asOf")), "{future:?}");
    let none = uuid::Uuid::now_v7().to_string();
    refused(&shop.stock(&none, &format!("?asOf={before}")).await?, 404, "PRODUCT_NOT_FOUND");
    // All events, page by page, versions without a gap.
    let (mut versions, mut token) = (Vec::new(), String::new());
    loop {
        let path = format!("/api/v1/inventory/{product}/events?storeId=rio&pageSize=100&pageToken={token}");
        let page = shop.api.get(&path, Some(&shop.administrator)).await?;
        versions.extend(page.body["events"].as_array().into_iter().flatten().filter_map(|event| event["version"].as_i64()));
        token = page.text("nextPageToken")?;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(versions, (1..=230).collect::<Vec<_>>());
    Ok(())
}

/// RFC 3339, microseconds.
fn chrono_now() -> String {
    let now_us = lastro_mesh::clock::now_us();
    let timestamp = lastro_proto::time::timestamp(now_us);
    serde_json::to_value(timestamp).ok().and_then(|text| text.as_str().map(str::to_owned)).unwrap_or_default()
}

pub async fn inventory_over_grpc(world: &World) -> Result<()> {
    let shop = Shop::open(&world.server).await?;
    let (channel, token) = (channel(world).await?, &shop.administrator);
    let (mut products, mut inventory) = (ProductsServiceClient::new(channel.clone()), InventoryServiceClient::new(channel));
    let price = Some(Money { currency_code: "BRL".to_owned(), amount: "3.00".to_owned() });
    let request = CreateProductRequest {
        name: "Cake".to_owned(),
        description: String::new(),
        price: price.clone(),
        merchant_account_id: shop.account.clone(),
        external_id: String::new(),
    };
    let cake = products.create_product(with_token(token, request)?).await?.into_inner();
    assert_eq!((cake.price, cake.active), (price, true));
    let listed = products.list_products(with_token(token, ListProductsRequest { page_size: 1000, ..ListProductsRequest::default() })?).await?;
    assert!(listed.into_inner().products.iter().any(|product| product.id == cake.id));
    let request = AdjustStockRequest {
        product_id: cake.id.clone(),
        store_id: "rio".to_owned(),
        quantity: 4,
        external_id: format!("{} g", cake.id),
        expected_version: Some(0),
    };
    assert_eq!(inventory.adjust_stock(with_token(token, request)?).await?.into_inner().on_hand, 4);
    let item = |quantity| ReserveItem { product_id: cake.id.clone(), store_id: None, quantity };
    let reserve =
        |name: &str, quantity| ReserveStockRequest { reservation_id: format!("{} {name}", cake.id), items: vec![item(quantity)], ttl: None };
    let made = inventory.reserve_stock(with_token(token, reserve("1", 3))?).await?.into_inner();
    assert_eq!((made.state(), made.items.len()), (reservation::State::Reserved, 1));
    let short = inventory.reserve_stock(with_token(token, reserve("2", 2))?).await.expect_err("only one is left");
    assert_eq!(short.code(), tonic::Code::FailedPrecondition, "{short:?}");
    let confirm = ConfirmReservationRequest { reservation_id: made.id };
    assert_eq!(inventory.confirm_reservation(with_token(token, confirm)?).await?.into_inner().state(), reservation::State::Confirmed);
    shop.has(&cake.id, &[("rio", 1, 0)]).await?;
    let request = GetStockRequest { product_id: cake.id.clone(), ..GetStockRequest::default() };
    let stock = inventory.get_stock(with_token(token, request)?).await?.into_inner();
    assert_eq!(stock.stores.len(), 1, "{stock:?}");
    Ok(())
}
