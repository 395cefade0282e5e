//! Events that transactions listens to: what customers tells of users.

mod users;

use lastro_events::{Consumer, Heartbeat};
use tokio_util::sync::CancellationToken;

use crate::app::App;

/// Consumes until told to stop.
pub async fn run(app: &App, heartbeat: &Heartbeat, stop: CancellationToken) {
    let users = users::Users { revoked: app.revoked.clone() };
    Consumer::new(app.users.clone(), &app.database, users).beating(heartbeat).run(stop).await;
}
