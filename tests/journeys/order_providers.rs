//! Orders whose payment provider is slow, each with a provider of its own: what is slow closes the way to the provider for others.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lastro_tests::stack::Options;
use lastro_tests::{Front, PaymentProvider, Stack};
use libtest_mimic::Trial;
use serde_json::json;

use crate::market::{Market, is};
use crate::order_payments::what_sagas_pay_by_card;
use crate::pipeline::Rig;
use crate::{block_on, failed};

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
