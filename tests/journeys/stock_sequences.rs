//! The stock aggregate against a model: random adjustments, reservations, confirmations, releases and expiries, with kill -9 in between; every answer and
//! every piece is compared with a small model in memory. Ignored in a plain run: `make test-stock`. LASTRO_STOCK_CASES says how many sequences,
//! LASTRO_STOCK_SEED which.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lastro_mesh::clock;
use lastro_tests::{Answer, Postgres, Server};
use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::inventory::Shop;
use crate::{block_on, failed};

const STEPS: usize = 60;
const STORES: [&str; 3] = ["a", "b", "c"];
/// How long short reservations live.
const SHORT: Duration = Duration::from_secs(1);

pub fn trials() -> Vec<Trial> {
    let trial =
        |name: &str, on_postgres: bool| Trial::test(format!("stock_sequences::{name}"), move || failed(run(on_postgres))).with_ignored_flag(true);
    vec![trial("on_sqlite", false), trial("on_postgresql", true)]
}

fn setting(name: &str) -> Option<u64> {
    std::env::vars().find(|(found, _)| found == name).and_then(|(_, value)| value.parse().ok())
}

fn run(on_postgres: bool) -> Result<()> {
    let now = u64::try_from(clock::now_us() / 1_000_000)?;
    let (seed, cases) = (setting("LASTRO_STOCK_SEED").unwrap_or(now), setting("LASTRO_STOCK_CASES").unwrap_or(6));
    eprintln!("stock on {}: LASTRO_STOCK_SEED={seed}, {cases} sequences of {STEPS} steps", if on_postgres { "PostgreSQL" } else { "SQLite" });
    let folder = tempfile::tempdir()?;
    let postgres = if on_postgres { Some(Postgres::start()?) } else { None };
    let url = postgres.as_ref().map(Postgres::url);
    let flags: Vec<String> = url.iter().flat_map(|url| ["--database-url".to_owned(), url.clone()]).collect();
    let start: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut server = Server::start(&folder.path().join("data"), &start)?;
    let mut told: BTreeMap<&str, usize> = BTreeMap::new();
    for case in 0..cases {
        let shop = block_on(Shop::open(&server.front()))?;
        let products = [shop.product.clone(), block_on(shop.another())?];
        let mut player = Player { rng: StdRng::seed_from_u64(seed + case), shop, products, model: Model::default(), keys: 0, told: BTreeMap::new() };
        for step in 0..STEPS {
            let played = if player.rng.random_range(0..20) == 0 { player.crash(&mut server, &start) } else { block_on(player.step()) };
            played.with_context(|| format!("LASTRO_STOCK_SEED={} LASTRO_STOCK_CASES=1, step {step}", seed + case))?;
        }
        block_on(player.check_streams()).with_context(|| format!("LASTRO_STOCK_SEED={} LASTRO_STOCK_CASES=1, at its end", seed + case))?;
        for (what, times) in player.told {
            *told.entry(what).or_default() += times;
        }
    }
    eprintln!("stock on {}: {told:?}", if on_postgres { "PostgreSQL" } else { "SQLite" });
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reserved,
    Confirmed,
    Released,
    Expired,
}

#[derive(Debug, Clone)]
struct Kept {
    state: State,
    /// Product, store, pieces.
    items: Vec<(usize, &'static str, i64)>,
    /// It has certainly run out after that, if it is short.
    dead_at: Option<Instant>,
}

/// On hand and reserved of each product and store, and every reservation.
#[derive(Default)]
struct Model {
    stock: BTreeMap<(usize, &'static str), (i64, i64)>,
    kept: BTreeMap<String, Kept>,
}

impl Model {
    fn available(&self, product: usize, store: &'static str) -> i64 {
        self.stock.get(&(product, store)).map_or(0, |(on_hand, reserved)| on_hand - reserved)
    }

    /// From the fullest store first, of equals by name; None where there is too little.
    fn share(&self, product: usize, store: Option<&'static str>, quantity: i64) -> Option<Vec<(usize, &'static str, i64)>> {
        let mut stores: Vec<(&'static str, i64)> =
            STORES.into_iter().filter(|one| store.is_none_or(|store| store == *one)).map(|one| (one, self.available(product, one))).collect();
        stores.sort_by_key(|(store, available)| (-available, *store));
        let (mut left, mut shares) = (quantity, Vec::new());
        for (store, available) in stores {
            let share = left.min(available);
            if share > 0 {
                shares.push((product, store, share));
                left -= share;
            }
        }
        (left == 0).then_some(shares)
    }

    fn end(&mut self, name: &str, state: State) {
        let Some(kept) = self.kept.get_mut(name) else { return };
        kept.state = state;
        for (product, store, pieces) in kept.items.clone() {
            let stock = self.stock.entry((product, store)).or_default();
            stock.1 -= pieces;
            if state == State::Confirmed {
                stock.0 -= pieces;
            }
        }
    }

    /// What has run out by now is back.
    fn expire(&mut self) {
        let dead = |kept: &Kept| kept.state == State::Reserved && kept.dead_at.is_some_and(|at| Instant::now() >= at);
        let dead: Vec<String> = self.kept.iter().filter(|(_, kept)| dead(kept)).map(|(name, _)| name.clone()).collect();
        dead.iter().for_each(|name| self.end(name, State::Expired));
    }
}

struct Player {
    rng: StdRng,
    shop: Shop,
    products: [String; 2],
    model: Model,
    keys: usize,
    told: BTreeMap<&'static str, usize>,
}

/// Something that is asked for once, and may be asked for again.
#[derive(Debug, Clone)]
enum Asked {
    Adjust { product: usize, store: &'static str, quantity: i64, key: String },
    Reserve { name: String, items: Vec<(usize, Option<&'static str>, i64)>, is_short: bool },
    Resolve { verb: &'static str, name: String },
}

impl Player {
    fn key(&mut self) -> String {
        self.keys += 1;
        format!("{} {}", self.products[0], self.keys)
    }

    fn any(&mut self) -> Asked {
        let product = self.rng.random_range(0..2);
        let store = STORES[self.rng.random_range(0..STORES.len())];
        match self.rng.random_range(0..10) {
            0..=2 => {
                let quantity = if self.rng.random_range(0..4) == 0 { -self.rng.random_range(1..20) } else { self.rng.random_range(1..20) };
                Asked::Adjust { product, store, quantity, key: self.key() }
            }
            3..=6 => {
                let items = (0..self.rng.random_range(1..=2_usize)).map(|place| {
                    let store = self.rng.random::<bool>().then(|| STORES[self.rng.random_range(0..STORES.len())]);
                    ((product + place) % 2, store, self.rng.random_range(1..12))
                });
                Asked::Reserve { items: items.collect(), name: self.key(), is_short: self.rng.random_range(0..4) == 0 }
            }
            _ => {
                let verb = if self.rng.random() { "confirm" } else { "release" };
                let names: Vec<String> = self.model.kept.keys().cloned().collect();
                let name = if names.is_empty() { "none".to_owned() } else { names[self.rng.random_range(0..names.len())].clone() };
                Asked::Resolve { verb, name }
            }
        }
    }

    async fn ask(&self, asked: &Asked) -> Result<Answer> {
        match asked {
            Asked::Adjust { product, store, quantity, key } => self.shop.adjust(&self.products[*product], store, *quantity, key).await,
            Asked::Reserve { name, items, is_short } => {
                let item = |(product, store, quantity): &(usize, Option<&str>, i64)| {
                    let mut item = json!({ "productId": self.products[*product], "quantity": quantity });
                    if let Some(store) = store {
                        item["storeId"] = json!(store);
                    }
                    item
                };
                self.shop.reserve(name, items.iter().map(item).collect(), is_short.then_some("1s")).await
            }
            Asked::Resolve { verb, name } => self.shop.resolve(verb, name).await,
        }
    }

    async fn step(&mut self) -> Result<()> {
        if self.rng.random_range(0..15) == 0 {
            tokio::time::sleep(SHORT).await;
        }
        let asked = self.any();
        let answer = self.ask(&asked).await?;
        self.judge(&asked, &answer, false)?;
        // The same again is the same, and does nothing.
        if self.rng.random_range(0..4) == 0 && answer.status < 300 {
            let again = self.ask(&asked).await?;
            let is_same = match &asked {
                Asked::Adjust { .. } => again.body == answer.body,
                Asked::Reserve { .. } => again.status == 200 && again.body["items"] == answer.body["items"],
                Asked::Resolve { .. } => again.body["items"] == answer.body["items"],
            };
            ensure!(is_same, "{asked:?}: {answer:?}, and then {again:?}");
        }
        self.compare().await
    }

    /// Something is under way when the process is killed; asked for again, it is done once.
    fn crash(&mut self, server: &mut Server, flags: &[&str]) -> Result<()> {
        *self.told.entry("crashes").or_default() += 1;
        self.model.expire();
        let (asked, pause) = (self.any(), Duration::from_micros(self.rng.random_range(0..4000)));
        block_on(async {
            let kill = async {
                tokio::time::sleep(pause).await;
                server.kill();
            };
            let (_, ()) = tokio::join!(self.ask(&asked), kill);
        });
        *server = server.start_again(flags)?;
        block_on(async {
            let since = Instant::now();
            loop {
                match self.ask(&asked).await {
                    Ok(answer) if ![502, 503, 504].contains(&answer.status) => {
                        self.judge(&asked, &answer, true)?;
                        return self.compare().await;
                    }
                    other => ensure!(since.elapsed() < Duration::from_secs(20), "{other:?}"),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    }

    /// What the model does, and whether the answer says so. After a crash a first answer may have got lost: what it made is answered.
    fn judge(&mut self, asked: &Asked, answer: &Answer, after_crash: bool) -> Result<()> {
        if after_crash && self.was_resolved_before_the_crash(asked, answer) {
            return Ok(());
        }
        self.model.expire();
        match asked {
            Asked::Adjust { product, store, quantity, .. } => {
                let is_enough = self.model.available(*product, store) + quantity >= 0;
                ensure!((answer.status == 200) == is_enough, "{asked:?}: {answer:?}");
                if is_enough {
                    self.model.stock.entry((*product, store)).or_default().0 += quantity;
                    *self.told.entry("adjusted").or_default() += 1;
                } else {
                    ensure!(answer.body["reason"] == "OUT_OF_STOCK", "{answer:?}");
                    *self.told.entry("too little to take").or_default() += 1;
                }
            }
            Asked::Reserve { name, items, is_short } => {
                let shares: Option<Vec<_>> = items.iter().map(|(product, store, quantity)| self.model.share(*product, *store, *quantity)).collect();
                let Some(shares) = shares else {
                    ensure!(answer.body["reason"] == "OUT_OF_STOCK", "{asked:?}: {answer:?}");
                    *self.told.entry("out of stock").or_default() += 1;
                    return Ok(());
                };
                let items: Vec<(usize, &'static str, i64)> = shares.into_iter().flatten().collect();
                let told = |item: &Value| (item["productId"].clone(), item["storeId"].clone(), item["quantity"].clone());
                let expected = |(product, store, pieces): &(usize, &str, i64)| (json!(self.products[*product]), json!(store), json!(pieces));
                let is_told = answer.body["items"].as_array().into_iter().flatten().map(told).eq(items.iter().map(expected));
                ensure!((answer.status == 201 || after_crash && answer.status == 200) && is_told, "expected {items:?}: {answer:?}");
                for (product, store, pieces) in &items {
                    self.model.stock.entry((*product, store)).or_default().1 += pieces;
                }
                let dead_at = is_short.then(|| Instant::now() + SHORT);
                self.model.kept.insert(name.clone(), Kept { state: State::Reserved, items, dead_at });
                *self.told.entry("reserved").or_default() += 1;
                // One that was made before the crash may have run out since.
                if answer.body["state"] == "EXPIRED" {
                    self.model.end(name, State::Expired);
                }
            }
            Asked::Resolve { verb, name } => {
                let Some(kept) = self.model.kept.get(name).cloned() else {
                    ensure!(answer.status == 404, "{answer:?}");
                    return Ok(());
                };
                let state = |state: State| match state {
                    State::Reserved => "RESERVED",
                    State::Confirmed => "CONFIRMED",
                    State::Released => "RELEASED",
                    State::Expired => "EXPIRED",
                };
                // Close to its end, only the server knows which came first.
                if kept.state == State::Reserved
                    && kept.dead_at.is_some()
                    && (answer.body["reason"] == "RESERVATION_EXPIRED" || answer.body["state"] == "EXPIRED")
                {
                    self.model.end(name, State::Expired);
                    return Ok(());
                }
                let (to, reason) = match (*verb, kept.state) {
                    ("confirm", State::Reserved) => (Some(State::Confirmed), ""),
                    ("release", State::Reserved) => (Some(State::Released), ""),
                    ("confirm", State::Confirmed) | ("release", State::Released | State::Expired) => (None, ""),
                    ("confirm", State::Released) => (None, "RESERVATION_RELEASED"),
                    ("confirm", State::Expired) => (None, "RESERVATION_EXPIRED"),
                    _ => (None, "RESERVATION_CONFIRMED"),
                };
                if reason.is_empty() {
                    let expected = state(to.unwrap_or(kept.state));
                    ensure!(answer.status == 200 && answer.body["state"] == expected, "expected {expected}: {answer:?}");
                } else {
                    ensure!(answer.status == 409 && answer.body["reason"] == reason, "expected {reason}: {answer:?}");
                }
                if let Some(to) = to {
                    self.model.end(name, to);
                    *self.told.entry(if to == State::Confirmed { "confirmed" } else { "released" }).or_default() += 1;
                }
            }
        }
        Ok(())
    }

    /// The process may have been killed after it had done what was asked for; by now the reservation would have run out.
    fn was_resolved_before_the_crash(&mut self, asked: &Asked, answer: &Answer) -> bool {
        let Asked::Resolve { verb, name } = asked else { return false };
        let to = if *verb == "confirm" { (State::Confirmed, "CONFIRMED") } else { (State::Released, "RELEASED") };
        let was_open = self.model.kept.get(name).is_some_and(|kept| kept.state == State::Reserved);
        let is_resolved = was_open && answer.status == 200 && answer.body["state"] == to.1;
        if is_resolved {
            self.model.end(name, to.0);
        }
        is_resolved
    }

    /// Every piece of every store. Where a short reservation is about to run out, a little later.
    async fn compare(&mut self) -> Result<()> {
        let since = Instant::now();
        loop {
            self.model.expire();
            let mut told = BTreeMap::new();
            for (place, product) in self.products.iter().enumerate() {
                for (store, on_hand, reserved) in self.shop.pieces(product, "").await? {
                    told.insert((place, STORES.into_iter().find(|one| *one == store).context("a store")?), (on_hand, reserved));
                }
            }
            let expected: BTreeMap<_, _> = self.model.stock.clone();
            if told == expected {
                return Ok(());
            }
            ensure!(since.elapsed() < SHORT + Duration::from_secs(2), "expected {expected:?}, and there is {told:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Each stream comes to what is there, event by event; and so does every instant of it.
    async fn check_streams(&self) -> Result<()> {
        for (place, product) in self.products.iter().enumerate() {
            for store in STORES {
                let path = format!("/api/v1/inventory/{product}/events?storeId={store}&pageSize=1000");
                let page = self.shop.api.get(&path, Some(&self.shop.administrator)).await?;
                let (mut on_hand, mut reserved) = (0, 0);
                for (number, event) in (1..).zip(page.body["events"].as_array().context("events")?) {
                    let quantity = event["quantity"].as_i64().context("a quantity")?;
                    let change = match event["type"].as_str().unwrap_or_default() {
                        "ADDED" | "RETURNED" => (quantity, 0),
                        "REMOVED" => (-quantity, 0),
                        "RESERVED" => (0, quantity),
                        "RELEASED" => (0, -quantity),
                        "COMMITTED" => (-quantity, -quantity),
                        other => anyhow::bail!("{other}"),
                    };
                    (on_hand, reserved) = (on_hand + change.0, reserved + change.1);
                    ensure!(
                        event["version"] == json!(number) && event["onHand"] == json!(on_hand) && event["reserved"] == json!(reserved),
                        "{event}"
                    );
                    ensure!(on_hand >= reserved && reserved >= 0, "{event}");
                    let at = event["recordTime"].as_str().context("a time")?;
                    let then = self.shop.pieces(product, &format!("?asOf={at}&storeId={store}")).await?;
                    // Several may have happened at that instant.
                    ensure!(then.len() == 1, "{event}: {then:?}");
                }
                let expected = self.model.stock.get(&(place, store)).copied().unwrap_or_default();
                ensure!((on_hand, reserved) == expected, "{store}: {on_hand} and {reserved}, expected {expected:?}");
            }
        }
        Ok(())
    }
}
