//! What the business does, as metrics: from the projections, so that every replica tells the same.

use std::collections::BTreeMap;
use std::time::Duration;

use lastro_database::{Database, Error, all};
use lastro_mesh::clock;
use lastro_proto::transactions::v1::transaction;
use metrics::{counter, gauge};
use sea_orm::FromQueryResult;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::domain::calendar::Day;
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

/// Brings them up to date until told to stop.
pub async fn keep_up_to_date(app: &App, stop: CancellationToken) {
    let mut last: Option<(Instant, Accepted)> = None;
    while !stop.is_cancelled() {
        let today = app.edition.get().calendar.day_of(clock::now_us());
        match bring_up_to_date(&app.database, today).await {
            Ok(accepted) => {
                let now = Instant::now();
                if let Some((then, before)) = last {
                    set_per_minute(&before, &accepted, now.duration_since(then));
                }
                last = Some((now, accepted));
            }
            Err(error) => tracing::debug!(%error, "metrics of the business cannot be read now"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(EVERY) => {}
        }
    }
}

/// How many transactions there are of each currency.
type Accepted = BTreeMap<String, i64>;

fn set_per_minute(before: &Accepted, now: &Accepted, between: Duration) {
    let ms = i64::try_from(between.as_millis()).unwrap_or(i64::MAX).max(1);
    for (currency, count) in now {
        let more = (count - before.get(currency).copied().unwrap_or_default()).max(0);
        gauge!("lastro_transactions_per_minute", "currency" => currency.clone()).set((more.saturating_mul(60_000) / ms) as f64);
    }
}

/// Sets all of them; how many transactions there are.
async fn bring_up_to_date(database: &Database, today: Day) -> Result<Accepted, Error> {
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

    let sum = |name: &str| format!("CAST(sum({name}) AS bigint) AS {name}");
    let sums = ["accepted", "completed", "rejected", "amount_billions", "amount_rest"].map(sum).join(", ");
    let sql = format!("SELECT kind, currency_code, {sums} FROM operation_days WHERE owner_id = $1 AND day >= $2 GROUP BY kind, currency_code");
    let since = async |day: i64| -> Result<Vec<Counted>, Error> { all(on, &sql, [uuid::Uuid::nil().into(), day.into()]).await };
    let ever = since(i64::MIN).await?;
    let (completed, rejected) = payments(&ever);
    counter!("lastro_payments_total", "outcome" => "completed").absolute(whole(completed));
    counter!("lastro_payments_total", "outcome" => "rejected").absolute(whole(rejected));
    let (completed, rejected) = payments(&since(today.number()).await?);
    if completed + rejected > 0 {
        gauge!("lastro_payments_completed_percent").set((completed.saturating_mul(100) / (completed + rejected)) as f64);
    }
    let mut of_currency: BTreeMap<String, (i64, Total)> = BTreeMap::new();
    for one in ever {
        let (accepted, moved) = of_currency.entry(one.currency_code).or_insert((0, Total::ZERO));
        *accepted += one.accepted;
        *moved += Total::of_parts(one.amount_billions, one.amount_rest);
    }
    for (currency, (accepted, moved)) in &of_currency {
        let minor_units = u64::try_from(moved.minor_units()).unwrap_or(u64::MAX);
        counter!("lastro_volume_minor_total", "currency" => currency.clone()).absolute(minor_units);
        counter!("lastro_transactions_accepted_total", "currency" => currency.clone()).absolute(whole(*accepted));
    }
    Ok(of_currency.into_iter().map(|(currency, (accepted, _))| (currency, accepted)).collect())
}

/// How many payments were completed, and how many rejected.
fn payments(counted: &[Counted]) -> (i64, i64) {
    let payments = counted.iter().filter(|one| one.kind == transaction::Type::Payment as i64);
    payments.fold((0, 0), |sum, one| (sum.0 + one.completed, sum.1 + one.rejected))
}

fn whole(count: i64) -> u64 {
    count.max(0).unsigned_abs()
}
