//! How many orders there were, how they ended, how long that took, and what sold best.

use std::collections::BTreeMap;

use lastro_mesh::call::Call;
use lastro_mesh::status::Problem;

use super::App;
use crate::Error;
use crate::domain::order::{DayOf, OrderCounts, TopProduct, percentile_us};
use crate::store::order_days;

/// Days of one answer.
const DAYS_MAX: i64 = 366;
/// Rows that are read of each kind, by day and currency: more are refused, not cut.
const ROWS_MAX: u64 = 50_000;
/// Products that are told of.
const TOP: u64 = 10;

/// The orders that were accepted on one day in one currency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderDay {
    /// Which day, and which currency.
    pub of: DayOf,
    /// How they stand, and how their sagas went.
    pub counts: OrderCounts,
    /// The time that 95 of a hundred of their sagas took at most, in microseconds: up to an eighth too much.
    pub p95_us: Option<i64>,
}

/// What is told of orders.
#[derive(Debug)]
pub struct Analytics {
    /// Oldest day first, then by currency.
    pub days: Vec<OrderDay>,
    /// The best first.
    pub top_products: Vec<TopProduct>,
}

/// The orders of everybody from a day to another one, both included: at most 366 days, by default the last 30.
pub async fn get_order_analytics(app: &App, call: &Call, from: Option<&str>, to: Option<&str>) -> Result<Analytics, Error> {
    let (from, to) = app.days(from, to)?;
    if to.number() - from.number() >= DAYS_MAX {
        let rule = format!("must be at most {} days before `to`: an answer has {DAYS_MAX} days at most", DAYS_MAX - 1);
        return Err(Problem::field("from", rule).into());
    }
    let database = app.database.clone();
    let read = async move {
        let on = database.reader();
        let (counted, times) = (order_days::days(on, from, to, ROWS_MAX + 1).await?, order_days::saga_times(on, from, to, ROWS_MAX + 1).await?);
        Ok((counted, times, order_days::top_products(on, from, to, TOP).await?))
    };
    let (counted, mut times, top_products) = app.reads.read(call, call.user()?.id, read).await?;
    let buckets: usize = times.values().map(BTreeMap::len).sum();
    if counted.len().max(buckets) as u64 > ROWS_MAX {
        return Err(Problem::field("from", format!("must be later: these days have more than {ROWS_MAX} rows by day and currency")).into());
    }
    let day = |(of, counts)| {
        let p95_us = times.remove(&of).and_then(|times| percentile_us(&times, 95));
        OrderDay { of, counts, p95_us }
    };
    Ok(Analytics { days: counted.into_iter().map(day).collect(), top_products })
}
