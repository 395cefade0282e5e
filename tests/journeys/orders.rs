//! Orders: what buyers see of them, and where money and pieces end.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use lastro_proto::orders::v1::orders_service_client::OrdersServiceClient;
use lastro_proto::orders::v1::sagas_service_client::SagasServiceClient;
use lastro_proto::orders::v1::{
    CancelOrderRequest, CreateOrderRequest, GetSagaRequest, ListOrderEventsRequest, OrderItemRequest, OrderPayment, order, order_payment, saga,
};
use lastro_tests::Answer;
use reqwest::Method;
use serde_json::{Value, json};

use crate::World;
use crate::grpc::{channel, with_token};
use crate::market::{Market, is, items_of, new_order, with_card};
use crate::payments::refused;

/// Name, direction and state of each step.
fn steps(saga: &Answer) -> Vec<(String, String, String)> {
    let text = |step: &Value, name: &str| step[name].as_str().unwrap_or_default().to_owned();
    let step = |step: &Value| (text(step, "name"), text(step, "direction"), text(step, "state"));
    saga.body["steps"].as_array().map(|steps| steps.iter().map(step).collect()).unwrap_or_default()
}

fn all(expected: &[(&str, &str, &str)]) -> Vec<(String, String, String)> {
    expected.iter().map(|(name, direction, state)| ((*name).to_owned(), (*direction).to_owned(), (*state).to_owned())).collect()
}

/// From two merchants, in one order: the pieces are gone, the money is theirs, and everything that happened is told under one request.
pub async fn an_order_is_carried_out(world: &World) -> Result<()> {
    let market = Market::open(&world.server).await?;
    let shop = &market.shop;
    let other = market.api.someone().await?;
    let of_other = market.api.account(&other.token, "BRL").await?;
    let made = market.api.post("/api/v1/products", Some(&shop.administrator), crate::inventory::new_product("Mate", &of_other, "0.35")).await?;
    let mate = made.text("id")?;
    assert_eq!(shop.adjust(&mate, "a", 100, &mate).await?.status, 200);
    let headers = [("prefer", "wait=15"), ("x-correlation-id", "order-carried-out")];
    let body = new_order("one", &[(&shop.product, 12), (&mate, 3)], &market.account);
    let placed = market.api.json(Method::POST, "/api/v1/orders", Some(&market.buyer.token), &headers, Some(body)).await?;
    is(&placed, 201, "COMPLETED", "");
    let id = placed.text("id")?;
    assert_eq!(placed.header("location"), format!("/api/v1/orders/{id}"));
    assert_eq!(placed.body["totalAmount"], json!({ "currencyCode": "BRL", "amount": "121.05" }), "{placed:?}");
    assert_eq!(placed.body["customerId"], json!(market.buyer.id));
    let item = json!({ "productId": mate, "productName": "Mate", "quantity": 3, "price": { "currencyCode": "BRL", "amount": "0.35" } });
    assert_eq!(placed.body["items"][1], item);
    // Where money and pieces are.
    assert_eq!(market.left().await?, "878.95");
    assert_eq!(market.api.posted(&other.token, &of_other).await?, "1.05");
    let merchants = market.api.get(&format!("/api/v1/accounts/{}", shop.account), Some(&shop.administrator)).await?;
    assert_eq!(merchants.body["posted"]["amount"], "120.00");
    let pieces = shop.pieces(&shop.product, "").await?;
    assert_eq!(
        pieces.iter().map(|(_, on_hand, reserved)| (on_hand - reserved, *reserved)).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1)),
        (8, 0)
    );
    shop.has(&mate, &[("a", 97, 0)]).await?;
    // What happened, in its order.
    let told = ["ORDER_CREATED", "INVENTORY_RESERVED", "PAYMENT_PROCESSED", "ORDER_COMPLETED", "ORDER_STATUS_UPDATED"];
    assert_eq!(market.events(&id).await?, told);
    let saga = market.saga(&id).await?;
    assert_eq!(saga.body["state"], "COMPLETED");
    assert_eq!(steps(&saga), all(&[("reserve", "DO", "DONE"), ("pay", "DO", "DONE"), ("confirm", "DO", "DONE")]));
    for step in saga.body["steps"].as_array().context("steps")? {
        assert!(step["attempts"] == 1 && step["lastError"] == "" && step["startTime"].is_string() && step["endTime"].is_string(), "{step}");
    }
    // The payment, and what inventory tells, go under the request that placed the order.
    let payment = placed.text("paymentId")?;
    let paid = market.api.get(&format!("/api/v1/transactions/{payment}"), Some(&market.buyer.token)).await?;
    assert_eq!(
        (&paid.body["type"], &paid.body["state"], &paid.body["description"]),
        (&json!("PAYMENT"), &json!("COMPLETED"), &json!(format!("order {id}")))
    );
    let of_order = market.api.get(&format!("/api/v1/orders/{id}/events"), Some(&market.buyer.token)).await?;
    let of_payment = market.api.get(&format!("/api/v1/transactions/{payment}/events"), Some(&market.buyer.token)).await?;
    let of_stock = market.api.get(&format!("/api/v1/inventory/{mate}/events?storeId=a"), Some(&shop.administrator)).await?;
    let of_order = of_order.body["events"].as_array().context("events")?.iter();
    let of_stock = of_stock.body["events"].as_array().context("events")?.iter().filter(|event| event["reservationId"] != "");
    let all: Vec<&Value> = of_order.chain(of_payment.body["events"].as_array().context("events")?).chain(of_stock).collect();
    assert_eq!(all.len(), 5 + 2 + 2);
    assert!(all.iter().all(|event| event["correlationId"] == "order-carried-out"), "{all:?}");
    // The saga's payment is not the public payment of an order of that name.
    refused(&market.api.get(&format!("/api/v1/payments/{id}"), Some(&market.buyer.token)).await?, 404, "PAYMENT_NOT_FOUND");
    Ok(())
}

/// Who is short is named, nothing is kept, and nobody pays.
pub async fn orders_that_cannot_be_carried_out(world: &World) -> Result<()> {
    let market = Market::open(&world.server).await?;
    let shop = &market.shop;
    let tea = shop.another().await?;
    let told = market.order("short", &[(&shop.product, 5), (&tea, 1)]).await?;
    is(&told, 201, "FAILED", "OUT_OF_STOCK");
    assert!(told.text("detail")?.contains(&tea) && !told.text("detail")?.contains(&shop.product), "{told:?}");
    let id = told.text("id")?;
    assert_eq!(market.events(&id).await?, ["ORDER_CREATED", "ORDER_FAILED", "ORDER_STATUS_UPDATED"]);
    let saga = market.saga(&id).await?;
    assert_eq!(steps(&saga), all(&[("reserve", "DO", "FAILED"), ("pay", "DO", "WAITING"), ("confirm", "DO", "WAITING")]));
    assert_eq!((&saga.body["state"], &saga.body["reason"]), (&json!("COMPENSATED"), &json!("OUT_OF_STOCK")));
    // More than the buyer has.
    assert_eq!(shop.adjust(&shop.product, "a", 1000, &format!("{} more", shop.product)).await?.status, 200);
    let declined = market.order("poor", &[(&shop.product, 101)]).await?;
    is(&declined, 201, "FAILED", "INSUFFICIENT_FUNDS");
    let id = declined.text("id")?;
    let events = ["ORDER_CREATED", "INVENTORY_RESERVED", "PAYMENT_FAILED", "INVENTORY_RELEASED", "ORDER_FAILED", "ORDER_STATUS_UPDATED"];
    assert_eq!(market.events(&id).await?, events);
    let expected = [("reserve", "DO", "DONE"), ("pay", "DO", "FAILED"), ("confirm", "DO", "WAITING"), ("release", "UNDO", "DONE")];
    assert_eq!(steps(&market.saga(&id).await?), all(&expected));
    // A card that is declined.
    let card = market.order_by_card("card", &[(&shop.product, 1)], "tok_decline", "wait=15").await?;
    is(&card, 201, "FAILED", "CARD_DECLINED");
    // One store has too few, all of them together would have enough.
    let mut body = new_order("one store", &[(&shop.product, 15)], &market.account);
    body["storeId"] = json!("b");
    is(&market.place(body, "wait=15").await?, 201, "FAILED", "OUT_OF_STOCK");
    shop.has(&shop.product, &[("a", 1010, 0), ("b", 10, 0)]).await?;
    assert_eq!(market.left().await?, "1000.00");
    // What is decided so stays so.
    refused(&market.cancel(&id).await?, 409, "ORDER_STATUS_CONFLICT");
    is(&market.get(&id).await?, 200, "FAILED", "INSUFFICIENT_FUNDS");
    Ok(())
}

/// The same key again is the same order, whatever has become of the product meanwhile; something else with it is refused.
pub async fn an_order_is_placed_once(world: &World) -> Result<()> {
    let market = Market::open(&world.server).await?;
    let shop = &market.shop;
    let body = || new_order("again", &[(&shop.product, 2)], &market.account);
    let fifty = join_all((0..50).map(|_| market.place(body(), "wait=15"))).await.into_iter().collect::<Result<Vec<_>>>()?;
    let id = fifty[0].text("id")?;
    assert!(fifty.iter().all(|one| one.body["id"] == json!(id) && one.body["status"] == "COMPLETED"), "{fifty:?}");
    assert_eq!(fifty.iter().filter(|one| one.body["replayed"] == false).count(), 1);
    assert_eq!(market.left().await?, "980.00");
    // Not sold any more: what was placed before is what it is, and nothing new is placed.
    let change = json!({ "active": false, "name": "Old coffee", "price": { "currencyCode": "BRL", "amount": "99.00" } });
    let changed = market.api.json(Method::PATCH, &format!("/api/v1/products/{}", shop.product), Some(&shop.administrator), &[], Some(change)).await?;
    assert_eq!(changed.status, 200, "{changed:?}");
    let again = market.place(body(), "wait=1").await?;
    assert_eq!((again.status, &again.body["replayed"], &again.body["totalAmount"]["amount"]), (202, &json!(true), &json!("20.00")), "{again:?}");
    assert_eq!(again.body["items"][0]["productName"], "Coffee");
    let new = market.order("new", &[(&shop.product, 1)]).await?;
    refused(&new, 409, "PRODUCT_INACTIVE");
    assert_eq!(new.body["errors"][0]["field"], "items[0].productId");
    refused(&market.order("again", &[(&shop.product, 3)]).await?, 422, "IDEMPOTENCY_KEY_REUSED");
    // The key in the header, another buyer's same key.
    let mut without = new_order("", &[(&shop.product, 2)], &market.account);
    without.as_object_mut().context("an object")?.remove("externalId");
    let headers = [("idempotency-key", "again")];
    let by_header = market.api.json(Method::POST, "/api/v1/orders", Some(&market.buyer.token), &headers, Some(without)).await?;
    assert_eq!((by_header.status, &by_header.body["id"]), (202, &json!(id)), "{by_header:?}");
    let stranger = market.api.someone().await?;
    let theirs = market.api.account(&stranger.token, "BRL").await?;
    let other = market.api.post("/api/v1/orders", Some(&stranger.token), new_order("again", &[(&shop.product, 2)], &theirs)).await?;
    refused(&other, 409, "PRODUCT_INACTIVE");
    Ok(())
}

/// 500 at once for 100 pieces in three stores: exactly 100 are sold, and the others are told that there is none left.
pub async fn many_orders_for_few_pieces(world: &World) -> Result<()> {
    let market = Market::open(&world.server).await?;
    let (shop, tea) = (&market.shop, market.shop.another().await?);
    for (store, pieces) in [("a", 40), ("b", 35), ("c", 25)] {
        assert_eq!(shop.adjust(&tea, store, pieces, &format!("{tea} {store}")).await?.status, 200);
    }
    let (market, tea) = (&market, &tea);
    let ask = |number: usize| async move {
        let since = Instant::now();
        loop {
            // Where nobody knows, the same key tells.
            let told = market.order(&format!("one of many {number}"), &[(tea, 1)]).await?;
            if ["COMPLETED", "FAILED"].contains(&told.body["status"].as_str().unwrap_or_default()) {
                return Ok(told);
            }
            ensure!(since.elapsed() < Duration::from_secs(40), "{told:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let told = join_all((0..500).map(ask)).await.into_iter().collect::<Result<Vec<_>>>()?;
    let sold = told.iter().filter(|one| one.body["status"] == "COMPLETED").count();
    let refused = told.iter().filter(|one| one.body["reason"] == "OUT_OF_STOCK").count();
    assert_eq!((sold, refused), (100, 400));
    shop.has(tea, &[("a", 0, 0), ("b", 0, 0), ("c", 0, 0)]).await?;
    assert_eq!(market.left().await?, "900.00");
    Ok(())
}

/// What was paid goes back, and the pieces are there again.
pub async fn orders_are_cancelled(world: &World) -> Result<()> {
    let market = Market::open(&world.server).await?;
    let shop = &market.shop;
    // After.
    let after = market.order("after", &[(&shop.product, 4)]).await?.text("id")?;
    let cancelled = market.cancel(&after).await?;
    assert_eq!((cancelled.status, &cancelled.body["replayed"]), (202, &json!(false)), "{cancelled:?}");
    is(&market.becomes(&after, "CANCELLED").await?, 200, "CANCELLED", "CANCELLED");
    let again = market.cancel(&after).await?;
    assert_eq!((again.status, &again.body["status"], &again.body["replayed"]), (200, &json!("CANCELLED"), &json!(true)), "{again:?}");
    let told = [
        "ORDER_CREATED",
        "INVENTORY_RESERVED",
        "PAYMENT_PROCESSED",
        "ORDER_COMPLETED",
        "ORDER_STATUS_UPDATED",
        "INVENTORY_RELEASED",
        "PAYMENT_REFUNDED",
        "ORDER_CANCELLED",
        "ORDER_STATUS_UPDATED",
    ];
    assert_eq!(market.events(&after).await?, told);
    assert_eq!(steps(&market.saga(&after).await?)[3..], all(&[("return", "UNDO", "DONE"), ("refund", "UNDO", "DONE"), ("release", "UNDO", "DONE")]));
    // Before, or in the middle: at once after it was accepted.
    for number in 0..20 {
        let placed = market.place(new_order(&format!("at once {number}"), &[(&shop.product, 1)], &market.account), "respond-async").await?;
        assert_eq!(placed.status, 202, "{placed:?}");
        let id = placed.text("id")?;
        assert_eq!(market.cancel(&id).await?.status, 202);
        market.becomes(&id, "CANCELLED").await?;
    }
    shop.has(&shop.product, &[("a", 10, 0), ("b", 10, 0)]).await?;
    assert_eq!(market.left().await?, "1000.00");
    // Shipped: what is on its way is not taken back so.
    let shipped = market.order("shipped", &[(&shop.product, 1)]).await?.text("id")?;
    let set = async |status: &str| {
        market
            .api
            .json(Method::PUT, &format!("/api/v1/orders/{shipped}/status"), Some(&shop.administrator), &[], Some(json!({ "status": status })))
            .await
    };
    refused(&set("DELIVERED").await?, 409, "ORDER_STATUS_CONFLICT");
    is(&set("SHIPPED").await?, 200, "SHIPPED", "");
    is(&set("SHIPPED").await?, 200, "SHIPPED", "");
    refused(&market.cancel(&shipped).await?, 409, "ORDER_STATUS_CONFLICT");
    is(&set("DELIVERED").await?, 200, "DELIVERED", "");
    refused(&set("SHIPPED").await?, 409, "ORDER_STATUS_CONFLICT");
    refused(&set("CANCELLED").await?, 400, "INVALID_ARGUMENT");
    assert_eq!(market.events(&shipped).await?[5..], ["ORDER_STATUS_UPDATED", "ORDER_STATUS_UPDATED"]);
    Ok(())
}

/// The merchant's account is frozen: it takes money, and gives none. The order stays what it is, and says why, until an administrator goes on with it.
pub async fn an_undo_that_fails_is_resumed(world: &World) -> Result<()> {
    let market = Market::open(&world.server).await?;
    let shop = &market.shop;
    let freeze = async |frozen: bool| {
        let body = Some(json!({ "frozen": frozen }));
        market.api.json(Method::PATCH, &format!("/api/v1/accounts/{}", shop.account), Some(&shop.administrator), &[], body).await
    };
    assert_eq!(freeze(true).await?.status, 200);
    let id = market.order("frozen", &[(&shop.product, 5)]).await?.text("id")?;
    is(&market.get(&id).await?, 200, "COMPLETED", "");
    assert_eq!(market.cancel(&id).await?.status, 202);
    let stuck = market.until(&id, "stuck", |order| order["reason"] == "ACCOUNT_FROZEN").await?;
    is(&stuck, 200, "COMPLETED", "ACCOUNT_FROZEN");
    let saga = market.saga(&id).await?;
    assert_eq!(saga.body["state"], "FAILED", "{saga:?}");
    let refund = &saga.body["steps"][4];
    assert_eq!((&refund["name"], &refund["state"], &refund["attempts"]), (&json!("refund"), &json!("FAILED"), &json!(3)), "{refund}");
    let since = |name: &str| refund[name].as_str().unwrap_or_default().to_owned();
    assert!(since("startTime") < since("endTime") && refund["lastError"].as_str().is_some_and(|error| error.contains("ACCOUNT_FROZEN")), "{refund}");
    // Visible to administrators, and to nobody else.
    let failed = market.api.get("/api/v1/sagas?state=FAILED&pageSize=1000", Some(&shop.administrator)).await?;
    assert!(failed.body["sagas"].as_array().context("sagas")?.iter().any(|one| one["orderId"] == json!(id)), "{failed:?}");
    refused(&market.api.get("/api/v1/sagas", Some(&market.buyer.token)).await?, 403, "PERMISSION_MISSING");
    let resume =
        async |token: &str, action: &str| market.api.post(&format!("/api/v1/sagas/{id}:resume"), Some(token), json!({ "action": action })).await;
    refused(&resume(&market.buyer.token, "RETRY").await?, 403, "PERMISSION_MISSING");
    // It is tried again, and fails again as long as nothing has changed.
    assert_eq!(resume(&shop.administrator, "RETRY").await?.status, 200);
    let since = Instant::now();
    loop {
        let saga = market.saga(&id).await?;
        if saga.body["state"] == "FAILED" && saga.body["steps"][4]["attempts"] == 6 {
            break;
        }
        ensure!(since.elapsed() < Duration::from_secs(15), "{saga:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(freeze(false).await?.status, 200);
    assert_eq!(resume(&shop.administrator, "RETRY").await?.status, 200);
    market.becomes(&id, "CANCELLED").await?;
    refused(&resume(&shop.administrator, "RETRY").await?, 409, "SAGA_FINISHED");
    refused(&resume(&shop.administrator, "COMPENSATE").await?, 409, "SAGA_FINISHED");
    assert_eq!(market.left().await?, "1000.00");
    shop.has(&shop.product, &[("a", 10, 0), ("b", 10, 0)]).await
}

/// Each rule that is broken is named.
pub async fn bad_orders_are_named(world: &World) -> Result<()> {
    let market = Market::open(&world.server).await?;
    let shop = &market.shop;
    let (eve, dollars) = (market.api.someone().await?, market.api.account(&market.buyer.token, "USD").await?);
    let of_eve = market.api.account(&eve.token, "BRL").await?;
    let usd = market.api.account(&eve.token, "USD").await?;
    let mut priced = crate::inventory::new_product("Import", &usd, "1.00");
    priced["price"]["currencyCode"] = json!("USD");
    let import = market.api.post("/api/v1/products", Some(&shop.administrator), priced).await?.text("id")?;
    let dear =
        market.api.post("/api/v1/products", Some(&shop.administrator), crate::inventory::new_product("Dear", &of_eve, "9999999999.00")).await?;
    let dear = dear.text("id")?;
    let good = || new_order("bad", &[(&shop.product, 1)], &market.account);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut body = good();
        change(&mut body);
        body
    };
    let none = uuid::Uuid::now_v7().to_string();
    for (body, status, reason, field) in [
        (with(&|body| body["externalId"] = json!("")), 400, "INVALID_ARGUMENT", "externalId"),
        (with(&|body| body["items"] = json!([])), 400, "INVALID_ARGUMENT", "items"),
        (with(&|body| body["items"] = Value::Array(vec![body["items"][0].clone(); 101])), 400, "INVALID_ARGUMENT", "items"),
        (with(&|body| body["items"] = Value::Array(vec![body["items"][0].clone(); 2])), 400, "INVALID_ARGUMENT", "items[1].productId"),
        (with(&|body| body["items"][0]["quantity"] = json!(0)), 400, "INVALID_ARGUMENT", "items[0].quantity"),
        (with(&|body| body["items"][0]["quantity"] = json!(1_000_001)), 400, "INVALID_ARGUMENT", "items[0].quantity"),
        (with(&|body| body["items"][0]["productId"] = json!("coffee")), 400, "INVALID_ARGUMENT", "items[0].productId"),
        (with(&|body| body["items"][0]["productId"] = json!(none)), 404, "PRODUCT_NOT_FOUND", "items[0].productId"),
        (with(&|body| body["items"][0]["productId"] = json!(import)), 400, "INVALID_ARGUMENT", "payment.accountId"),
        (with(&|body| body["items"] = items_of(&[(&shop.product, 1), (&import, 1)])), 400, "INVALID_ARGUMENT", "items[1].productId"),
        (with(&|body| body["items"] = items_of(&[(&dear, 1_000_000)])), 400, "INVALID_ARGUMENT", "items"),
        (with(&|body| body["payment"] = Value::Null), 400, "INVALID_ARGUMENT", "payment"),
        (with(&|body| body["payment"]["method"] = json!("CASH")), 400, "MALFORMED_JSON", "payment.method"),
        (with(&|body| body["payment"]["accountId"] = Value::Null), 400, "INVALID_ARGUMENT", "payment.accountId"),
        (with(&|body| body["payment"]["accountId"] = json!("x")), 400, "INVALID_ARGUMENT", "payment.accountId"),
        (with(&|body| body["payment"]["accountId"] = json!(none)), 404, "ACCOUNT_NOT_FOUND", "payment.accountId"),
        (with(&|body| body["payment"]["accountId"] = json!(of_eve)), 404, "ACCOUNT_NOT_FOUND", "payment.accountId"),
        (with(&|body| body["payment"]["accountId"] = json!(dollars)), 400, "INVALID_ARGUMENT", "payment.accountId"),
        (with(&|body| body["payment"]["cardToken"] = json!("tok_approve")), 400, "INVALID_ARGUMENT", "payment.cardToken"),
        (with_card("bad", &[(&shop.product, 1)], "4111 1111 1111 1111"), 400, "INVALID_ARGUMENT", "payment.cardToken"),
        (with_card("bad", &[(&shop.product, 1)], "tok\u{7}"), 400, "INVALID_ARGUMENT", "payment.cardToken"),
        (with(&|body| body["storeId"] = json!("São Paulo")), 400, "INVALID_ARGUMENT", "storeId"),
        (with(&|body| body["wait"] = json!("31s")), 400, "INVALID_ARGUMENT", "wait"),
    ] {
        let told = market.api.post("/api/v1/orders", Some(&market.buyer.token), body.clone()).await?;
        let named = (told.status, told.body["reason"].as_str(), told.body["errors"][0]["field"].as_str());
        assert_eq!(named, (status, Some(reason), Some(field)), "{body} {told:?}");
    }
    // An administrator sees everybody's accounts, and pays from none but its own. A merchant does not pay itself.
    let paid = market.api.post("/api/v1/orders", Some(&shop.administrator), good()).await?;
    refused(&paid, 404, "ACCOUNT_NOT_FOUND");
    let own = new_order("own", &[(&dear, 1)], &of_eve);
    let told = market.api.post("/api/v1/orders", Some(&eve.token), own).await?;
    assert_eq!((told.status, &told.body["errors"][0]["field"]), (400, &json!("payment.accountId")), "{told:?}");
    // None of them has used the key.
    is(&market.order("bad", &[(&shop.product, 1)]).await?, 201, "COMPLETED", "");
    for (path, status, reason) in [
        (format!("/api/v1/orders/{none}"), 404, "ORDER_NOT_FOUND"),
        (format!("/api/v1/orders/{none}/saga"), 404, "ORDER_NOT_FOUND"),
        ("/api/v1/orders/x".to_owned(), 400, "INVALID_ARGUMENT"),
    ] {
        refused(&market.api.get(&path, Some(&market.buyer.token)).await?, status, reason);
    }
    refused(&market.cancel(&none).await?, 404, "ORDER_NOT_FOUND");
    Ok(())
}

/// Somebody else's order, its saga and its events are as none; an administrator sees them.
pub async fn who_sees_an_order(world: &World) -> Result<()> {
    let market = Market::open(&world.server).await?;
    let id = market.order("mine", &[(&market.shop.product, 1)]).await?.text("id")?;
    let stranger = market.api.someone().await?;
    for path in ["", "/saga", "/events"] {
        let path = format!("/api/v1/orders/{id}{path}");
        refused(&market.api.get(&path, Some(&stranger.token)).await?, 404, "ORDER_NOT_FOUND");
        assert_eq!(market.api.get(&path, Some(&market.shop.administrator)).await?.status, 200);
    }
    let cancelled = market.api.json(Method::DELETE, &format!("/api/v1/orders/{id}"), Some(&stranger.token), &[], None).await?;
    refused(&cancelled, 404, "ORDER_NOT_FOUND");
    let cancelled = market.api.json(Method::DELETE, &format!("/api/v1/orders/{id}"), Some(&market.shop.administrator), &[], None).await?;
    assert_eq!(cancelled.status, 202, "{cancelled:?}");
    market.becomes(&id, "CANCELLED").await?;
    Ok(())
}

/// The same, with generated clients.
pub async fn orders_over_grpc(world: &World) -> Result<()> {
    let market = Market::open(&world.server).await?;
    let channel = channel(world).await?;
    let (mut orders, mut sagas) = (OrdersServiceClient::new(channel.clone()), SagasServiceClient::new(channel));
    let request = CreateOrderRequest {
        external_id: "grpc".to_owned(),
        items: vec![OrderItemRequest { product_id: market.shop.product.clone(), quantity: 2 }],
        payment: Some(OrderPayment { method: order_payment::Method::Account as i32, account_id: Some(market.account.clone()), card_token: None }),
        wait: Some(pbjson_types::Duration { seconds: 15, nanos: 0 }),
        ..CreateOrderRequest::default()
    };
    let placed = orders.create_order(with_token(&market.buyer.token, request)?).await?.into_inner();
    assert_eq!(placed.status(), order::Status::Completed, "{placed:?}");
    let request = ListOrderEventsRequest { id: placed.id.clone() };
    let events = orders.list_order_events(with_token(&market.buyer.token, request)?).await?.into_inner().events;
    assert_eq!(events.len(), 5);
    assert!(events.iter().all(|event| event.correlation_id == events[0].correlation_id && event.payload.is_some()), "{events:?}");
    let request = GetSagaRequest { order_id: placed.id.clone() };
    let told = sagas.get_saga(with_token(&market.buyer.token, request.clone())?).await?.into_inner();
    assert_eq!((told.state(), told.steps.len()), (saga::State::Completed, 3));
    market.shop.has(&market.shop.product, &[("a", 8, 0), ("b", 10, 0)]).await?;
    orders.cancel_order(with_token(&market.buyer.token, CancelOrderRequest { id: placed.id.clone() })?).await?;
    market.becomes(&placed.id, "CANCELLED").await?;
    let told = sagas.get_saga(with_token(&market.buyer.token, request)?).await?.into_inner();
    assert_eq!((told.state(), told.steps.len()), (saga::State::Compensated, 6));
    assert_eq!(market.left().await?, "1000.00");
    Ok(())
}
