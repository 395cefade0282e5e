//! Which tokens are dead, for services that keep no list of their own: asked for every second, and kept in memory. A service is not ready before
//! it has been told all of them once.

use std::time::Duration;

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::{Revocation, Revocations};
use lastro_mesh::outbound::Outbound;
use lastro_proto::internal::customers::v1::identity_service_client::IdentityServiceClient;
use lastro_proto::internal::customers::v1::{self as wire, ListRevocationsRequest};
use metrics::gauge;
use tokio::sync::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const ASK_EVERY: Duration = Duration::from_secs(1);
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// In times of asking.
const FORGET_EVERY: u32 = 600;

/// Asks the identity service.
pub struct Learner {
    identity: IdentityServiceClient<Outbound>,
    revoked: Revocations,
    cursor: Mutex<String>,
}

impl Learner {
    /// Has learned nothing yet.
    pub fn new(identity: Outbound, revoked: Revocations) -> Self {
        Self { identity: IdentityServiceClient::new(identity), revoked, cursor: Mutex::default() }
    }

    /// Learns what was revoked since the last time, page by page to the end.
    pub async fn learn(&self) -> anyhow::Result<()> {
        let mut cursor = self.cursor.lock().await;
        loop {
            let request = Call::start(ASK_TIMEOUT).request(ListRevocationsRequest { cursor: cursor.clone() });
            let answer =
                self.identity.clone().list_revocations(request).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner();
            let told = answer.revocations.iter().map(read).collect::<Option<Vec<_>>>();
            self.revoked.insert(told.ok_or_else(|| anyhow::anyhow!("a revocation that does not read"))?);
            *cursor = answer.cursor;
            if !answer.more {
                return Ok(());
            }
        }
    }

    /// Learns every second until told to stop.
    pub async fn run(&self, stop: CancellationToken) {
        let (staleness, mut asked) = (gauge!("lastro_revocations_stale_seconds"), Instant::now());
        let mut ticks = interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for tick in 1_u32.. {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            match self.learn().await {
                Ok(()) => asked = Instant::now(),
                Err(error) => tracing::warn!(%error, "the identity service does not say which tokens are dead"),
            }
            staleness.set(asked.elapsed().as_secs_f64());
            if tick.is_multiple_of(FORGET_EVERY) {
                self.revoked.forget_before(clock::now_s());
            }
        }
    }
}

fn read(told: &wire::Revocation) -> Option<Revocation> {
    let forget_after_s = told.forget_after_s;
    if told.user_id.is_empty() {
        Some(Revocation::Session { session_id: Uuid::parse_str(&told.session_id).ok()?, forget_after_s })
    } else {
        Some(Revocation::User { user_id: Uuid::parse_str(&told.user_id).ok()?, token_version: told.token_version, forget_after_s })
    }
}
