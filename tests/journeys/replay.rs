//! `lastro replay reports` and `lastro verify reports`, while everything runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lastro_database::{Database, execute};
use lastro_tests::{Api, Postgres, Redis, Server};
use libtest_mimic::Trial;
use reqwest::Method;
use serde_json::json;
use tokio::time::sleep;

use crate::cli::lastro;
use crate::reports::Bank;
use crate::{World, block_on, failed};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("replay::days_are_made_anew_in_another_time_zone", || failed(block_on(days_are_made_anew_in_another_time_zone()))),
        Trial::test("replay::a_stuck_projection_is_told_and_changes_no_readiness", || {
            failed(block_on(a_stuck_projection_is_told_and_changes_no_readiness()))
        }),
        Trial::test("replay::who_reads_the_event_store_is_alive", || failed(block_on(who_reads_the_event_store_is_alive()))),
        Trial::test("replay::what_differs_from_the_ledger_is_found", || failed(block_on(what_differs_from_the_ledger_is_found()))),
    ]
}

/// Runs a command on the databases of a world: whether it succeeded, and what it printed.
fn on_databases(world: &World, arguments: &[&str]) -> Result<(bool, String)> {
    let place = match &world.postgres {
        Some(url) => ["--database-url".to_owned(), url.clone()],
        None => ["--data".to_owned(), world.data.display().to_string()],
    };
    run([arguments, &[&place[0], &place[1]]].concat())
}

fn run(arguments: Vec<&str>) -> Result<(bool, String)> {
    tokio::task::block_in_place(|| {
        let (output, text) = lastro(&arguments)?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned() + &text))
    })
}

/// Only one replay at a time, and none while somebody pages through tables or compares them: whoever does begins again after an exchange.
pub static REPLAYS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

pub async fn reports_are_made_anew_while_they_are_read(world: &World) -> Result<()> {
    let bank = Arc::new(Bank::open(world).await?);
    let written = bank.deposit("3", Some("2026-01-10T12:00:00Z")).await?;
    let query = "from=2026-01-09&to=2026-01-11";
    let (before, _) = bank.days(query, &written).await?;
    let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let reader = tokio::spawn({
        let (bank, stop, reads) = (bank.clone(), stop.clone(), reads.clone());
        async move {
            let mut deposits = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                // Whoever has written sees it, whichever tables there are just then.
                let written = bank.deposit("1", Some("2026-01-11T12:00:00Z")).await?;
                deposits += 1;
                let (days, _) = bank.days("from=2026-01-11&to=2026-01-11", &written).await?;
                ensure!(days[0][2] == format!("{deposits}.00"), "{deposits} deposits of 1.00 are seen as {days:?}");
                let path = format!("/api/v1/reports/daily-balances?accountId={}&from=2026-01-10&to=2026-01-10", bank.account);
                let cached = bank.api.json(Method::GET, &path, Some(&bank.owner.token), &[], None).await?;
                ensure!(cached.status == 200 && cached.body["days"][0]["closing"]["amount"] == "3.00", "{cached:?}");
                reads.fetch_add(2, Ordering::Relaxed);
            }
            anyhow::Ok(deposits)
        }
    });
    let turn = REPLAYS.lock().await;
    for _ in 0..2 {
        let (done, said) = on_databases(world, &["replay", "reports"])?;
        ensure!(done && said.contains("reports is made anew from"), "{said}");
    }
    drop(turn);
    stop.store(true, Ordering::Relaxed);
    let deposits = reader.await??;
    ensure!(reads.load(Ordering::Relaxed) > 0, "it was read meanwhile");
    let written = bank.deposit("1", Some("2026-01-12T12:00:00Z")).await?;
    let (after, _) = bank.days(query, &written).await?;
    assert_eq!((&after[..2], after[2][2].as_str()), (&before[..2], format!("{deposits}.00").as_str()));
    Ok(())
}

pub async fn reports_are_what_the_ledger_has(world: &World) -> Result<()> {
    let bank = Bank::open(world).await?;
    let written = bank.deposit("5", None).await?;
    bank.days("", &written).await?;
    let _turn = REPLAYS.lock().await;
    let (done, said) = on_databases(world, &["verify", "reports"])?;
    ensure!(done && said.contains("reports are what the ledger has"), "{said}");
    Ok(())
}

/// Of a `lastro up` of its own, on SQLite.
async fn days_are_made_anew_in_another_time_zone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let place = data.display().to_string();
    let mut server = Server::start(&data, &[])?;
    let bank = Bank::at(&server.front()).await?;
    // In São Paulo it is the day before, in Tokyo the day after.
    let written = bank.deposit("1", Some("2026-01-10T01:00:00Z")).await?;
    let written_later = bank.deposit("2", Some("2026-01-10T16:00:00Z")).await?;
    let query = "from=2026-01-09&to=2026-01-11";
    let credits = |days: &[[String; 5]]| days.iter().map(|day| day[2].clone()).collect::<Vec<_>>();
    assert_eq!(credits(&bank.days(query, &written_later).await?.0), ["1.00", "2.00", "0.00"]);
    let (done, said) = run(vec!["replay", "reports", "--data", &place, "--time-zone", "Asia/Tokio"])?;
    ensure!(!done && said.contains("must be the IANA name of a time zone"), "{said}");
    let (done, said) = run(vec!["replay", "reports", "--data", &place, "--time-zone", "Asia/Tokyo"])?;
    ensure!(done, "{said}");
    let since = Instant::now();
    while bank.days(query, &written).await?.1.body["timeZone"] != "Asia/Tokyo" {
        ensure!(since.elapsed() < Duration::from_secs(10), "the process goes on with the new days");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(credits(&bank.days(query, &written).await?.0), ["0.00", "1.00", "2.00"]);
    let written = bank.deposit("4", Some("2026-01-10T15:00:00Z")).await?;
    assert_eq!(credits(&bank.days(query, &written).await?.0), ["0.00", "1.00", "6.00"], "what comes later counts in the new time zone too");
    let (done, said) = run(vec!["verify", "reports", "--data", &place])?;
    ensure!(done, "{said}");
    let left: Vec<_> = std::fs::read_dir(&data)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    ensure!(!left.iter().any(|name| name.starts_with("reports.replay.db")), "{left:?}");
    server.terminate()?;
    let refused = Server::start(&data, &[]).err().context("the time zone of the days is another one")?;
    ensure!(format!("{refused:#}").contains("--time-zone Asia/Tokyo"), "{refused:#}");
    let server = Server::start(&data, &["--time-zone", "Asia/Tokyo"])?;
    let days = server.api().get(&format!("/api/v1/reports/daily-balances?accountId={}&{query}", bank.account), Some(&bank.owner.token)).await?;
    assert_eq!(days.body["days"][2]["closing"]["amount"], json!("7.00"), "{days:?}");
    Ok(())
}

/// The projection cannot be written; the rest goes on, and readiness tells.
async fn a_stuck_projection_is_told_and_changes_no_readiness() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let server = Server::start(&data, &[])?;
    let bank = Bank::at(&server.front()).await?;
    let written = bank.deposit("10", None).await?;
    bank.days("", &written).await?;
    let ready = async || Api::new(&format!("http://{}", server.front().ops)).get("/readyz", None).await;
    assert_eq!((ready().await?.status, &ready().await?.body["degraded"]), (200, &json!([])));
    let reports = Database::open_sqlite(&data.join("reports.db")).await?;
    execute(reports.writer(), "ALTER TABLE account_heads RENAME TO account_heads_away", []).await?;
    bank.deposit("1", None).await?;
    let (since, stuck) = (Instant::now(), json!(["reports: events of transactions (stuck)"]));
    loop {
        let told = ready().await?;
        assert_eq!(told.status, 200, "{told:?}");
        if told.body["degraded"] == stuck {
            break;
        }
        ensure!(since.elapsed() < Duration::from_secs(30), "{told:?}");
        sleep(Duration::from_millis(200)).await;
    }
    let written = bank.deposit("1", None).await?;
    execute(reports.writer(), "ALTER TABLE account_heads_away RENAME TO account_heads", []).await?;
    while ready().await?.body["degraded"] == stuck {
        ensure!(since.elapsed() < Duration::from_secs(45), "it goes on where it can");
        sleep(Duration::from_millis(200)).await;
    }
    let (days, _) = bank.days("", &written).await?;
    assert_eq!(days[29][4], "12.00", "nothing is lost");
    Ok(())
}

/// Redis is away for longer than a consumer may be silent. Consumers read the event store meanwhile: none of them is stuck.
async fn who_reads_the_event_store_is_alive() -> Result<()> {
    let (postgres, mut redis) = (Postgres::start()?, Redis::start()?);
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("data"), &["--database-url", &postgres.url(), "--redis-url", &redis.url()])?;
    let bank = Bank::at(&server.front()).await?;
    let written = bank.deposit("10", None).await?;
    bank.days("", &written).await?;
    redis.stop();
    let ops = Api::new(&format!("http://{}", server.front().ops));
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(14) {
        let told = ops.get("/readyz", None).await?;
        ensure!(!told.body["degraded"].to_string().contains("stuck"), "{told:?}");
        sleep(Duration::from_millis(200)).await;
    }
    let written = bank.deposit("2", None).await?;
    let (days, _) = bank.days("", &written).await?;
    assert_eq!(days[29][4], "12.00", "what is written meanwhile is read");
    Ok(())
}

async fn what_differs_from_the_ledger_is_found() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let place = data.display().to_string();
    let server = Server::start(&data, &[])?;
    let bank = Bank::at(&server.front()).await?;
    let written = bank.deposit("10", Some("2026-01-10T12:00:00Z")).await?;
    bank.days("", &written).await?;
    let verify = || run(vec!["verify", "reports", "--data", &place]);
    let reports = Database::open_sqlite(&data.join("reports.db")).await?;
    for (sql, back, said) in [
        (
            "UPDATE daily_balances SET credits_rest = credits_rest + 1 WHERE credits_rest = 1000",
            "UPDATE daily_balances SET credits_rest = credits_rest - 1 WHERE credits_rest = 1001",
            "2026-01-10: credits and debits are (1001, 0) here, and (1000, 0) by its postings",
        ),
        ("UPDATE entries SET amount = amount + 1 WHERE amount = 1000", "UPDATE entries SET amount = 1000 WHERE amount = 1001", "in the ledger"),
        ("UPDATE entries SET day = day + 1 WHERE amount = 1000", "UPDATE entries SET day = day - 1 WHERE amount = 1000", "in America/Sao_Paulo"),
        (
            "UPDATE accounts SET currency_code = 'USD' WHERE NOT is_system",
            "UPDATE accounts SET currency_code = 'BRL' WHERE NOT is_system",
            "is in USD here",
        ),
        ("UPDATE account_heads SET version = 2 WHERE balance = 1000", "UPDATE account_heads SET version = 1 WHERE balance = 1000", "in the ledger"),
    ] {
        let (done, text) = verify()?;
        ensure!(done, "{text}");
        execute(reports.writer(), sql, []).await?;
        let (done, text) = verify()?;
        ensure!(!done && text.contains(said) && text.contains(&bank.account), "{sql}: {text}");
        execute(reports.writer(), back, []).await?;
    }
    execute(reports.writer(), "UPDATE daily_balances SET credits_rest = 7", []).await?;
    let (done, text) = run(vec!["replay", "reports", "--data", &place])?;
    ensure!(done, "{text}");
    let (done, text) = verify()?;
    ensure!(done, "made anew, it is what the ledger has: {text}");
    for (arguments, said) in [
        (vec!["verify", "reports", "--data", "/nowhere"], "is not there"),
        (vec!["replay", "reports", "--data", "/nowhere"], "is not there"),
        (vec!["replay"], "reports"),
        (vec!["replay", "orders"], "unrecognized subcommand"),
    ] {
        let (done, text) = run(arguments)?;
        ensure!(!done && text.contains(said), "{text}");
    }
    Ok(())
}
