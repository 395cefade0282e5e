//! The read side: daily balances from the cache and from the database, and beside transfers at full speed how far behind projections are, how reads do at
//! 50 a second, and how fast everything is made anew. On the stack, whether the others notice that reports is away for a while.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use lastro_proto::reports::v1::ListDailyBalancesRequest;
use lastro_proto::reports::v1::reports_service_client::ReportsServiceClient;
use lastro_tests::server::binary;
use lastro_tests::stack::Options as StackOptions;
use lastro_tests::{Front, Postgres, Stack, run};
use reqwest::Method;
use tokio::task::JoinHandle;
use tonic::Request;
use tonic::transport::Channel;

use crate::load::{self, Kind};
use crate::orders::{self, Market};
use crate::report;
use crate::setup::{Bench, Rich};

const CONNECTIONS: usize = 4;
const FRESHNESS: &str = "x-lastro-freshness";
/// Accounts that fit into the cache of a process.
const CACHED: usize = 500;
/// Reads a second beside full load: the bar of the source documents.
const READS_PER_SECOND: u64 = 50;
/// Callers beside each other while reports goes away.
const TRANSFERRING: usize = 32;
const ORDERING: usize = 16;

/// In one process on PostgreSQL.
pub async fn measure(bench: &Bench, postgres: &Postgres, rounds: usize, span: Duration) -> Result<()> {
    let metrics = format!("http://{}/metrics", bench.rich.front.ops);
    for round in 1..=rounds {
        let alone = load::measure(&bench.rich, Kind::Transfer, 128, span).await?;
        println!("round {round}: settled transfers, 128 callers: {alone}");
        let caught_up = until_caught_up(postgres).await?;
        println!("round {round}: reports has all of it {caught_up:.1?} later");
        for (name, is_cached) in [("from the cache", true), ("from the database", false)] {
            let days = Days::make(&bench.rich, is_cached).await?;
            let calls = load::closed_loop(64, span, move |caller, number| days.clone().read(caller, number)).await?;
            println!("round {round}: daily balances over gRPC, 30 days of an account, {name}, 64 callers: {calls}");
        }
        let before = lag(&metrics, "transactions").await?;
        let reads = reads_at_a_rate(&bench.rich, span);
        let beside = load::measure(&bench.rich, Kind::Transfer, 128, span).await?;
        let (answered, refused, latency_us) = reads.await??;
        let at = |quantile: f64| Duration::from_micros(latency_us.value_at_quantile(quantile));
        println!("round {round}: settled transfers beside {READS_PER_SECOND} reads a second, 128 callers: {beside}");
        println!(
            "round {round}: daily balances over REST at {READS_PER_SECOND} a second beside them: {answered} answered, {refused} refused or lost, p50 {:.1?}, p99 {:.1?}",
            at(0.5),
            at(0.99)
        );
        let (events, p99) = lag_since(&before, &lag(&metrics, "transactions").await?);
        println!("round {round}: events applied beside them: {:.0}/s, age when applied: p99 at most {p99} s", events / span.as_secs_f64());
        until_caught_up(postgres).await?;
    }
    let said = run(Command::new(binary()?).args(["replay", "reports", "--database-url", &postgres.url()]))?;
    println!("made anew by one consumer: {}", said.lines().last().unwrap_or_default());
    Ok(())
}

/// On the stack: transfers and orders while reports runs, while both of its replicas are away for a minute, and once they are back.
pub async fn away(accounts: usize, span: Duration) -> Result<()> {
    println!("starting the stack and making {accounts} accounts …");
    let stack = Stack::start(StackOptions::default())?;
    let rich = Rich::make(stack.front(), accounts).await?;
    let market = Arc::new(Market::make(&rich).await?);
    let rich = rich.at(stack.direct());
    let writes = async |what: &str, span: Duration| {
        let transfers = load::measure(&rich, Kind::Transfer, TRANSFERRING, span);
        let (transfers, orders) = tokio::try_join!(transfers, orders::buy(&market, ORDERING, orders::PRODUCTS, span))?;
        println!("{what}: settled transfers, {TRANSFERRING} callers: {transfers}");
        println!("{what}: completed orders, {ORDERING} callers: {orders}");
        anyhow::Ok((transfers, orders))
    };
    let before = writes("reports runs", span).await?;
    for name in ["reports-1", "reports-2"] {
        stack.kill(name)?;
    }
    let away = writes("reports is away for a minute", Duration::from_secs(60)).await?;
    for name in ["reports-1", "reports-2"] {
        stack.spawn(name)?;
    }
    let back = writes("reports catches up", span).await?;
    println!("reports has all of it {:.1?} after the last call", until_caught_up(&stack.postgres).await?);
    for (when, (transfers, orders)) in [("away", &away), ("catching up", &back)] {
        report::ratio(&format!("settled transfers, reports {when} / there"), Some(transfers.per_second()), Some(before.0.per_second()));
        report::ratio(&format!("completed orders, reports {when} / there"), Some(orders.per_second()), Some(before.1.per_second()));
    }
    Ok(())
}

/// Reads of daily balances.
#[derive(Clone)]
struct Days {
    channels: Arc<[Channel]>,
    token: Arc<str>,
    accounts: Arc<[String]>,
    /// A token of freshness: what carries one is answered by the database.
    freshness: Option<Arc<str>>,
}

impl Days {
    async fn make(rich: &Rich, is_cached: bool) -> Result<Self> {
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            channels.push(rich.front.channel().await?);
        }
        let accounts: Vec<String> = rich.accounts.iter().take(CACHED).cloned().collect();
        let freshness = if is_cached { None } else { Some(freshness_of_a_write(&rich.front, &accounts[0]).await?.into()) };
        let days = Self { channels: channels.into(), token: rich.someone.token.as_str().into(), accounts: accounts.into(), freshness };
        // It waits until the write is seen; those that are measured wait for nothing.
        days.clone().read(0, 0).await?;
        Ok(days)
    }

    async fn read(self, caller: usize, number: usize) -> Result<()> {
        let account = &self.accounts[(caller * 7_919 + number) % self.accounts.len()];
        let mut request = Request::new(ListDailyBalancesRequest { account_id: Some(account.clone()), ..ListDailyBalancesRequest::default() });
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.token).parse()?);
        if let Some(freshness) = &self.freshness {
            request.metadata_mut().insert(FRESHNESS, freshness.parse()?);
        }
        let mut client = ReportsServiceClient::new(self.channels[caller % self.channels.len()].clone());
        let days = client.list_daily_balances(request).await?.into_inner().days;
        ensure!(days.len() == 30, "{} days", days.len());
        Ok(())
    }
}

async fn freshness_of_a_write(front: &Front, account: &str) -> Result<String> {
    let (api, administrator) = (front.api(), front.administrator().await?);
    let made = api.deposit(&administrator, account, "BRL", "1.00").await?;
    let token = made.header(FRESHNESS).to_owned();
    ensure!(!token.is_empty(), "a write without a token of freshness: {made:?}");
    Ok(token)
}

/// So many reads a second, whether or not those before are answered: how many were, how many were not, and how long they took.
fn reads_at_a_rate(rich: &Rich, span: Duration) -> JoinHandle<Result<(u64, u64, Histogram<u64>)>> {
    let (rich, pause) = (rich.clone(), Duration::from_millis(1_000 / READS_PER_SECOND));
    tokio::spawn(async move {
        let (api, begun) = (rich.front.api(), Instant::now());
        let mut reads = Vec::new();
        let mut ticks = tokio::time::interval(pause);
        while begun.elapsed() < span {
            ticks.tick().await;
            let path = format!("/api/v1/reports/daily-balances?accountId={}", rich.accounts[reads.len() % rich.accounts.len()]);
            let (api, token) = (api.clone(), rich.someone.token.clone());
            reads.push(tokio::spawn(async move {
                let asked = Instant::now();
                let answered = api.json(Method::GET, &path, Some(&token), &[], None).await;
                (answered.is_ok_and(|answer| answer.status == 200), asked.elapsed())
            }));
        }
        let (mut answered, mut refused, mut latency_us) = (0, 0, Histogram::new_with_bounds(1, 60_000_000, 3)?);
        for read in reads {
            let (is_answered, took) = read.await?;
            if is_answered {
                answered += 1;
            } else {
                refused += 1;
            }
            latency_us.saturating_record(took.as_micros() as u64);
        }
        Ok((answered, refused, latency_us))
    })
}

/// Waits until reports has every posting of the ledger; for how long.
async fn until_caught_up(postgres: &Postgres) -> Result<Duration> {
    let since = Instant::now();
    let open = async |name: &str| lastro_database::Database::open_postgres(&postgres.url().parse()?, name, 1).await.map_err(anyhow::Error::from);
    let (ledger, reports) = (open("lastro_transactions").await?, open("lastro_reports").await?);
    let sum = "SELECT coalesce(sum(version), 0)::bigint AS count FROM";
    loop {
        let posted = lastro_tests::reader::count(&ledger, &format!("{sum} balances")).await?;
        if lastro_tests::reader::count(&reports, &format!("{sum} account_heads")).await? >= posted {
            break;
        }
        ensure!(since.elapsed() < Duration::from_secs(300), "reports does not catch up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ledger.close().await;
    reports.close().await;
    Ok(since.elapsed())
}

/// The buckets of how old events of a topic were when they were applied: upper bounds in seconds, and how many events up to there.
pub async fn lag(metrics: &str, topic: &str) -> Result<Vec<(String, f64)>> {
    let text = reqwest::get(metrics).await?.text().await?;
    let label = format!("topic=\"{topic}\"");
    let of_topic = |line: &&str| line.starts_with("lastro_consumer_lag_seconds_bucket") && line.contains(&label) && line.contains("reports");
    let bucket = |line: &str| {
        let bound = line.split_once("le=\"")?.1.split('"').next()?.to_owned();
        Some((bound, line.rsplit(' ').next()?.parse().ok()?))
    };
    let buckets: Vec<_> = text.lines().filter(of_topic).filter_map(bucket).collect();
    ensure!(!buckets.is_empty(), "no lag of consumers among the metrics");
    Ok(buckets)
}

/// How many events there were between two looks, and the bucket in which 99 % of them are.
pub fn lag_since(before: &[(String, f64)], after: &[(String, f64)]) -> (f64, String) {
    let between: Vec<(&String, f64)> = before.iter().zip(after).map(|((_, before), (bound, after))| (bound, after - before)).collect();
    let all = between.last().map_or(0.0, |(_, count)| *count);
    let p99 = between.iter().find(|(_, count)| *count >= 0.99 * all).map_or_else(String::new, |(bound, _)| (*bound).clone());
    (all, p99)
}
