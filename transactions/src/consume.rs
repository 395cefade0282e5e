//! Events that transactions listens to: what customers tells of users.

mod users;

use lastro_events::Consumer;
use tokio_util::sync::CancellationToken;

use crate::app::App;

/// Consumes until told to stop.
pub async fn run(app: &App, stop: CancellationToken) {
    Consumer::new(app.users.clone(), &app.database, users::Users { revoked: app.revoked.clone() }).run(stop).await;
}
