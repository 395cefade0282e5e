//! Faults under load. Ignored in a plain run: `make test-faults`. Rounds by LASTRO_FAULT_ROUNDS.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lastro_money::Currency;
use lastro_tests::client::Someone;
use lastro_tests::{Answer, Api, Front, Postgres, Redis, Server, run};
use libtest_mimic::Trial;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::ledger::Ledger;
use crate::{block_on, failed};

pub fn trials() -> Vec<Trial> {
    let fault = |name: &str, test: fn() -> Result<()>| Trial::test(format!("faults::{name}"), move || failed(test())).with_ignored_flag(true);
    vec![
        fault("kill_nine_embedded", || block_on(kill_nine(None))),
        fault("kill_nine_postgres", || Postgres::start().and_then(|postgres| block_on(kill_nine(Some(postgres))))),
        fault("postgres_stopped_under_load", || block_on(postgres_stopped_under_load())),
        fault("a_full_disk", || block_on(a_full_disk())),
        fault("redis_stopped_and_emptied", || block_on(redis_stopped_and_emptied())),
    ]
}

fn rounds() -> u32 {
    let set = std::env::vars().find(|(key, _)| key == "LASTRO_FAULT_ROUNDS").and_then(|(_, value)| value.parse().ok());
    set.unwrap_or(20)
}

/// Somebody who moves cents to and fro between two accounts, and what was promised to it.
struct Load {
    stop: Arc<AtomicBool>,
    movers: Vec<JoinHandle<Vec<(String, Answer, Duration)>>>,
}

impl Load {
    fn start(api: &Api, someone: &Someone, accounts: &[String; 2], keys: &Arc<AtomicU64>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mover = |number: usize| {
            let (api, token, accounts, keys, stop) = (api.clone(), someone.token.clone(), accounts.clone(), keys.clone(), stop.clone());
            tokio::spawn(async move {
                let mut answers = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("k{}", keys.fetch_add(1, Ordering::Relaxed));
                    let body = Api::transfer(&key, &accounts[number % 2], &accounts[(number + 1) % 2], "0.01");
                    let started = Instant::now();
                    match api.post("/api/v1/transactions", Some(&token), body).await {
                        Ok(answer) => answers.push((key, answer, started.elapsed())),
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
                answers
            })
        };
        Self { movers: (0..16).map(mover).collect(), stop }
    }

    async fn stop(self) -> Result<Vec<(String, Answer, Duration)>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for mover in self.movers {
            all.extend(mover.await?);
        }
        Ok(all)
    }
}

pub async fn two_accounts(server: &Front) -> Result<(Someone, [String; 2])> {
    let (api, administrator) = (server.api(), server.administrator().await?);
    let someone = api.someone().await?;
    let accounts = [api.account(&someone.token, "BRL").await?, api.account(&someone.token, "BRL").await?];
    for account in &accounts {
        api.deposit(&administrator, account, "BRL", "1000.00").await?;
    }
    Ok((someone, accounts))
}

/// Everything that was accepted is there exactly once, and comes to its end.
pub async fn check_promises(api: &Api, someone: &Someone, accounts: &[String; 2], promised: &[(String, String)]) -> Result<()> {
    for (key, id) in promised {
        let since = Instant::now();
        loop {
            let found = api.get(&format!("/api/v1/transactions/{id}"), Some(&someone.token)).await?;
            // Right after a heal a breaker may still be open for a while; anything else than "busy" is an answer.
            if found.status != 503 {
                anyhow::ensure!(found.status == 200, "{id} was accepted and is gone: {found:?}");
                anyhow::ensure!(found.body["externalId"] == Value::String(key.clone()), "{found:?}");
                if ["COMPLETED", "REJECTED"].contains(&found.body["state"].as_str().context("a state")?) {
                    break;
                }
            }
            anyhow::ensure!(since.elapsed() < Duration::from_secs(15), "{id} does not come to its end");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let brl = Currency::from_code("BRL").context("a currency")?;
    let mut total = 0;
    for account in accounts {
        total += lastro_money::parse(&api.posted(&someone.token, account).await?, brl)?.get();
    }
    anyhow::ensure!(total == 200_000, "money was made or lost: {total} cents are not 2000.00");
    Ok(())
}

async fn kill_nine(postgres: Option<Postgres>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let url = postgres.as_ref().map(Postgres::url);
    let flags: Vec<&str> = url.iter().flat_map(|url| ["--database-url", url.as_str()]).collect();
    let mut server = Server::start(&folder.path().join("data"), &flags)?;
    let (someone, accounts) = two_accounts(&server.front()).await?;
    let keys = Arc::new(AtomicU64::new(0));
    let (mut promised_in_all, rounds) = (0, rounds());
    for round in 0..rounds {
        let load = Load::start(&server.api(), &someone, &accounts, &keys);
        tokio::time::sleep(Duration::from_millis(300 + u64::from(round) * 37 % 400)).await;
        server.kill();
        let answers = load.stop().await?;
        server = server.start_again(&flags)?;
        let accepted = answers.iter().filter(|(_, answer, _)| [200, 201, 202].contains(&answer.status));
        let promised: Vec<(String, String)> = accepted.map(|(key, answer, _)| Ok((key.clone(), answer.text("id")?))).collect::<Result<_>>()?;
        anyhow::ensure!(!promised.is_empty(), "the load must have been accepted before the kill");
        check_promises(&server.api(), &someone, &accounts, &promised).await?;
        Ledger::open(url.as_deref(), &server.data).await?.check().await?;
        promised_in_all += promised.len();
    }
    Ledger::open(url.as_deref(), &server.data).await?.check_chains(2000).await?;
    eprintln!("killed {rounds} times under load; {promised_in_all} accepted transfers, each there exactly once; the ledger adds up");
    Ok(())
}

async fn postgres_stopped_under_load() -> Result<()> {
    let (folder, postgres) = (tempfile::tempdir()?, Postgres::start()?);
    let url = postgres.url();
    let server = Server::start(&folder.path().join("data"), &["--database-url", &url])?;
    let (someone, accounts) = two_accounts(&server.front()).await?;
    let api = server.api();
    let load = Load::start(&api, &someone, &accounts, &Arc::new(AtomicU64::new(0)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    postgres.stop("fast")?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    anyhow::ensure!(api.get("/readyz", None).await?.status == 503, "without its database it is not ready");
    anyhow::ensure!(api.get("/livez", None).await?.status == 200, "but alive");
    tokio::time::sleep(Duration::from_secs(5)).await;
    postgres.resume()?;
    let since = Instant::now();
    while api.get("/readyz", None).await?.status != 200 {
        anyhow::ensure!(since.elapsed() < Duration::from_secs(15), "it does not heal");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let answers = load.stop().await?;
    let (mut promised, mut refused, mut slowest) = (Vec::new(), 0, Duration::ZERO);
    for (key, answer, elapsed) in &answers {
        slowest = slowest.max(*elapsed);
        match answer.status {
            200..=202 => promised.push((key.clone(), answer.text("id")?)),
            503 => {
                refused += 1;
                anyhow::ensure!(answer.body["reason"] == "UNAVAILABLE" && !answer.header("retry-after").is_empty(), "{answer:?}");
            }
            _ => anyhow::bail!("neither accepted nor UNAVAILABLE: {answer:?}"),
        }
    }
    anyhow::ensure!(refused > 0, "the stop must have been felt");
    anyhow::ensure!(slowest < Duration::from_secs(6), "an answer took {slowest:?}");
    check_promises(&server.api(), &someone, &accounts, &promised).await?;
    Ledger::open(Some(&url), &server.data).await?.check().await?;
    eprintln!("PostgreSQL away for 10 s: {} accepted, {refused} refused with UNAVAILABLE, slowest answer {slowest:?}; nothing lost", promised.len());
    Ok(())
}

/// On SQLite, in a folder of its own that is as large as we say.
async fn a_full_disk() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mount = |options: &str| run(std::process::Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder.path()));
    if let Err(error) = mount("size=6m") {
        eprintln!("skipped: a full disk cannot be made here: {error:#}");
        return Ok(());
    }
    let outcome = fill_and_free(folder.path(), mount).await;
    run(std::process::Command::new("umount").arg("--lazy").arg(folder.path()))?;
    outcome
}

async fn fill_and_free(folder: &std::path::Path, mount: impl Fn(&str) -> Result<String>) -> Result<()> {
    let server = Server::start(&folder.join("data"), &[])?;
    let (someone, accounts) = two_accounts(&server.front()).await?;
    let api = server.api();
    let (mut promised, mut refused) = (Vec::new(), 0);
    let large: serde_json::Map<String, Value> = (0..50).map(|number| (format!("key {number}"), Value::String("x".repeat(300)))).collect();
    for number in 0..200 {
        let key = format!("full {number}");
        let mut body = Api::transfer(&key, &accounts[0], &accounts[1], "0.01");
        body["metadata"] = Value::Object(large.clone());
        let answer = api.transact(&someone.token, body).await?;
        match answer.status {
            200..=202 => promised.push((key, answer.text("id")?)),
            503 if !answer.header("retry-after").is_empty() => refused += 1,
            _ => anyhow::bail!("neither accepted nor UNAVAILABLE: {answer:?}"),
        }
        if refused == 3 {
            break;
        }
    }
    anyhow::ensure!(refused == 3 && !promised.is_empty(), "{} accepted, {refused} refused: the disk must have become full", promised.len());
    mount("remount,size=60m")?;
    let since = Instant::now();
    loop {
        let answer = api.transact(&someone.token, Api::transfer("room again", &accounts[0], &accounts[1], "0.01")).await?;
        if answer.status < 300 {
            promised.push(("room again".to_owned(), answer.text("id")?));
            break;
        }
        anyhow::ensure!(answer.status == 503 && since.elapsed() < Duration::from_secs(15), "it does not heal: {answer:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    check_promises(&api, &someone, &accounts, &promised).await?;
    Ledger::open(None, &server.data).await?.check().await?;
    eprintln!("a full disk: {} accepted, {refused} refused with UNAVAILABLE; with room again it healed within {:?}", promised.len(), since.elapsed());
    Ok(())
}

async fn redis_stopped_and_emptied() -> Result<()> {
    let (folder, postgres, mut redis) = (tempfile::tempdir()?, Postgres::start()?, Redis::start()?);
    let server = Server::start(&folder.path().join("data"), &["--database-url", &postgres.url(), "--redis-url", &redis.url()])?;
    let (someone, accounts) = two_accounts(&server.front()).await?;
    let api = server.api();
    redis.lose_everything()?;
    let transfer = api.transact(&someone.token, Api::transfer("without redis", &accounts[0], &accounts[1], "1")).await?;
    anyhow::ensure!(transfer.status == 201, "transfers go on: {transfer:?}");
    // News while the bus is away: a session that ends is dead everywhere within 3 s all the same.
    let other = api.someone().await?;
    api.post("/api/v1/auth/logout", Some(&other.token), serde_json::json!({})).await?;
    let since = Instant::now();
    while api.get("/api/v1/accounts", Some(&other.token)).await?.status != 401 {
        anyhow::ensure!(since.elapsed() < Duration::from_secs(3), "the session outlives its end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    redis.resume()?;
    // Consumers end where they should: every user is known as an owner.
    let ledger = Ledger::open(Some(&postgres.url()), &server.data).await?;
    let since = Instant::now();
    while ledger.count("SELECT count(*) AS count FROM owners").await? < 3 {
        anyhow::ensure!(since.elapsed() < Duration::from_secs(20), "events that were stored while redis was away do not arrive");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::ensure!(
        ledger.count("SELECT count(*) AS count FROM dead_events").await? == 0
            && ledger.count("SELECT count(*) AS count FROM inbox_parked").await? == 0
    );
    eprintln!("Redis stopped and emptied: transfers went on, every consumer ended where it should");
    Ok(())
}
