//! Everything that money does, beside single transfers in the same run: legs, batches, holds and captures.

use std::time::Duration;

use anyhow::Result;

use crate::load::{self, Calls, Kind};
use crate::report;
use crate::setup::Rich;

/// Holds that are made to be captured, for each second.
const HOLDS_PER_SECOND: usize = 16_000;

/// In turns, so that what the machine does meanwhile meets all of them.
pub async fn measure(rich: &Rich, rounds: usize, span: Duration) -> Result<()> {
    let kinds = [(Kind::TenLegs, 64, 10.0), (Kind::Batch, 16, 100.0), (Kind::AtomicBatch, 16, 100.0), (Kind::Hold, 128, 1.0)];
    let (mut transfers, mut others, mut captures) = (Vec::new(), vec![Vec::new(); kinds.len()], Vec::new());
    for round in 1..=rounds {
        let calls = load::measure(rich, Kind::Transfer, 128, span).await?;
        println!("round {round}: settled transfers, 128 callers: {calls}");
        transfers.push(calls.per_second());
        for ((kind, callers, of_each), figures) in kinds.iter().zip(&mut others) {
            let calls = load::measure(rich, *kind, *callers, span).await?;
            println!("round {round}: {}, {callers} callers: {calls}; {:.0}/s of what is in them", kind.name(), calls.per_second() * of_each);
            figures.push(calls.per_second() * of_each);
        }
        let holds = HOLDS_PER_SECOND * usize::try_from(span.as_secs() + 1)?;
        let calls: Calls = load::captures(rich, 128, span, holds).await?;
        println!("round {round}: captures, 128 callers: {calls}");
        captures.push(calls.per_second());
    }
    let base = report::median(transfers.into_iter());
    let names = ["legs in transactions of 10", "transfers in batches of 100", "transfers in atomic batches of 100", "holds"];
    for (name, figures) in names.into_iter().zip(others) {
        report::ratio(&format!("{name} / settled transfers"), report::median(figures.into_iter()), base);
    }
    report::ratio("captures / settled transfers", report::median(captures.into_iter()), base);
    Ok(())
}
