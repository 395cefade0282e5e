//! `make demo`: fills a data folder of `lastro up` with a month of a small shop's life, in seconds. Everything is written by the services themselves, in this
//! process, and asked for over their REST API; only the clock by which things happen is moved along meanwhile. So the ledger, the sagas and the reports are
//! what they would be, had somebody waited for a month.
#![allow(clippy::print_stdout, reason = "it tells what it made, and what to ask")]

mod month;
mod shop;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use lastro::Begun;
use lastro_mesh::clock;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::month::{DAYS, Month};

/// What is kept in the folder beside the databases: that it is whole, and what there is to ask about.
const SUMMARY: &str = "demo.json";
/// Sao Paulo, in whose days reports are made unless something else is asked for, has been three hours behind UTC since 2019.
const BEHIND_UTC_HOURS: i64 = 3;
/// Settings that a demo has values of its own for.
const SET_HERE: [&str; 2] = ["LASTRO_DATA", "LASTRO_LOG"];
const DAY_US: i64 = 86_400_000_000;

/// Fill a folder with a month of a small shop's life, for `lastro up --data`.
#[derive(Parser)]
#[command(name = "lastro-demo")]
struct Args {
    /// The folder to make. Where it is there already, and is a demo, it stays as it is.
    #[arg(long, default_value = "demo-data", value_name = "DIR")]
    data: PathBuf,
    /// The same number makes the same month: who buys what, and when.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let others: Vec<String> =
        lastro::variables_of_up().into_iter().filter(|name| !SET_HERE.contains(&name.as_str()) && std::env::var_os(name).is_some()).collect();
    ensure!(others.is_empty(), "a demo is an embedded Lastro with its default settings: unset {}", others.join(", "));
    let summary = match std::fs::read_to_string(args.data.join(SUMMARY)) {
        Ok(text) => {
            println!(
                "{} has a shop already; it stays as it is. To have another one made, delete the folder or give another --data.",
                args.data.display()
            );
            serde_json::from_str(&text).with_context(|| format!("{} cannot be read", args.data.join(SUMMARY).display()))?
        }
        Err(_) => fill(&args).await?,
    };
    println!("{}", questions(&summary, &args.data.display().to_string()));
    Ok(())
}

/// Makes the folder, whole or not at all.
async fn fill(args: &Args) -> Result<Value> {
    let is_free = match std::fs::read_dir(&args.data) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound && !args.data.is_symlink(),
    };
    ensure!(is_free, "{} is there, and was not made by lastro-demo: give another folder with --data", args.data.display());
    let name = args.data.file_name().context("--data must name a folder")?.to_string_lossy().into_owned();
    let parent = args.data.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).with_context(|| format!("{} cannot be made", parent.display()))?;
    // It goes when this ends before it is full.
    let unfinished = tempfile::Builder::new().prefix(&format!(".{name}-unfinished-")).tempdir_in(parent)?;

    let begun_at = Instant::now();
    // It begins on a Monday, so that the same number makes the same month whatever the day is on which it is made.
    let today = (clock::now_us() - BEHIND_UTC_HOURS * 3_600_000_000).div_euclid(DAY_US);
    let first_day = today - DAYS - month::weekday(today - DAYS);
    clock::move_to(month::at_us(first_day, 7 * 60));
    let (sender, begun) = oneshot::channel::<Begun>();
    let folder = unfinished.path().to_string_lossy().into_owned();
    let serving = tokio::spawn(async move {
        let free = "127.0.0.1:0";
        let arguments = ["--data", &folder, "--rest", free, "--grpc", free, "--ops", free, "--log", "error"];
        lastro::up_within(&arguments, |begun| drop(sender.send(begun))).await
    });
    let Ok(begun) = begun.await else {
        serving.await??;
        anyhow::bail!("it ended before it served");
    };
    let rest = format!("http://{}", begun.rest);
    let wrote = tokio::select! {
        wrote = Month::write(&rest, unfinished.path(), first_day, args.seed) => wrote,
        () = begun.stop.cancelled() => Err(anyhow::anyhow!("interrupted; nothing was made")),
    };
    begun.stop.cancel();
    serving.await??;
    let mut summary = wrote?;
    summary["seconds"] = json!(begun_at.elapsed().as_secs());
    std::fs::write(unfinished.path().join(SUMMARY), format!("{summary:#}\n"))?;
    // An empty folder is no obstacle to being replaced.
    std::fs::rename(unfinished.path(), &args.data).with_context(|| format!("{} cannot be made", args.data.display()))?;
    let _ = unfinished.keep();
    Ok(summary)
}

/// What there is, and three questions to paste.
fn questions(summary: &Value, data: &str) -> String {
    let text = |name: &str| summary[name].as_str().unwrap_or_default();
    let number = |name: &str| summary[name].as_i64().unwrap_or_default();
    let (from, to, account) = (text("from"), text("to"), text("merchantAccountId"));
    format!(
        r#"
A small shop from {from} to {to}: {users} users, {products} products, {orders} orders ({completed} completed, {cancelled} of them
cancelled later, {failed} failed) and {transactions} other transactions. It is in {data}, and took {seconds} s to make.

Everybody's password is "{password}"; the administrator's is in {data}/admin.json.
It is served by:  lastro up --data {data}

Three questions, to paste into another terminal:

  API=http://127.0.0.1:8080/api/v1 JSON='content-type: application/json'
  token() {{ curl -s $API/auth/login -H "$JSON" -d "$1" | python3 -c "import sys, json; print(json.load(sys.stdin)['accessToken'])"; }}
  ADMIN=$(token '@{data}/admin.json')
  MERCHANT=$(token '{{"email":"{merchant}","password":"{password}"}}')

  # Which products sold best, and what did they bring in?
  curl -s "$API/orders/analytics?from={from}&to={to}" -H "authorization: Bearer $ADMIN" |
    python3 -c "import sys, json; [print(p['quantity'], p['name'], p['revenue']['amount']) for p in json.load(sys.stdin)['topProducts']]"

  # What came back to the roastery, and what was given back for it?
  curl -s "$API/reports/sales?accountId={account}&from={from}&to={to}" -H "authorization: Bearer $MERCHANT" -H 'accept: text/csv' |
    awk -F, 'NR == 1 || $7 > 0' | head -6

  # Who ordered coffee and mint tea together, last? Accents and case do not matter.
  curl -s "$API/orders/search?q=CAFE%20hortela&pageSize=5" -H "authorization: Bearer $ADMIN" |
    python3 -c "import sys, json; [print(o['createTime'][:10], o['status'], o['totalAmount']['amount'], o['externalId']) for o in json.load(sys.stdin)['orders']]"
"#,
        users = number("users"),
        products = number("products"),
        orders = number("orders"),
        completed = number("completed"),
        cancelled = number("cancelled"),
        failed = number("failed"),
        transactions = number("transactions"),
        seconds = number("seconds"),
        password = shop::PASSWORD,
        merchant = shop::MERCHANTS[0].1,
    )
}
