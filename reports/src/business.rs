//! What the business does, as metrics: from the projections, so that every replica tells the same.

use std::time::Duration;

use lastro_database::{Database, Error, all};
use lastro_mesh::clock;
use lastro_proto::transactions::v1::transaction;
use metrics::{counter, gauge};
use sea_orm::FromQueryResult;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::domain::order::Status;
use crate::domain::total::Total;
use crate::store::{order_days, orders};

/// How often they are brought up to date.
const EVERY: Duration = Duration::from_secs(5);

#[derive(FromQueryResult)]
struct Counted {
    kind: i64,
    currency_code: String,
    accepted: i64,
    completed: i64,
    rejected: i64,
    amount_billions: i64,
    amount_rest: i64,
}

/// Tells them until told to stop.
pub async fn keep_telling(database: &Database, stop: CancellationToken) {
    let mut last: Option<(Instant, i64)> = None;
    while !stop.is_cancelled() {
        match tell(database).await {
            Ok(accepted) => {
                let now = Instant::now();
                if let Some((then, before)) = last {
                    let ms = i64::try_from(now.duration_since(then).as_millis()).unwrap_or(i64::MAX).max(1);
                    gauge!("lastro_transactions_per_minute").set(((accepted - before).max(0).saturating_mul(60_000) / ms) as f64);
                }
                last = Some((now, accepted));
            }
            Err(error) => tracing::debug!(%error, "business metrics cannot be read now"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(EVERY) => {}
        }
    }
}

/// Sets all of them; how many transactions there are.
async fn tell(database: &Database) -> Result<i64, Error> {
    let on = database.reader();
    let counts = order_days::all_days(on).await?;
    for status in Status::ALL {
        gauge!("lastro_orders", "status" => status.name()).set(counts.of(status) as f64);
    }
    counter!("lastro_orders_created_total").absolute(whole(counts.orders()));
    counter!("lastro_orders_completed_total").absolute(whole(counts.decided - counts.compensated));
    let (open, oldest_us) = orders::open(on).await?;
    gauge!("lastro_orders_open").set(open as f64);
    let age_us = oldest_us.map_or(0, |oldest_us| (clock::now_us() - oldest_us).max(0));
    gauge!("lastro_orders_oldest_open_seconds").set(Duration::from_micros(age_us.unsigned_abs()).as_secs_f64());

    let sql = "SELECT kind, currency_code, CAST(sum(accepted) AS bigint) AS accepted, CAST(sum(completed) AS bigint) AS completed, \
               CAST(sum(rejected) AS bigint) AS rejected, CAST(sum(amount_billions) AS bigint) AS amount_billions, \
               CAST(sum(amount_rest) AS bigint) AS amount_rest FROM operation_days WHERE owner_id = $1 GROUP BY kind, currency_code";
    let counted: Vec<Counted> = all(on, sql, [uuid::Uuid::nil().into()]).await?;
    let payments = || counted.iter().filter(|one| one.kind == transaction::Type::Payment as i64);
    let (completed, rejected) = payments().fold((0, 0), |sum, one| (sum.0 + one.completed, sum.1 + one.rejected));
    counter!("lastro_payments_total", "outcome" => "completed").absolute(whole(completed));
    counter!("lastro_payments_total", "outcome" => "rejected").absolute(whole(rejected));
    if completed + rejected > 0 {
        gauge!("lastro_payments_completed_percent").set((completed.saturating_mul(100) / (completed + rejected)) as f64);
    }
    let mut currencies: Vec<&str> = counted.iter().map(|one| one.currency_code.as_str()).collect();
    currencies.sort_unstable();
    currencies.dedup();
    for code in currencies {
        let of_it = counted.iter().filter(|one| one.currency_code == code);
        let moved = of_it.fold(Total::ZERO, |sum, one| sum + Total::of_parts(one.amount_billions, one.amount_rest));
        let minor_units = u64::try_from(moved.minor_units()).unwrap_or(u64::MAX);
        counter!("lastro_volume_minor_total", "currency" => code.to_owned()).absolute(minor_units);
    }
    let accepted: i64 = counted.iter().map(|one| one.accepted).sum();
    counter!("lastro_transactions_accepted_total").absolute(whole(accepted));
    Ok(accepted)
}

fn whole(count: i64) -> u64 {
    count.max(0).unsigned_abs()
}
