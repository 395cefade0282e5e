//! What one caller takes from the others: one that repeats one key as fast as it can, and what it costs to want two accounts that everybody wants.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;

use crate::load::{self, Calls, Kind};
use crate::report;
use crate::setup::Rich;

/// Throughput of 128 callers beside one more that repeats one key, and without it, in turns.
pub async fn repeated_key(rich: &Rich, rounds: usize, span: Duration) -> Result<()> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        without.push(load::measure(rich, Kind::Transfer, 128, span).await?);
        let stop = Arc::new(AtomicBool::new(false));
        let repeater = tokio::spawn(load::repeat_one_key(rich.clone(), stop.clone()));
        with.push(load::measure(rich, Kind::Transfer, 128, span).await?);
        stop.store(true, Ordering::Relaxed);
        let repeated = repeater.await??;
        println!("round {round}: settled transfers, 128 callers: {}", without[round - 1]);
        println!("round {round}: the same beside one caller that repeats one key, {repeated} times: {}", with[round - 1]);
    }
    let median = |calls: &[Calls]| report::median(calls.iter().map(Calls::per_second));
    report::ratio("settled transfers beside a repeated key / without", median(&with), median(&without));
    Ok(())
}

/// 64 callers move money in and out of one account, 64 of another one; one moves it between the two. How long it waits, beside the others.
pub async fn two_busy_accounts(rich: &Rich, span: Duration) -> Result<()> {
    let (between, others) = load::two_busy_accounts(rich, 64, span).await?;
    println!("transfers of 128 callers on two busy accounts: {others}");
    println!("transfers between the two: {between}");
    println!("RATIO p99 of a transfer between two busy accounts / of the others: {:.2}", between.p99_ms() / others.p99_ms());
    Ok(())
}
