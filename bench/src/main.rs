//! The benchmarks: real PostgreSQL with fsync on, pgbench's TPC-B and settled transfers in turns on the same server, and what follows
//! from that as ratios. Every figure comes from one run on one machine; figures of different runs do not compare.
#![allow(clippy::print_stdout, clippy::float_arithmetic, clippy::expect_used, reason = "a report of measurements")]

mod against;
mod events;
mod everything;
mod fairness;
mod gateway;
mod inventory;
mod load;
mod order_reads;
mod orders;
mod pgbench;
mod raw;
mod report;
mod reports;
mod setup;
mod waiting;

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use lastro_tests::stack::Options as StackOptions;
use lastro_tests::{Postgres, Stack};

use load::{Calls, Kind, measure};
use setup::{Bench, Rich, Stores};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What to measure, and for how long.
#[derive(Parser)]
struct Options {
    /// Seconds to each measurement.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Rounds of pgbench and transfers in turns; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// pgbench's scale: 100,000 accounts each.
    #[arg(long, default_value_t = 128)]
    scale: u32,
    /// Accounts that transfers move money between.
    #[arg(long, default_value_t = 10_000)]
    accounts: usize,
    /// Only this part: transfers, callers, idle, reads, pages, gateway, money, inventory, orders, order-reads, reports, reports-away, waiting, fairness, events, embedded, stack, against.
    #[arg(long)]
    only: Option<String>,
    /// Another lastro, to measure beside this one in turns: transfers, reads, pages and idle latency, on the same PostgreSQL.
    #[arg(long, value_name = "PATH")]
    against: Option<std::path::PathBuf>,
    /// Orders that lists and searches are measured over.
    #[arg(long, default_value_t = 1_000_000)]
    orders: usize,
    /// Leave pgbench out; there are no ratios then.
    #[arg(long)]
    without_pgbench: bool,
}

// One thread: the other core is for what is measured.
#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> Result<()> {
    let options = Options::parse();
    let wants = |part: &str| options.only.as_deref().is_none_or(|only| only == part);
    let span = Duration::from_secs(options.seconds);
    if options.only.as_deref() == Some("reports-away") {
        return reports::away(options.accounts.min(1000), span).await;
    }
    if options.only.as_deref() == Some("stack") {
        return stack(options.rounds, span).await;
    }
    if let Some(other) = &options.against {
        return against::measure(other, wants, options.rounds, span, options.accounts).await;
    }
    let postgres = Postgres::start()?;
    if options.only.as_deref() == Some("events") {
        return events::measure(&postgres, options.rounds).await;
    }
    if !options.without_pgbench && wants("transfers") {
        println!("making pgbench's tables at scale {} …", options.scale);
        pgbench::initialise(&postgres, options.scale)?;
    }
    println!("making {} accounts …", options.accounts);
    let bench = Bench::start(Stores::Postgres(&postgres), options.accounts, None).await?;

    if wants("transfers") {
        let (mut base, mut ours) = (Vec::new(), Vec::new());
        for round in 1..=options.rounds {
            if !options.without_pgbench {
                base.push(pgbench::measure(&postgres, 128, options.seconds)?);
                println!("round {round}: pgbench TPC-B, 128 clients: {:.0}/s", base[round - 1]);
            }
            let calls = measure(&bench.rich, Kind::Transfer, 128, span).await?;
            println!("round {round}: settled transfers, 128 callers: {calls}");
            ours.push(calls);
        }
        report::ratio("settled transfers / pgbench TPC-B", report::median(ours.iter().map(Calls::per_second)), report::median(base.iter().copied()));
        println!("peak memory of lastro: {} MB", bench.peak_memory_mb()?);
    }
    if wants("callers") {
        for callers in [1, 32] {
            let base =
                if options.without_pgbench || !wants("transfers") { None } else { Some(pgbench::measure(&postgres, callers, options.seconds)?) };
            let calls = measure(&bench.rich, Kind::Transfer, callers, span).await?;
            println!("settled transfers, {callers} callers: {calls}");
            report::ratio(&format!("settled transfers / pgbench TPC-B, {callers} callers"), Some(calls.per_second()), base);
        }
    }
    if wants("idle") {
        let calls = load::one_at_a_time(&bench.rich, Kind::Transfer, 300, Duration::from_millis(20)).await?;
        println!("settling one transfer on an idle system: {calls}");
    }
    if wants("reads") {
        for kind in [Kind::GetOverGrpc, Kind::GetOverRest] {
            let calls = measure(&bench.rich, kind, 64, span).await?;
            println!("{}, 64 callers: {calls}", kind.name());
        }
    }
    if wants("pages") {
        let rich = load::with_histories(&bench.rich, 400).await?;
        for kind in [Kind::PageOverGrpc, Kind::PageOverRest] {
            let calls = measure(&rich, kind, 64, span).await?;
            println!("{}, 64 callers: {calls}", kind.name());
        }
    }
    if options.only.as_deref() == Some("gateway") {
        gateway::measure(&bench.rich, options.rounds, span).await?;
    }
    if wants("money") {
        everything::measure(&bench.rich, options.rounds, span).await?;
    }
    if wants("inventory") {
        inventory::measure(&bench, options.rounds, span).await?;
    }
    if wants("orders") {
        orders::measure(&bench, &postgres, options.rounds, span).await?;
    }
    if wants("order-reads") {
        order_reads::measure(&bench, &postgres, options.orders, options.rounds, span).await?;
    }
    if wants("reports") {
        reports::measure(&bench, &postgres, options.rounds, span).await?;
    }
    if wants("waiting") {
        waiting::measure(&bench, options.rounds, span).await?;
    }
    if wants("fairness") {
        fairness::repeated_key(&bench.rich, options.rounds, span).await?;
        fairness::two_busy_accounts(&bench.rich, span).await?;
    }
    drop(bench);
    if wants("events") {
        events::measure(&postgres, options.rounds).await?;
    }
    if wants("embedded") {
        let embedded = Bench::start(Stores::Embedded, options.accounts.min(1000), None).await?;
        println!("embedded: start to ready {:?}, idle memory {} MB", embedded.start, embedded.idle_memory_mb);
        for callers in [1, 128] {
            println!("embedded: settled transfers, {callers} callers: {}", measure(&embedded.rich, Kind::Transfer, callers, span).await?);
        }
    }
    if wants("stack") {
        stack(options.rounds, span).await?;
    }
    Ok(())
}

/// The same calls through nginx and past it, in turns, on the stack of compose: two replicas of every service, TLS everywhere.
async fn stack(rounds: usize, span: Duration) -> Result<()> {
    println!("starting the stack and making 1000 accounts …");
    let stack = Stack::start(StackOptions::default())?;
    let nginx = Rich::make(stack.front(), 1000).await?;
    let direct = nginx.at(stack.direct());
    for kind in [Kind::Transfer, Kind::GetOverGrpc, Kind::GetOverRest] {
        let (mut through, mut past) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            past.push(measure(&direct, kind, 64, span).await?);
            through.push(measure(&nginx, kind, 64, span).await?);
            println!("round {round}: {}, 64 callers, direct: {}", kind.name(), past[round - 1]);
            println!("round {round}: {}, 64 callers, through nginx: {}", kind.name(), through[round - 1]);
        }
        let median = |calls: &[Calls]| report::median(calls.iter().map(Calls::per_second));
        report::ratio(&format!("{}, through nginx / direct", kind.name()), median(&through), median(&past));
    }
    Ok(())
}
