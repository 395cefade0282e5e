//! A server with users, accounts and money.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use lastro_tests::client::Someone;
use lastro_tests::{Front, Postgres, Server};
use serde_json::json;

/// Where a server keeps things.
pub enum Stores<'a> {
    Postgres(&'a Postgres),
    Embedded,
}

/// A server under measurement.
pub struct Bench {
    pub server: Server,
    /// Whose money moves.
    pub rich: Rich,
    /// From exec to ready.
    pub start: Duration,
    pub idle_memory_mb: u64,
    _folder: tempfile::TempDir,
}

/// Somebody with accounts full of money, and where they are reached.
#[derive(Clone)]
pub struct Rich {
    pub front: Front,
    pub someone: Someone,
    pub accounts: Vec<String>,
}

impl Rich {
    /// Makes so many accounts and gives each money.
    pub async fn make(front: Front, accounts: usize) -> Result<Self> {
        let (api, administrator) = (front.api(), front.administrator().await?);
        let someone = api.someone().await?;
        let mut made = Vec::with_capacity(accounts);
        while made.len() < accounts {
            let batch = (0..AT_ONCE.min(accounts - made.len())).map(|_| {
                let (api, token, administrator) = (api.clone(), someone.token.clone(), administrator.clone());
                tokio::spawn(async move {
                    let account = api.account(&token, "BRL").await?;
                    api.deposit(&administrator, &account, "BRL", "1000000.00").await?;
                    anyhow::Ok(account)
                })
            });
            let batch: Vec<_> = batch.collect();
            for account in batch {
                made.push(account.await??);
            }
        }
        Ok(Self { front, someone, accounts: made })
    }

    /// The same, reached in another way.
    pub fn at(&self, front: Front) -> Self {
        Self { front, ..self.clone() }
    }
}

/// Accounts are made by so many at once.
const AT_ONCE: usize = 64;

impl Bench {
    /// Starts a server, of another binary if one is given, and gives every account money.
    pub async fn start(stores: Stores<'_>, accounts: usize, binary: Option<&Path>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let url = match stores {
            Stores::Postgres(postgres) => Some(postgres.url()),
            Stores::Embedded => None,
        };
        let flags: Vec<&str> = url.iter().flat_map(|url| ["--database-url", url.as_str()]).collect();
        let started = Instant::now();
        let data = folder.path().join("data");
        let server = match binary {
            Some(binary) => Server::start_binary(binary, &data, &flags)?,
            None => Server::start(&data, &flags)?,
        };
        let start = started.elapsed();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let idle_memory_mb = memory_mb(server.pid(), "VmRSS")?;
        let rich = Rich::make(server.front(), accounts).await?;
        Ok(Self { server, rich, start, idle_memory_mb, _folder: folder })
    }

    /// What the server takes now.
    pub fn memory_mb(&self) -> Result<u64> {
        memory_mb(self.server.pid(), "VmRSS")
    }

    /// The most that the server has taken so far.
    pub fn peak_memory_mb(&self) -> Result<u64> {
        memory_mb(self.server.pid(), "VmHWM")
    }
}

fn memory_mb(pid: u32, what: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)).context("a line of memory")?;
    let kilobytes: u64 = line.trim_start_matches(':').trim().split(' ').next().unwrap_or_default().parse()?;
    Ok(kilobytes / 1024)
}

/// Pieces that each product has in its one store: more than any run sells.
const PIECES: i64 = 100_000_000;

/// Makes so many products with stock, of so many merchants' accounts.
pub async fn make_products(front: &Front, products: usize, merchants: usize) -> Result<Vec<String>> {
    let (rest, administrator) = (front.api(), front.administrator().await?);
    let merchant = rest.someone().await?;
    let mut accounts = Vec::with_capacity(merchants);
    for _ in 0..merchants {
        accounts.push(rest.account(&merchant.token, "BRL").await?);
    }
    println!("making {products} products …");
    let made = (0..products).map(|number| {
        let (rest, token, account) = (&rest, &administrator, &accounts[number % merchants]);
        async move {
            let price = json!({ "currencyCode": "BRL", "amount": "0.01" });
            let body = json!({ "name": format!("product {number}"), "description": "", "price": price, "merchantAccountId": account });
            let product = rest.post("/api/v1/products", Some(token), body).await?.text("id")?;
            let body = json!({ "storeId": "a", "quantity": PIECES, "externalId": format!("{product} a") });
            let stocked = rest.post(&format!("/api/v1/inventory/{product}/stock"), Some(token), body).await?;
            ensure!(stocked.status == 200, "{stocked:?}");
            Ok(product)
        }
    });
    futures_util::stream::iter(made).buffered(32).collect::<Vec<Result<String>>>().await.into_iter().collect()
}
