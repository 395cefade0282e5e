//! What journeys of orders have in common: a shop, a buyer with money, and what the buyer sees of its orders.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lastro_tests::client::Someone;
use lastro_tests::{Answer, Api, Front};
use reqwest::Method;
use serde_json::{Value, json};

use crate::inventory::Shop;

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

    pub async fn until(&self, id: &str, what: &str, is: impl Fn(&Value) -> bool) -> Result<Answer> {
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

    /// Until the saga has come to a state, or beyond it.
    pub async fn until_saga(&self, id: &str, state: &str) -> Result<()> {
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

pub fn new_order(key: &str, items: &[(&String, i64)], account: &str) -> Value {
    json!({ "externalId": key, "items": items_of(items), "payment": { "method": "ACCOUNT", "accountId": account } })
}

pub fn with_card(key: &str, items: &[(&String, i64)], token: &str) -> Value {
    json!({ "externalId": key, "items": items_of(items), "payment": { "method": "CARD", "cardToken": token } })
}

pub fn items_of(items: &[(&String, i64)]) -> Value {
    items.iter().map(|(product, quantity)| json!({ "productId": product, "quantity": quantity })).collect()
}

/// Status of the answer, status of the order and its reason.
pub fn is(answer: &Answer, status: u16, of_order: &str, reason: &str) {
    let told = (answer.status, answer.body["status"].as_str(), answer.body["reason"].as_str());
    assert_eq!(told, (status, Some(of_order), Some(reason)), "{answer:?}");
}
