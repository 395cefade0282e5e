//! Another binary beside this one, in turns: each on a PostgreSQL of its own, both there all the time, one under load at a time.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use lastro_tests::Postgres;

use crate::load::{self, Calls, Kind};
use crate::report;
use crate::setup::{Bench, Rich, Stores};

/// Transfers, reads and pages over gRPC and REST, and the latency of an idle system; who begins changes with each round.
pub async fn measure(other: &Path, wants: impl Fn(&str) -> bool, rounds: usize, span: Duration, accounts: usize) -> Result<()> {
    println!("making {accounts} accounts for each …");
    let (stores, its_stores) = (Postgres::start()?, Postgres::start()?);
    let ours = Bench::start(Stores::Postgres(&stores), accounts, None).await?;
    let theirs = Bench::start(Stores::Postgres(&its_stores), accounts, Some(other)).await?;
    for (part, kind, callers) in [("transfers", Kind::Transfer, 128), ("reads", Kind::GetOverGrpc, 64), ("reads", Kind::GetOverRest, 64)] {
        if wants(part) {
            in_turns(kind.name(), rounds, [&theirs.rich, &ours.rich], async |rich| load::measure(rich, kind, callers, span).await, Calls::per_second)
                .await?;
        }
    }
    if wants("pages") {
        let (theirs, ours) = (load::with_histories(&theirs.rich, 400).await?, load::with_histories(&ours.rich, 400).await?);
        for kind in [Kind::PageOverGrpc, Kind::PageOverRest] {
            in_turns(kind.name(), rounds, [&theirs, &ours], async |rich| load::measure(rich, kind, 64, span).await, Calls::per_second).await?;
        }
    }
    if wants("idle") {
        for (kind, what) in [
            (Kind::Transfer, "one transfer on an idle system"),
            (Kind::GetOverGrpc, "one read over gRPC on an idle system"),
            (Kind::GetOverRest, "one read over REST on an idle system"),
        ] {
            let one = async |rich: &Rich| load::one_at_a_time(rich, kind, 200, Duration::from_millis(20)).await;
            in_turns(&format!("p50 in ms of {what}"), rounds, [&theirs.rich, &ours.rich], one, Calls::p50_ms).await?;
        }
    }
    Ok(())
}

async fn in_turns(
    name: &str,
    rounds: usize,
    riches: [&Rich; 2],
    measure: impl AsyncFn(&Rich) -> Result<Calls>,
    figure: impl Fn(&Calls) -> f64,
) -> Result<()> {
    let mut figures = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for turn in [round % 2, (round + 1) % 2] {
            let calls = measure(riches[turn]).await?;
            println!("round {}: {name}: {}: {calls}", round + 1, ["the other", "this"][turn]);
            figures[turn].push(figure(&calls));
        }
    }
    let [other, this] = figures.map(|figures| report::median(figures.into_iter()));
    if let (Some(other), Some(this)) = (other, this) {
        println!("RATIO {name}, this / the other: {:.3} ({this:.2} : {other:.2})", this / other);
    }
    Ok(())
}
