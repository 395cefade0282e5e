//! The days of the month: what is delivered, bought, cancelled, paid, and entered late.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use lastro_mesh::clock;
use lastro_tests::{Answer, Api};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::Method;
use serde_json::{Value, json};

use crate::shop::{BUYERS, MERCHANTS, PASSWORD, PRODUCTS, STORES};
use crate::{BEHIND_UTC_HOURS, DAY_US};

/// Days of the month, which begins on a Monday and is over by today.
pub const DAYS: i64 = 30;
const MINUTE_US: i64 = 60_000_000;
/// Orders on a working day at most, and on the days of a weekend.
const ORDERS: std::ops::RangeInclusive<usize> = 6..=10;
const ORDERS_ON_WEEKENDS: std::ops::RangeInclusive<usize> = 11..=16;

/// A minute of a day in the time zone of the ledger, Unix microseconds. Days are counted from 1970-01-01.
pub fn at_us(day: i64, minute: i64) -> i64 {
    day * DAY_US + BEHIND_UTC_HOURS * 60 * MINUTE_US + minute * MINUTE_US
}

/// Monday is 0. 1970-01-01 was a Thursday.
pub const fn weekday(day: i64) -> i64 {
    (day + 3).rem_euclid(7)
}

/// As the API writes a time.
fn time(us: i64) -> String {
    jiff::Timestamp::from_microsecond(us).unwrap_or_default().to_string()
}

fn date(day: i64) -> String {
    time(day * DAY_US).chars().take(10).collect()
}

/// Somebody with an account.
struct Person {
    token: String,
    account: String,
}

/// An order that was carried out.
struct Order {
    id: String,
    buyer: usize,
    day: i64,
}

/// The month while it is written.
pub struct Month {
    api: Api,
    random: StdRng,
    administrator: String,
    merchants: Vec<Person>,
    buyers: Vec<Person>,
    products: Vec<String>,
    /// Not SHIPPED yet.
    to_ship: Vec<Order>,
    /// Not DELIVERED yet.
    to_deliver: Vec<Order>,
    /// Every write has a key of its own.
    keys: u32,
    orders: u32,
    completed: u32,
    cancelled: u32,
    failed: u32,
    transactions: u32,
}

impl Month {
    /// Writes all of it, and shows how far it is; what there is then.
    pub async fn write(rest: &str, data: &Path, first_day: i64, seed: u64) -> Result<Value> {
        let mut month = Self::open(Api::new(rest), data, seed).await?;
        let style = ProgressStyle::with_template("a month of a small shop {bar:30} {pos} of {len} days, {msg}")?;
        let bar = ProgressBar::new(DAYS.unsigned_abs()).with_style(style);
        for day in first_day..first_day + DAYS {
            bar.set_message(format!("{}: {} orders", date(day), month.orders));
            month.day(day, day - first_day).await?;
            bar.inc(1);
        }
        month.until_reports_have_it(first_day).await?;
        bar.finish_and_clear();
        Ok(json!({
            "from": date(first_day), "to": date(first_day + DAYS - 1), "seed": seed, "users": MERCHANTS.len() + BUYERS.len(), "products": PRODUCTS.len(),
            "orders": month.orders, "completed": month.completed, "cancelled": month.cancelled, "failed": month.failed,
            "transactions": month.transactions, "merchantAccountId": month.merchants[0].account,
        }))
    }

    async fn open(api: Api, data: &Path, seed: u64) -> Result<Self> {
        let admin: Value = serde_json::from_str(&std::fs::read_to_string(data.join("admin.json"))?)?;
        let administrator = done(api.post("/api/v1/auth/login", None, admin).await?)?.text("accessToken")?;
        let (mut merchants, mut buyers, mut products) = (Vec::new(), Vec::new(), Vec::new());
        for (name, email) in MERCHANTS {
            merchants.push(person(&api, name, email).await?);
        }
        for name in BUYERS {
            let address: String = name.to_lowercase().chars().map(plain).collect();
            buyers.push(person(&api, name, &format!("{address}@example.com")).await?);
        }
        for product in &PRODUCTS {
            let price = json!({ "currencyCode": "BRL", "amount": product.price });
            let body = json!({ "name": product.name, "description": "", "price": price, "merchantAccountId": merchants[product.merchant].account });
            products.push(done(api.post("/api/v1/products", Some(&administrator), body).await?)?.text("id")?);
        }
        Ok(Self {
            api,
            random: StdRng::seed_from_u64(seed),
            administrator,
            merchants,
            buyers,
            products,
            to_ship: Vec::new(),
            to_deliver: Vec::new(),
            keys: 0,
            orders: 0,
            completed: 0,
            cancelled: 0,
            failed: 0,
            transactions: 0,
        })
    }

    /// One day, of which this many came before it.
    async fn day(&mut self, day: i64, number: i64) -> Result<()> {
        let weekday = weekday(day);
        clock::move_to(at_us(day, 8 * 60));
        if weekday == 0 {
            self.deliver_to_stores().await?;
        }
        if number % 10 == 0 {
            self.pay_wages().await?;
        }
        if weekday == 0 && number >= 2 {
            self.enter_late(day - 2).await?;
        }
        clock::move_to(at_us(day, 9 * 60));
        self.send_parcels(day).await?;
        let many = if weekday >= 5 { ORDERS_ON_WEEKENDS } else { ORDERS };
        let mut minutes: Vec<i64> = (0..self.random.random_range(many)).map(|_| self.random.random_range(9 * 60 + 10..21 * 60)).collect();
        minutes.sort_unstable();
        for minute in minutes {
            clock::move_to(at_us(day, minute));
            self.order(day).await?;
        }
        clock::move_to(at_us(day, 21 * 60 + 30));
        self.take_back().await?;
        if weekday == 4 {
            self.settle_the_week().await?;
        }
        if number == 12 {
            self.correct_a_mistake().await?;
        }
        Ok(())
    }

    async fn deliver_to_stores(&mut self) -> Result<()> {
        for (product, of) in self.products.clone().iter().zip(&PRODUCTS) {
            for store in STORES {
                let body = json!({ "storeId": store, "quantity": of.delivered, "externalId": self.key("delivery") });
                done(self.api.post(&format!("/api/v1/inventory/{product}/stock"), Some(&self.administrator), body).await?)?;
            }
        }
        Ok(())
    }

    /// Everybody gets money, some more than they spend, and some less.
    async fn pay_wages(&mut self) -> Result<()> {
        for buyer in 0..self.buyers.len() {
            let amount = self.random.random_range(600..1_200) + if buyer % 4 == 0 { 0 } else { 700 };
            let body = json!({
                "type": "DEPOSIT", "destinationAccountId": self.buyers[buyer].account, "amount": reais(amount, 0), "description": "Wages",
            });
            self.transact(&self.administrator.clone(), body).await?;
        }
        Ok(())
    }

    /// What the stall took in on Saturday is entered on Monday.
    async fn enter_late(&mut self, saturday: i64) -> Result<()> {
        for merchant in 0..self.merchants.len() {
            let body = json!({
                "type": "DEPOSIT", "destinationAccountId": self.merchants[merchant].account, "amount": reais(self.random.random_range(80..400), 50),
                "description": "Market stall", "effectiveTime": time(at_us(saturday, 15 * 60)),
            });
            self.transact(&self.administrator.clone(), body).await?;
        }
        Ok(())
    }

    async fn order(&mut self, day: i64) -> Result<()> {
        let buyer = self.random.random_range(0..self.buyers.len());
        let mut chosen: Vec<usize> = Vec::new();
        for _ in 0..self.random.random_range(1..=3) {
            let places: Vec<usize> = (0..PRODUCTS.len()).filter(|place| !chosen.contains(place)).collect();
            let place = places.choose_weighted(&mut self.random, |place| PRODUCTS[*place].weight)?;
            chosen.push(*place);
        }
        let mut items = Vec::new();
        for place in chosen {
            items.push(json!({ "productId": self.products[place], "quantity": self.random.random_range(1..=3) }));
        }
        let body = json!({
            "externalId": self.key("cart"), "items": items, "payment": { "method": "ACCOUNT", "accountId": self.buyers[buyer].account },
        });
        let token = self.buyers[buyer].token.clone();
        let order = done(self.api.json(Method::POST, "/api/v1/orders", Some(&token), &[("prefer", "wait=30")], Some(body)).await?)?;
        self.orders += 1;
        if order.body["status"] == "COMPLETED" {
            self.completed += 1;
            self.to_ship.push(Order { id: order.text("id")?, buyer, day });
        } else {
            ensure!(order.body["status"] == "FAILED", "{order:?}");
            self.failed += 1;
        }
        Ok(())
    }

    /// Yesterday's orders are sent, most of them, and those of two days before arrive.
    async fn send_parcels(&mut self, day: i64) -> Result<()> {
        let (arriving, later) = std::mem::take(&mut self.to_deliver).into_iter().partition(|order: &Order| order.day + 3 <= day);
        self.to_deliver = later;
        for order in &arriving as &Vec<Order> {
            self.set_status(order, "DELIVERED").await?;
        }
        for order in std::mem::take(&mut self.to_ship) {
            if order.day + 4 < day || self.random.random_bool(0.85) {
                self.set_status(&order, "SHIPPED").await?;
                self.to_deliver.push(order);
            } else {
                self.to_ship.push(order);
            }
        }
        Ok(())
    }

    async fn set_status(&self, order: &Order, status: &str) -> Result<()> {
        let path = format!("/api/v1/orders/{}/status", order.id);
        done(self.api.json(Method::PUT, &path, Some(&self.administrator), &[], Some(json!({ "status": status }))).await?).map(|_| ())
    }

    /// Some change their minds before the parcel is sent: they get their money back.
    async fn take_back(&mut self) -> Result<()> {
        for order in std::mem::take(&mut self.to_ship) {
            if self.random.random_bool(0.06) {
                let (path, token) = (format!("/api/v1/orders/{}", order.id), self.buyers[order.buyer].token.clone());
                done(self.api.json(Method::DELETE, &path, Some(&token), &[], None).await?)?;
                self.until(&path, &token, "CANCELLED").await?;
                self.cancelled += 1;
            } else {
                self.to_ship.push(order);
            }
        }
        Ok(())
    }

    async fn until(&self, path: &str, token: &str, status: &str) -> Result<()> {
        for _ in 0..1_000 {
            if self.api.get(path, Some(token)).await?.body["status"] == status {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        anyhow::bail!("{path} does not become {status}")
    }

    /// On Fridays the pottery pays the roastery for the shelf, and both bring money to the bank.
    async fn settle_the_week(&mut self) -> Result<()> {
        let rent = json!({
            "type": "TRANSFER", "sourceAccountId": self.merchants[1].account, "destinationAccountId": self.merchants[0].account,
            "amount": reais(60, 0), "description": "Shelf, one week",
        });
        self.transact(&self.merchants[1].token.clone(), rent).await?;
        for merchant in 0..self.merchants.len() {
            let body = json!({ "type": "WITHDRAWAL", "sourceAccountId": self.merchants[merchant].account, "amount": reais(500, 0), "description": "To the bank" });
            self.transact(&self.merchants[merchant].token.clone(), body).await?;
        }
        Ok(())
    }

    /// Something was entered twice, and is reversed.
    async fn correct_a_mistake(&mut self) -> Result<()> {
        let body = json!({
            "type": "DEPOSIT", "destinationAccountId": self.merchants[0].account, "amount": reais(150, 0), "description": "Market stall, entered twice",
        });
        let id = self.transact(&self.administrator.clone(), body).await?.text("id")?;
        let body = json!({ "externalId": self.key("reversal") });
        done(self.api.post(&format!("/api/v1/transactions/{id}:reverse"), Some(&self.administrator), body).await?)?;
        self.transactions += 1;
        Ok(())
    }

    /// A transaction that may be refused, as where an account has too little.
    async fn transact(&mut self, token: &str, mut body: Value) -> Result<Answer> {
        body["externalId"] = json!(self.key("entry"));
        self.transactions += 1;
        done(self.api.transact(token, body).await?)
    }

    /// Until the read side has every order.
    async fn until_reports_have_it(&self, first_day: i64) -> Result<()> {
        let path = format!("/api/v1/orders/analytics?from={}&to={}", date(first_day), date(first_day + DAYS - 1));
        for _ in 0..1_000 {
            let answer = done(self.api.get(&path, Some(&self.administrator)).await?)?;
            let days = answer.body["days"].as_array().context("days")?;
            let sum = |name: &str| days.iter().filter_map(|day| day[name].as_u64()).sum::<u64>();
            let told = [sum("orders"), sum("pending"), sum("cancelled"), sum("failed"), sum("shipped")];
            let there = [self.orders, 0, self.cancelled, self.failed, u32::try_from(self.to_deliver.len())?];
            if told == there.map(u64::from) {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        anyhow::bail!("reports do not come to have every order")
    }

    fn key(&mut self, what: &str) -> String {
        self.keys += 1;
        format!("{what}-{}", self.keys)
    }
}

async fn person(api: &Api, name: &str, email: &str) -> Result<Person> {
    done(api.post("/api/v1/users", None, json!({ "name": name, "email": email, "password": PASSWORD })).await?)?;
    let token = done(api.post("/api/v1/auth/login", None, json!({ "email": email, "password": PASSWORD })).await?)?.text("accessToken")?;
    let account = done(api.post("/api/v1/accounts", Some(&token), json!({ "currencyCode": "BRL", "displayName": name })).await?)?.text("id")?;
    Ok(Person { token, account })
}

/// The letter without its accent, as far as these names have one.
const fn plain(letter: char) -> char {
    match letter {
        'á' | 'ã' => 'a',
        'ê' => 'e',
        other => other,
    }
}

fn reais(whole: i64, cents: i64) -> Value {
    json!({ "currencyCode": "BRL", "amount": format!("{whole}.{cents:02}") })
}

/// What was asked for was done.
fn done(answer: Answer) -> Result<Answer> {
    ensure!((200..300).contains(&answer.status), "{} {}", answer.status, answer.body);
    Ok(answer)
}
