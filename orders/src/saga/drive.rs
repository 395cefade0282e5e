//! Goes with a saga from one step to the next, as long as there is something to be done at once: what has been stored is told by the answer, and the next call
//! is made without a timer in between.

use std::sync::Arc;
use std::time::Duration;

use lastro_mesh::clock;
use tokio::time::{Instant, sleep};

use super::steps;
use crate::app::App;
use crate::batches::{Accepted, Asked, NewChange, Refused};
use crate::domain::saga::Next;
use crate::store::orders::Order;

/// Where what became of a call cannot be written down now, it is tried again after so long, until the lease has ended.
const WRITE_AGAIN: Duration = Duration::from_millis(200);

/// Until the saga has ended or waits, or somebody else has it. Whoever calls this has its lease, and was told what is next.
pub async fn drive(app: &Arc<App>, mut order: Order, mut next: Next) {
    let mut lease_ends = Instant::now() + app.settings.lease;
    loop {
        let epoch = order.progress.epoch;
        let asked = match next {
            Next::Call(step, direction) => {
                // Nobody else is asked by whoever may have lost the lease: it would be refused, and cost a call.
                if Instant::now() >= lease_ends {
                    return;
                }
                match steps::call(app, &order, step, direction).await {
                    Some(report) => Asked::Report { epoch, report },
                    None => return tracing::info!(order = %order.placed.id, epoch, "another replica has taken the saga over"),
                }
            }
            Next::TimeOut => Asked::TimeOut { epoch },
            // Whoever finds it due goes on.
            Next::Wait(_) | Next::Nothing => return,
        };
        match write_down(app, &order, asked, lease_ends).await {
            Some(Accepted { order: now, next: Some(then), .. }) => (order, next) = (now, then),
            Some(Accepted { next: None, .. }) | None => return,
        }
        lease_ends = Instant::now() + app.settings.lease / 2;
    }
}

/// None where somebody else has the saga, or the database did not take it in time: the same call is made again by whoever takes the saga up.
async fn write_down(app: &App, order: &Order, asked: Asked, until: Instant) -> Option<Accepted> {
    loop {
        let change = NewChange {
            placed: order.placed.clone(),
            id: clock::new_id(),
            asked: asked.clone(),
            jitter_permille: i64::from(rand::random_range(0..=1000_u16)),
            correlation_id: order.placed.correlation_id.clone(),
        };
        match app.batches.change(change).await {
            Ok(accepted) => return Some(accepted),
            Err(Refused::Crowded | Refused::Unavailable) if Instant::now() + WRITE_AGAIN < until => sleep(WRITE_AGAIN).await,
            Err(Refused::LeaseLost) => {
                tracing::info!(order = %order.placed.id, epoch = order.progress.epoch, "another replica has taken the saga over");
                return None;
            }
            Err(refused) => {
                tracing::warn!(order = %order.placed.id, ?refused, "what became of a step of a saga cannot be written down; it is asked for again");
                return None;
            }
        }
    }
}
