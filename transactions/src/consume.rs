//! Events that transactions listens to: what customers tells of users.

mod users;

use lastro_events::Consumer;
use tokio_util::sync::CancellationToken;

use crate::app::App;

/// The consumer group of all replicas of transactions.
const GROUP: &str = "transactions";

/// Consumes until told to stop.
pub async fn run(app: &App, stop: CancellationToken) {
    let subscription = app.bus.subscribe(app.users, GROUP, &app.database);
    let handler = users::Users { revoked: app.revoked.clone() };
    Consumer { topic: app.users.topic, database: app.database.clone(), handler }.run(subscription, stop).await;
}
