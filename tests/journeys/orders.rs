//! Orders: what buyers see of them, and where money and pieces end.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use lastro_proto::orders::v1::orders_service_client::OrdersServiceClient;
use lastro_proto::orders::v1::sagas_service_client::SagasServiceClient;
use lastro_proto::orders::v1::{
    CancelOrderRequest, CreateOrderRequest, GetSagaRequest, ListOrderEventsRequest, OrderItemRequest, OrderPayment, order, order_payment, saga,
};
use lastro_tests::client::Someone;
use lastro_tests::stack::Options;
use lastro_tests::{Answer, Api, Front, PaymentProvider, Stack};
use libtest_mimic::Trial;
use reqwest::Method;
use serde_json::{Value, json};

use crate::grpc::{channel, with_token};
use crate::inventory::Shop;
use crate::order_payments::what_sagas_pay_by_card;
use crate::payments::refused;
use crate::pipeline::Rig;
use crate::{World, block_on, failed};

pub fn trials() -> Vec<Trial> {
    let rig = |name: &str, flags: &'static [&'static str], journey: fn(&Rig) -> Result<()>| {
        let on = move |on_postgres: bool| move || failed(Rig::start_with(on_postgres, flags).and_then(|rig| journey(&rig)));
        [Trial::test(format!("orders::{name}"), on(false)), Trial::test(format!("orders::{name}_on_postgresql"), on(true))]
    };
    let sandbox = &["--payment-provider", "sandbox", "--saga-timeout", "2"];
    let slow = &["--payment-provider", "sandbox"];
    let short = &["--payment-provider", "sandbox", "--access-token-ttl", "2"];
    [
        rig("what_is_paid_after_the_saga_gave_up_goes_back", sandbox, |rig| block_on(what_is_paid_after_the_saga_gave_up_goes_back(rig))),
        rig("slow_providers", slow, |rig| block_on(slow_providers(&rig.server.front()))),
        rig("a_token_that_has_expired_does_not_stop_an_order", short, |rig| block_on(a_token_that_has_expired_does_not_stop_an_order(rig))),
    ]
    .into_iter()
    .flatten()
    .chain([Trial::test("stack::orders::slow_providers", || failed(slow_providers_of_the_stack()))])
    .collect()
}

/// As [`slow_providers`], and what sagas ask of transactions by card.
fn slow_providers_of_the_stack() -> Result<()> {
    let provider = PaymentProvider::start()?;
    let stack = Stack::start(Options { payment_provider: Some(provider.url.clone()), ..Options::default() })?;
    block_on(what_sagas_pay_by_card(&stack))?;
    block_on(slow_providers(&stack.front()))?;
    ensure!(provider.wrongs().is_empty(), "{:?}", provider.wrongs());
    Ok(())
}

/// Somebody with 1,000.00, and what it may buy.
pub struct Market {
    pub shop: Shop,
    pub api: Api,
    pub buyer: Someone,
    pub account: String,
}

impl Market {
    /// 10 pieces of a product at 10.00 in each of two stores.
    pub async fn open(front: &Front) -> Result<Self> {
        let shop = Shop::open(front).await?;
        for store in ["a", "b"] {
            let added = shop.adjust(&shop.product, store, 10, &format!("{} {store}", shop.product)).await?;
            ensure!(added.status == 200, "{added:?}");
        }
        let api = front.api();
        let buyer = api.someone().await?;
        let account = api.account(&buyer.token, "BRL").await?;
        api.deposit(&shop.administrator, &account, "BRL", "1000.00").await?;
        Ok(Self { shop, api, buyer, account })
    }

    /// Places an order, and waits until it is decided.
    pub async fn order(&self, key: &str, items: &[(&String, i64)]) -> Result<Answer> {
        self.place(new_order(key, items, &self.account), "wait=15").await
    }

    pub async fn order_by_card(&self, key: &str, items: &[(&String, i64)], token: &str, prefer: &str) -> Result<Answer> {
        self.place(with_card(key, items, token), prefer).await
    }

    pub async fn place(&self, body: Value, prefer: &str) -> Result<Answer> {
        self.api.json(Method::POST, "/api/v1/orders", Some(&self.buyer.token), &[("prefer", prefer)], Some(body)).await
    }

    pub async fn get(&self, id: &str) -> Result<Answer> {
        self.api.get(&format!("/api/v1/orders/{id}"), Some(&self.buyer.token)).await
    }

    pub async fn saga(&self, id: &str) -> Result<Answer> {
        self.api.get(&format!("/api/v1/orders/{id}/saga"), Some(&self.buyer.token)).await
    }

    pub async fn cancel(&self, id: &str) -> Result<Answer> {
        self.api.json(Method::DELETE, &format!("/api/v1/orders/{id}"), Some(&self.buyer.token), &[], None).await
    }

    /// The types of the events of an order, and that each follows from the one before under one correlation id.
    pub async fn events(&self, id: &str) -> Result<Vec<String>> {
        let answer = self.api.get(&format!("/api/v1/orders/{id}/events"), Some(&self.buyer.token)).await?;
        let events = answer.body["events"].as_array().with_context(|| format!("{answer:?}"))?;
        for (index, event) in events.iter().enumerate() {
            let cause = if index == 0 { &json!("") } else { &events[index - 1]["id"] };
            ensure!(event["version"] == json!(index + 1) && event["causationId"] == *cause, "{event}");
            ensure!(event["payload"]["traceId"] == events[0]["payload"]["traceId"], "{event}");
        }
        Ok(events.iter().map(|event| event["type"].as_str().unwrap_or_default().to_owned()).collect())
    }

    /// What the buyer has left.
    pub async fn left(&self) -> Result<String> {
        self.api.posted(&self.buyer.token, &self.account).await
    }

    /// Until an order stands so.
    pub async fn becomes(&self, id: &str, status: &str) -> Result<Answer> {
        self.until(id, status, |answer| answer["status"] == status).await
    }

    async fn until(&self, id: &str, what: &str, is: impl Fn(&Value) -> bool) -> Result<Answer> {
        let since = Instant::now();
        loop {
            let answer = self.get(id).await?;
            if is(&answer.body) {
                return Ok(answer);
            }
            ensure!(since.elapsed() < Duration::from_secs(40), "it does not become {what}: {answer:?} {:?}", self.saga(id).await?);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

pub fn new_order(key: &str, items: &[(&String, i64)], account: &str) -> Value {
    json!({ "externalId": key, "items": items_of(items), "payment": { "method": "ACCOUNT", "accountId": account } })
}

fn with_card(key: &str, items: &[(&String, i64)], token: &str) -> Value {
    json!({ "externalId": key, "items": items_of(items), "payment": { "method": "CARD", "cardToken": token } })
}

fn items_of(items: &[(&String, i64)]) -> Value {
    items.iter().map(|(product, quantity)| json!({ "productId": product, "quantity": quantity })).collect()
}

/// Status of the answer, status of the order and its reason.
fn is(answer: &Answer, status: u16, of_order: &str, reason: &str) {
    let told = (answer.status, answer.body["status"].as_str(), answer.body["reason"].as_str());
    assert_eq!(told, (status, Some(of_order), Some(reason)), "{answer:?}");
}

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

impl Market {
    /// Until the saga has come to a state, or beyond it.
    async fn until_saga(&self, id: &str, state: &str) -> Result<()> {
        let since = Instant::now();
        loop {
            let saga = self.saga(id).await?;
            if saga.body["state"] == state || saga.body["state"] == "PAYMENT_PROCESSING" {
                return Ok(());
            }
            ensure!(since.elapsed() < Duration::from_secs(10), "{saga:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// With a payment provider of its own: what is slow here closes the way to it for others.
async fn slow_providers(front: &Front) -> Result<()> {
    a_slow_provider_is_waited_for(front).await?;
    an_order_is_cancelled_while_the_provider_is_asked(front).await?;
    a_saga_is_given_up(front).await
}

async fn an_order_is_cancelled_while_the_provider_is_asked(front: &Front) -> Result<()> {
    let market = Market::open(front).await?;
    let shop = &market.shop;
    let slow = market.order_by_card("slow", &[(&shop.product, 1)], "tok_timeout", "respond-async").await?;
    is(&slow, 202, "PENDING", "");
    let slow = slow.text("id")?;
    market.until_saga(&slow, "INVENTORY_RESERVED").await?;
    assert_eq!(market.cancel(&slow).await?.status, 202);
    market.becomes(&slow, "CANCELLED").await?;
    shop.has(&shop.product, &[("a", 10, 0), ("b", 10, 0)]).await?;
    assert_eq!(market.left().await?, "1000.00");
    Ok(())
}

/// The provider answers after its time limit: the order waits for it, and is completed.
async fn a_slow_provider_is_waited_for(front: &Front) -> Result<()> {
    let market = Market::open(front).await?;
    let placed = market.order_by_card("slow", &[(&market.shop.product, 3)], "tok_timeout", "wait=25").await?;
    is(&placed, 201, "COMPLETED", "");
    let saga = market.saga(&placed.text("id")?).await?;
    assert!(saga.body["steps"][1]["attempts"].as_i64() > Some(1), "it was asked for again: {saga:?}");
    assert_eq!(market.left().await?, "1000.00", "the card has paid");
    let fail_once = market.order_by_card("once", &[(&market.shop.product, 1)], "tok_fail_once", "wait=25").await?;
    is(&fail_once, 201, "COMPLETED", "");
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

/// An administrator gives up what waits for a provider.
async fn a_saga_is_given_up(front: &Front) -> Result<()> {
    let market = Market::open(front).await?;
    let placed = market.order_by_card("stuck", &[(&market.shop.product, 1)], "tok_timeout", "respond-async").await?;
    let id = placed.text("id")?;
    market.until_saga(&id, "INVENTORY_RESERVED").await?;
    let resumed = market.api.post(&format!("/api/v1/sagas/{id}:resume"), Some(&market.shop.administrator), json!({ "action": "COMPENSATE" })).await?;
    assert_eq!(resumed.status, 200, "{resumed:?}");
    is(&market.becomes(&id, "FAILED").await?, 200, "FAILED", "GIVEN_UP");
    market.shop.has(&market.shop.product, &[("a", 10, 0), ("b", 10, 0)]).await
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
        ("/api/v1/orders".to_owned(), 501, "NOT_OFFERED"),
        ("/api/v1/orders/search".to_owned(), 501, "NOT_OFFERED"),
        ("/api/v1/orders/analytics".to_owned(), 501, "NOT_OFFERED"),
        (format!("/api/v1/orders/customer/{none}"), 501, "NOT_OFFERED"),
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

/// The provider answers when the saga has given up: what it took goes back, and the order has failed for want of time.
async fn what_is_paid_after_the_saga_gave_up_goes_back(rig: &Rig) -> Result<()> {
    let market = Market::open(&rig.server.front()).await?;
    let placed = market.order_by_card("late", &[(&market.shop.product, 1)], "tok_timeout", "wait=25").await?;
    is(&placed, 201, "FAILED", "TIMED_OUT");
    let id = placed.text("id")?;
    let saga = market.saga(&id).await?;
    assert_eq!((&saga.body["state"], &saga.body["reason"]), (&json!("COMPENSATED"), &json!("TIMED_OUT")), "{saga:?}");
    let payment = market.api.get(&format!("/api/v1/transactions/{}", placed.text("paymentId")?), Some(&market.buyer.token)).await?;
    assert_eq!((&payment.body["state"], &payment.body["reason"]), (&json!("REJECTED"), &json!("SAGA_CANCELLED")), "{payment:?}");
    market.shop.has(&market.shop.product, &[("a", 10, 0), ("b", 10, 0)]).await?;
    let merchants = market.api.get(&format!("/api/v1/accounts/{}", market.shop.account), Some(&rig.server.administrator().await?)).await?;
    assert_eq!(merchants.body["posted"]["amount"], "0.00");
    Ok(())
}

/// The buyer's token is used at the call, and not kept: what it has begun goes on without.
async fn a_token_that_has_expired_does_not_stop_an_order(rig: &Rig) -> Result<()> {
    let market = Market::open(&rig.server.front()).await?;
    let placed = market.order_by_card("slow", &[(&market.shop.product, 1)], "tok_timeout", "respond-async").await?;
    is(&placed, 202, "PENDING", "");
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let id = placed.text("id")?;
    assert_eq!(market.get(&id).await?.status, 401, "the token has expired");
    let login = json!({ "email": market.buyer.email, "password": lastro_tests::client::PASSWORD });
    let since = Instant::now();
    loop {
        let token = market.api.post("/api/v1/auth/login", None, login.clone()).await?.text("accessToken")?;
        let order = market.api.get(&format!("/api/v1/orders/{id}"), Some(&token)).await?;
        if order.body["status"] == "COMPLETED" {
            return Ok(());
        }
        ensure!(since.elapsed() < Duration::from_secs(20), "{order:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
