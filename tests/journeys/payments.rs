//! Payments for orders, from accounts and by card, and what is given back.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::join_all;
use lastro_proto::transactions::v1::payments_service_client::PaymentsServiceClient;
use lastro_proto::transactions::v1::{GetPaymentRequest, PaymentLegRequest, ProcessPaymentRequest, RefundPaymentRequest, payment};
use lastro_proto::r#type::v1::Money;
use lastro_tests::client::Someone;
use lastro_tests::{Answer, Api};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::grpc::{channel, with_token};
use crate::legs::{balance, money, with_money};
use crate::pipeline::Rig;
use crate::{World, block_on, failed};

pub fn trials() -> Vec<Trial> {
    let on = |name: &str, on_postgres: bool, flags: &'static [&'static str], status: u16| {
        Trial::test(format!("payments::{name}"), move || {
            failed(Rig::start_with(on_postgres, flags).and_then(|rig| block_on(cards_where(&rig, status))))
        })
    };
    vec![
        on("no_cards_without_a_provider", true, &[], 501),
        on("no_cards_where_the_operator_says_so", false, &["--payment-provider", "none"], 501),
        on("the_sandbox_where_the_operator_says_so", true, &["--payment-provider", "sandbox"], 201),
        on("the_sandbox_with_the_embedded_database", false, &[], 201),
    ]
}

/// Whether cards are taken, and that an account pays everywhere.
async fn cards_where(rig: &Rig, status: u16) -> Result<()> {
    let (api, someone, accounts) = rig.someone().await?;
    let merchant = api.someone().await?;
    let to = api.account(&merchant.token, "BRL").await?;
    let by_card = pay(&api, &someone.token, card("o1", "tok_approve", &[(&to, "1.00")])).await?;
    assert_eq!(by_card.status, status, "{by_card:?}");
    if status == 501 {
        assert_eq!(by_card.text("reason")?, "NOT_OFFERED");
    }
    // Where nobody would expect it, it is warned of.
    let log = std::fs::read_to_string(rig.server.data.with_extension("log"))?;
    assert_eq!(log.contains("the payment provider is the sandbox"), status == 201 && rig.postgres.is_some(), "{log}");
    assert_eq!(pay(&api, &someone.token, from_account("o2", &accounts[0], &[(&to, "1.00")])).await?.body["state"], "CAPTURED");
    Ok(())
}

fn legs(legs: &[(&String, &str)]) -> Value {
    legs.iter().map(|(to, amount)| json!({ "destinationAccountId": to, "amount": money("BRL", amount) })).collect()
}

pub fn from_account(order: &str, account: &str, to: &[(&String, &str)]) -> Value {
    json!({ "orderId": order, "method": "ACCOUNT", "accountId": account, "legs": legs(to) })
}

pub fn card(order: &str, token: &str, to: &[(&String, &str)]) -> Value {
    json!({ "orderId": order, "method": "CARD", "cardToken": token, "legs": legs(to) })
}

pub async fn pay(api: &Api, token: &str, body: Value) -> Result<Answer> {
    api.post("/api/v1/payments/process", Some(token), body).await
}

pub async fn refund(api: &Api, token: &str, order: &str, amount: Option<&str>, key: &str) -> Result<Answer> {
    let mut body = json!({ "orderId": order, "externalId": key });
    if let Some(amount) = amount {
        body["amount"] = money("BRL", amount);
    }
    api.post("/api/v1/payments/refund", Some(token), body).await
}

pub async fn get(api: &Api, token: &str, order: &str) -> Result<Answer> {
    api.get(&format!("/api/v1/payments/{order}"), Some(token)).await
}

/// Status, state, amount and what was given back.
fn outcome(answer: &Answer) -> (u16, String, String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let body = &answer.body;
    (answer.status, text(&body["state"]), text(&body["amount"]["amount"]), text(&body["refundedAmount"]["amount"]))
}

pub fn is(answer: &Answer, status: u16, state: &str, amount: &str, refunded: &str) {
    assert_eq!(outcome(answer), (status, state.to_owned(), amount.to_owned(), refunded.to_owned()), "{answer:?}");
}

pub fn refused(answer: &Answer, status: u16, reason: &str) {
    assert_eq!((answer.status, answer.body["reason"].as_str()), (status, Some(reason)), "{answer:?}");
}

/// A merchant with an account.
pub async fn merchant(api: &Api) -> Result<(Someone, String)> {
    let merchant = api.someone().await?;
    let account = api.account(&merchant.token, "BRL").await?;
    Ok((merchant, account))
}

/// Until a payment stands so.
pub async fn becomes(api: &Api, token: &str, order: &str, state: &str) -> Result<Answer> {
    let since = Instant::now();
    loop {
        let answer = get(api, token, order).await?;
        if answer.body["state"] == state {
            return Ok(answer);
        }
        anyhow::ensure!(since.elapsed() < Duration::from_secs(20), "it does not become {state}: {answer:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub async fn an_account_pays_and_gets_back(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "100.00").await?;
    let ((shop, of_shop), (platform, of_platform)) = (merchant(&api).await?, merchant(&api).await?);
    let asked = from_account("order/1", &from, &[(&of_shop, "70.00"), (&of_platform, "30.00")]);
    let paid = pay(&api, &ana.token, asked.clone()).await?;
    is(&paid, 201, "CAPTURED", "100.00", "0.00");
    assert_eq!((&paid.body["method"], &paid.body["orderId"], &paid.body["replayed"]), (&json!("ACCOUNT"), &json!("order/1"), &json!(false)));
    assert_eq!(balance(&api, &ana.token, &from).await?[0], "0.00");
    assert_eq!([&of_shop, &of_platform].len(), 2);
    // The same order again is the same payment; another one for it is refused.
    let again = pay(&api, &ana.token, asked.clone()).await?;
    assert_eq!((again.status, &again.body["id"], &again.body["replayed"]), (200, &paid.body["id"], &json!(true)), "{again:?}");
    refused(&pay(&api, &ana.token, from_account("order/1", &from, &[(&of_shop, "70.00")])).await?, 422, "IDEMPOTENCY_KEY_REUSED");
    // It is a transaction.
    let transaction = api.get(&format!("/api/v1/transactions/{}", paid.text("id")?), Some(&ana.token)).await?;
    assert_eq!((&transaction.body["type"], &transaction.body["state"]), (&json!("PAYMENT"), &json!("COMPLETED")), "{transaction:?}");
    let not = api
        .post(&format!("/api/v1/transactions/{}:reverse", paid.text("id")?), Some(&world.server.administrator().await?), json!({ "externalId": "r" }))
        .await?;
    refused(&not, 409, "NOT_REVERSIBLE");
    // Whoever gets money sees its own part of it.
    is(&get(&api, &ana.token, "order%2F1").await?, 200, "CAPTURED", "100.00", "0.00");
    is(&get(&api, &shop.token, "order%2F1").await?, 200, "CAPTURED", "70.00", "0.00");
    is(&get(&api, &platform.token, "order%2F1").await?, 200, "CAPTURED", "30.00", "0.00");
    refused(&get(&api, &api.someone().await?.token, "order%2F1").await?, 404, "PAYMENT_NOT_FOUND");
    let by_id = api.get(&format!("/api/v1/payments/-?paymentId={}", paid.text("id")?), Some(&shop.token)).await?;
    is(&by_id, 200, "CAPTURED", "70.00", "0.00");
    assert_eq!(paid.header("location"), format!("/api/v1/payments/-?paymentId={}", paid.text("id")?));
    // In part, shared in proportion, then all that is left.
    let administrator = world.server.administrator().await?;
    let id = paid.text("id")?;
    let give = |amount: Option<&str>, key: &str| {
        let mut body = json!({ "paymentId": id, "externalId": key });
        if let Some(amount) = amount {
            body["amount"] = money("BRL", amount);
        }
        let (api, administrator) = (api.clone(), administrator.clone());
        async move { api.post("/api/v1/payments/refund", Some(&administrator), body).await }
    };
    let key = uuid::Uuid::new_v4().to_string();
    let part = give(Some("10.00"), &key).await?;
    is(&part, 201, "CAPTURED", "100.00", "10.00");
    assert_eq!((part.body["transactionIds"].as_array().map(Vec::len), &part.body["refunds"][0]["state"]), (Some(2), &json!("COMPLETED")), "{part:?}");
    assert_eq!(balance(&api, &shop.token, &of_shop).await?[0], "63.00");
    assert_eq!(balance(&api, &platform.token, &of_platform).await?[0], "27.00");
    is(&get(&api, &shop.token, "order%2F1").await?, 200, "CAPTURED", "70.00", "7.00");
    let again = give(Some("10.00"), &key).await?;
    assert_eq!((again.status, &again.body["replayed"], &again.body["refundedAmount"]["amount"]), (200, &json!(true), &json!("10.00")), "{again:?}");
    refused(&give(Some("11.00"), &key).await?, 422, "IDEMPOTENCY_KEY_REUSED");
    let too_much = give(Some("90.01"), "much").await?;
    refused(&too_much, 409, "REFUND_TOO_MUCH");
    assert_eq!(too_much.body["errors"][0]["field"], "amount", "{too_much:?}");
    let rest = give(None, &format!("{key} rest")).await?;
    is(&rest, 201, "REFUNDED", "100.00", "100.00");
    refused(&give(None, "nothing is left").await?, 409, "REFUND_TOO_MUCH");
    assert_eq!(balance(&api, &ana.token, &from).await?[0], "100.00");
    assert_eq!(balance(&api, &shop.token, &of_shop).await?[0], "0.00");
    let given = api.get(&format!("/api/v1/transactions/{}", rest.body["transactionIds"][2].as_str().unwrap_or_default()), Some(&ana.token)).await?;
    assert_eq!((&given.body["type"], &given.body["originalId"]), (&json!("REFUND"), &paid.body["id"]), "{given:?}");
    // What the payer has not is declined, for good.
    let poor = pay(&api, &ana.token, from_account("order/2", &from, &[(&of_shop, "100.01")])).await?;
    is(&poor, 201, "DECLINED", "100.01", "0.00");
    assert_eq!(poor.body["reason"], "INSUFFICIENT_FUNDS");
    let later = pay(&api, &ana.token, from_account("order/2", &from, &[(&of_shop, "100.01")])).await?;
    assert_eq!((later.status, &later.body["state"]), (200, &json!("DECLINED")));
    refused(&refund(&api, &shop.token, "order/2", None, "of nothing").await?, 409, "PAYMENT_NOT_CAPTURED");
    Ok(())
}

pub async fn a_card_pays(world: &World) -> Result<()> {
    let api = world.server.api();
    let (ana, (shop, of_shop)) = (api.someone().await?, merchant(&api).await?);
    let paid = pay(&api, &ana.token, card("c1", "tok_approve", &[(&of_shop, "10.00")])).await?;
    is(&paid, 201, "CAPTURED", "10.00", "0.00");
    assert_eq!(paid.body["method"], "CARD");
    assert_eq!(balance(&api, &shop.token, &of_shop).await?[0], "10.00");
    let declined = pay(&api, &ana.token, card("c2", "tok_decline", &[(&of_shop, "10.00")])).await?;
    is(&declined, 201, "DECLINED", "10.00", "0.00");
    assert_eq!(declined.body["reason"], "CARD_DECLINED");
    let transaction = api.get(&format!("/api/v1/transactions/{}", declined.text("id")?), Some(&ana.token)).await?;
    assert_eq!((&transaction.body["state"], &transaction.body["settlement"]), (&json!("REJECTED"), &json!("EXTERNAL")), "{transaction:?}");
    // The first attempt of each payment fails; it is sent again at once.
    is(&pay(&api, &ana.token, card("c3", "tok_fail_once", &[(&of_shop, "1.00")])).await?, 201, "CAPTURED", "1.00", "0.00");
    // No answer in time: nobody knows, until the provider is asked. The caller may wait or go.
    let unknown = pay(&api, &ana.token, card("c4", "tok_timeout", &[(&of_shop, "5.00")])).await?;
    is(&unknown, 201, "UNKNOWN", "5.00", "0.00");
    refused(&refund(&api, &shop.token, "c4", None, "too early").await?, 409, "PAYMENT_NOT_CAPTURED");
    becomes(&api, &ana.token, "c4", "CAPTURED").await?;
    // Several at once, one order each; and fifty calls for one order.
    let many = join_all((0..50).map(|_| pay(&api, &ana.token, card("c5", "tok_approve", &[(&of_shop, "2.00")])))).await;
    let ids: std::collections::BTreeSet<String> = many.into_iter().map(|one| one?.text("id")).collect::<Result<_>>()?;
    assert_eq!(ids.len(), 1);
    becomes(&api, &ana.token, "c5", "CAPTURED").await?;
    assert_eq!(balance(&api, &shop.token, &of_shop).await?[0], "18.00");
    // Another card for the same order is another request.
    refused(&pay(&api, &ana.token, card("c1", "tok_decline", &[(&of_shop, "10.00")])).await?, 422, "IDEMPOTENCY_KEY_REUSED");
    // Nobody but the provider says what became of it: not its payer either, with the role of a provider.
    let provider = world.server.provider().await?;
    let told = api.post("/api/v1/operations", Some(&provider.token), json!({ "externalId": "lastro:payment:c9", "eventType": "SETTLED" })).await?;
    assert_eq!((told.status, &told.body["errors"][0]["field"]), (400, &json!("externalId")), "{told:?}");
    // The events of a card have no token of it.
    let events = api.get(&format!("/api/v1/transactions/{}/events", paid.text("id")?), Some(&ana.token)).await?;
    assert!(!events.body.to_string().contains("tok_approve") && events.body["events"].as_array().map(Vec::len) == Some(3), "{events:?}");
    Ok(())
}

pub async fn cards_get_back(world: &World) -> Result<()> {
    let api = world.server.api();
    let (ana, (shop, of_shop)) = (api.someone().await?, merchant(&api).await?);
    is(&pay(&api, &ana.token, card("r1", "tok_approve", &[(&of_shop, "20.00")])).await?, 201, "CAPTURED", "20.00", "0.00");
    let part = refund(&api, &shop.token, "r1", Some("5.00"), "first").await?;
    is(&part, 201, "CAPTURED", "20.00", "5.00");
    assert_eq!(part.body["refunds"][0]["state"], "COMPLETED", "{part:?}");
    assert_eq!(balance(&api, &shop.token, &of_shop).await?, ["15.00", "0.00", "15.00"]);
    assert_eq!(refund(&api, &shop.token, "r1", Some("5.00"), "first").await?.status, 200);
    // What the provider refuses is not given back, and may be asked for in another way.
    if world.postgres.is_some() {
        let declined = refund(&api, &shop.token, "r1", Some("6.66"), "declined").await?;
        refused(&declined, 409, "REFUND_DECLINED");
        refused(&refund(&api, &shop.token, "r1", Some("6.66"), "declined").await?, 409, "REFUND_DECLINED");
        assert_eq!(balance(&api, &shop.token, &of_shop).await?, ["15.00", "0.00", "15.00"]);
        let stands = get(&api, &shop.token, "r1").await?;
        is(&stands, 200, "CAPTURED", "20.00", "5.00");
        assert_eq!((&stands.body["refunds"][1]["state"], &stands.body["refunds"][1]["reason"]), (&json!("DECLINED"), &json!("REFUND_NOT_POSSIBLE")));
    }
    // Without the money nothing is asked of the provider, and no key is used.
    let other = api.account(&shop.token, "BRL").await?;
    assert_eq!(api.transact(&shop.token, Api::transfer("away", &of_shop, &other, "15.00")).await?.status, 201);
    refused(&refund(&api, &shop.token, "r1", None, "rest").await?, 409, "INSUFFICIENT_FUNDS");
    assert_eq!(api.transact(&shop.token, Api::transfer("back", &other, &of_shop, "15.00")).await?.status, 201);
    is(&refund(&api, &shop.token, "r1", None, "rest").await?, 201, "REFUNDED", "20.00", "20.00");
    assert_eq!(balance(&api, &shop.token, &of_shop).await?, ["0.00", "0.00", "0.00"]);
    // A card's refund that is under way is the provider's to end.
    is(&pay(&api, &ana.token, card("r2", "tok_approve", &[(&of_shop, "1.00")])).await?, 201, "CAPTURED", "1.00", "0.00");
    let given = refund(&api, &shop.token, "r2", None, "r2").await?;
    for verb in ["capture", "void"] {
        let id = given.body["refunds"][0]["transactionId"].as_str().unwrap_or_default();
        let told = api.post(&format!("/api/v1/transactions/{id}:{verb}"), Some(&shop.token), json!({ "externalId": "v" })).await?;
        refused(&told, 403, "HOLD_NOT_YOURS");
    }
    Ok(())
}

pub async fn who_may_refund(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "100.00").await?;
    let ((shop, of_shop), (other, of_other)) = (merchant(&api).await?, merchant(&api).await?);
    let administrator = world.server.administrator().await?;
    let order = uuid::Uuid::new_v4().to_string();
    pay(&api, &ana.token, from_account(&order, &from, &[(&of_shop, "10.00"), (&of_other, "10.00")])).await?;
    // Neither who paid, nor who got a part of it, nor a stranger.
    for token in [&ana.token, &shop.token, &other.token] {
        refused(&refund(&api, token, &order, Some("1.00"), "k").await?, 403, "REFUND_NOT_YOURS");
    }
    refused(&refund(&api, &api.someone().await?.token, &order, Some("1.00"), "k").await?, 404, "PAYMENT_NOT_FOUND");
    is(&refund(&api, &administrator, &order, Some("1.00"), &order).await?, 201, "CAPTURED", "20.00", "1.00");
    // An administrator that pays gives itself nothing back.
    let own = uuid::Uuid::new_v4().to_string();
    let of_administrator = api.account(&administrator, "BRL").await?;
    api.deposit(&administrator, &of_administrator, "BRL", "1.00").await?;
    is(&pay(&api, &administrator, from_account(&own, &of_administrator, &[(&of_shop, "1.00")])).await?, 201, "CAPTURED", "1.00", "0.00");
    refused(&refund(&api, &administrator, &own, None, "own").await?, 403, "REFUND_NOT_YOURS");
    is(&refund(&api, &shop.token, &own, None, "own").await?, 201, "REFUNDED", "1.00", "1.00");
    // A frozen account gives nothing back, and a payment to it is taken.
    let frozen = json!({ "frozen": true });
    api.json(reqwest::Method::PATCH, &format!("/api/v1/accounts/{of_shop}"), Some(&administrator), &[], Some(frozen)).await?;
    is(&pay(&api, &ana.token, from_account("frozen", &from, &[(&of_shop, "1.00")])).await?, 201, "CAPTURED", "1.00", "0.00");
    refused(&refund(&api, &shop.token, "frozen", None, "frozen").await?, 409, "ACCOUNT_FROZEN");
    Ok(())
}

pub async fn fifty_refunds_at_once(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let (shop, of_shop) = merchant(&api).await?;
    pay(&api, &ana.token, from_account("many", &from, &[(&of_shop, "10.00")])).await?;
    is(&pay(&api, &ana.token, card("many cards", "tok_approve", &[(&of_shop, "10.00")])).await?, 201, "CAPTURED", "10.00", "0.00");
    for order in ["many", "many cards"] {
        let refunds = (0..50).map(|number| {
            let (api, token) = (&api, &shop.token);
            async move { refund(api, token, order, Some("0.30"), &format!("{order} {number}")).await }
        });
        let mut given = 0;
        for answer in join_all(refunds).await {
            let answer = answer?;
            match answer.status {
                201 => given += 1,
                _ => refused(&answer, 409, "REFUND_TOO_MUCH"),
            }
        }
        assert_eq!(given, 33, "{order}");
        let stands = becomes(&api, &shop.token, &order.replace(' ', "%20"), "CAPTURED").await?;
        is(&stands, 200, "CAPTURED", "10.00", "9.90");
        // All that is left, by one key at once: it is given once, and every call is told so.
        let rest = (0..20).map(|_| {
            let (api, token) = (&api, &shop.token);
            async move { refund(api, token, order, None, &format!("{order} rest")).await }
        });
        for answer in join_all(rest).await {
            let answer = answer?;
            assert!([200, 201].contains(&answer.status), "{answer:?}");
        }
        let order = order.replace(' ', "%20");
        is(&becomes(&api, &shop.token, &order, "REFUNDED").await?, 200, "REFUNDED", "10.00", "10.00");
    }
    assert_eq!(balance(&api, &shop.token, &of_shop).await?, ["0.00", "0.00", "0.00"]);
    assert_eq!(balance(&api, &ana.token, &from).await?[0], "10.00");
    Ok(())
}

pub async fn several_payments_of_one_order(world: &World) -> Result<()> {
    let (api, ana, of_ana) = with_money(world, "10.00").await?;
    let (_, rui, of_rui) = with_money(world, "10.00").await?;
    let (shop, of_shop) = merchant(&api).await?;
    let order = uuid::Uuid::new_v4().to_string();
    let first = pay(&api, &ana.token, from_account(&order, &of_ana, &[(&of_shop, "1.00")])).await?;
    is(&get(&api, &shop.token, &order).await?, 200, "CAPTURED", "1.00", "0.00");
    let second = pay(&api, &rui.token, from_account(&order, &of_rui, &[(&of_shop, "2.00")])).await?;
    is(&second, 201, "CAPTURED", "2.00", "0.00");
    // Each payer finds its own; whoever is not names one.
    is(&get(&api, &ana.token, &order).await?, 200, "CAPTURED", "1.00", "0.00");
    is(&get(&api, &rui.token, &order).await?, 200, "CAPTURED", "2.00", "0.00");
    for token in [&shop.token, &world.server.administrator().await?] {
        let several = get(&api, token, &order).await?;
        assert_eq!((several.status, &several.body["errors"][0]["field"]), (400, &json!("paymentId")), "{several:?}");
        let named = api.get(&format!("/api/v1/payments/{order}?paymentId={}", second.text("id")?), Some(token)).await?;
        is(&named, 200, "CAPTURED", "2.00", "0.00");
    }
    let several = refund(&api, &shop.token, &order, None, "k").await?;
    assert_eq!((several.status, &several.body["errors"][0]["field"]), (400, &json!("paymentId")), "{several:?}");
    let named = json!({ "orderId": order, "paymentId": first.text("id")?, "externalId": "k" });
    is(&api.post("/api/v1/payments/refund", Some(&shop.token), named).await?, 201, "REFUNDED", "1.00", "1.00");
    // An id that is of another order names nothing.
    refused(&api.get(&format!("/api/v1/payments/other?paymentId={}", second.text("id")?), Some(&shop.token)).await?, 404, "PAYMENT_NOT_FOUND");
    refused(&api.get(&format!("/api/v1/payments/-?paymentId={}", second.text("id")?), Some(&ana.token)).await?, 404, "PAYMENT_NOT_FOUND");
    assert_eq!(api.get("/api/v1/payments/-", Some(&ana.token)).await?.status, 400);
    Ok(())
}

pub async fn bad_payments_are_named(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let (_, of_shop) = merchant(&api).await?;
    let (dollars, (_, of_eve)) = (api.account(&ana.token, "USD").await?, merchant(&api).await?);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut body = from_account("bad", &from, &[(&of_shop, "1.00")]);
        change(&mut body);
        body
    };
    let none = uuid::Uuid::now_v7().to_string();
    for (body, status, field) in [
        (with(&|body| body["orderId"] = json!("")), 400, "orderId"),
        (with(&|body| body["orderId"] = json!("x".repeat(101))), 400, "orderId"),
        (with(&|body| body["method"] = json!("CASH")), 400, "method"),
        (with(&|body| body["method"] = Value::Null), 400, "method"),
        (with(&|body| body["accountId"] = Value::Null), 400, "accountId"),
        (with(&|body| body["accountId"] = json!("x")), 400, "accountId"),
        (with(&|body| body["cardToken"] = json!("tok_approve")), 400, "cardToken"),
        (with(&|body| body["legs"] = json!([])), 400, "legs"),
        (with(&|body| body["legs"] = Value::Array(vec![body["legs"][0].clone(); 101])), 400, "legs"),
        (with(&|body| body["legs"][0]["amount"]["amount"] = json!("0")), 400, "legs[0].amount.amount"),
        (with(&|body| body["legs"][0]["amount"] = Value::Null), 400, "legs[0].amount"),
        (with(&|body| body["legs"][0]["destinationAccountId"] = json!(from)), 400, "legs[0].destinationAccountId"),
        (with(&|body| body["legs"][0]["amount"] = money("USD", "1.00")), 400, "legs[0].amount.currencyCode"),
        (
            with(&|body| body["legs"] = json!([body["legs"][0], { "destinationAccountId": dollars, "amount": money("USD", "1.00") }])),
            400,
            "legs[1].amount.currencyCode",
        ),
        (with(&|body| body["accountId"] = json!(of_eve)), 404, "accountId"),
        (with(&|body| body["legs"][0]["destinationAccountId"] = json!(none)), 404, "legs[0].destinationAccountId"),
        (json!({ "orderId": "bad", "method": "CARD", "legs": legs(&[(&of_shop, "1.00")]) }), 400, "cardToken"),
        (card("bad", "4111 1111 1111 1111", &[(&of_shop, "1.00")]), 400, "cardToken"),
        (card("bad", &"x".repeat(201), &[(&of_shop, "1.00")]), 400, "cardToken"),
        (card("bad", "tok\u{7}", &[(&of_shop, "1.00")]), 400, "cardToken"),
    ] {
        let told = pay(&api, &ana.token, body.clone()).await?;
        assert_eq!((told.status, told.body["errors"][0]["field"].as_str()), (status, Some(field)), "{body} {told:?}");
        assert!(!format!("{} {}", told.body["detail"], told.body["errors"]).contains("4111"), "{told:?}");
    }
    refused(&get(&api, &ana.token, "bad").await?, 404, "PAYMENT_NOT_FOUND");
    // Keys that Lastro makes itself are nobody's to choose.
    let told = api.transact(&ana.token, Api::transfer("lastro:payment:bad", &from, &of_shop, "1.00")).await?;
    assert_eq!((told.status, &told.body["errors"][0]["field"]), (400, &json!("externalId")), "{told:?}");
    let paid = pay(&api, &ana.token, from_account("good", &from, &[(&of_shop, "1.00")])).await?;
    for (body, status, field) in [
        (json!({ "orderId": "good" }), 400, "externalId"),
        (json!({ "externalId": "k" }), 400, "orderId"),
        (json!({ "paymentId": "x", "externalId": "k" }), 400, "paymentId"),
        (json!({ "paymentId": paid.text("id")?, "externalId": "lastro:x" }), 400, "externalId"),
    ] {
        let told = api.post("/api/v1/payments/refund", Some(&ana.token), body).await?;
        assert_eq!((told.status, told.body["errors"][0]["field"].as_str()), (status, Some(field)), "{told:?}");
    }
    let administrator = world.server.administrator().await?;
    for (amount, field) in
        [(money("BRL", "0.00"), "amount.amount"), (money("USD", "1.00"), "amount.currencyCode"), (money("BRL", "1.001"), "amount.amount")]
    {
        let body = json!({ "paymentId": paid.text("id")?, "externalId": "k", "amount": amount });
        let told = api.post("/api/v1/payments/refund", Some(&administrator), body).await?;
        assert_eq!((told.status, told.body["errors"][0]["field"].as_str()), (400, Some(field)), "{told:?}");
    }
    Ok(())
}

pub async fn payments_over_grpc(world: &World) -> Result<()> {
    let api = world.server.api();
    let (ana, (shop, of_shop)) = (api.someone().await?, merchant(&api).await?);
    let mut client = PaymentsServiceClient::new(channel(world).await?);
    let amount = |amount: &str| Some(Money { currency_code: "BRL".to_owned(), amount: amount.to_owned() });
    let request = ProcessPaymentRequest {
        order_id: "g1".to_owned(),
        method: payment::Method::Card as i32,
        account_id: None,
        card_token: Some("tok_approve".to_owned()),
        legs: vec![PaymentLegRequest { destination_account_id: of_shop.clone(), amount: amount("3.00") }],
    };
    let paid = client.process_payment(with_token(&ana.token, request.clone())?).await?.into_inner();
    assert_eq!((paid.state(), paid.method(), paid.replayed), (payment::State::Captured, payment::Method::Card, false));
    assert!(client.process_payment(with_token(&ana.token, request)?).await?.into_inner().replayed);
    let request = RefundPaymentRequest { order_id: "g1".to_owned(), payment_id: None, amount: amount("1.00"), external_id: "g".to_owned() };
    let given = client.refund_payment(with_token(&shop.token, request)?).await?.into_inner();
    assert_eq!((given.state(), given.refunded_amount), (payment::State::Captured, amount("1.00")));
    let request = GetPaymentRequest { order_id: String::new(), payment_id: Some(paid.id.clone()) };
    let stands = client.get_payment(with_token(&ana.token, request)?).await?.into_inner();
    assert_eq!((stands.transaction_ids.len(), stands.order_id.as_str()), (2, "g1"));
    Ok(())
}
