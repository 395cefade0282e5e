//! customers: users, credentials, sessions, tokens, roles. `grpc` and `jobs` call `app` (one file a use case, one database
//! transaction), which uses `store` and the pure rules in `domain`.

mod app;
mod domain;
mod error;
mod grpc;
mod jobs;
mod store;

use std::num::NonZeroU32;
use std::sync::Arc;

use lastro_database::Database;
use lastro_events::EventStore;
use lastro_events::bus::Bus;
use lastro_mesh::identity::{PublicKey, Revocations};
use lastro_mesh::outbound::Outbound;
use lastro_mesh::supervise::keep_running;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use app::admin::Administrator;
pub use app::rotate_keys::KeyInfo;
pub use error::Error;

/// The service's name in logs, metrics and topics.
pub const NAME: &str = "customers";

/// What customers tells the others.
pub const EVENTS: EventStore = EventStore { table: "user_events", topic: NAME };

/// How long things live, in seconds, and how many there may be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// An access token.
    pub access_ttl_s: i64,
    /// A refresh token.
    pub refresh_ttl_s: i64,
    /// Failed logins of one account until it has to wait.
    pub login_failures_max: i64,
    /// How long it has to wait then.
    pub login_pause_s: i64,
    /// Failed logins from one address in a minute.
    pub login_failures_per_address: u32,
    /// Registrations from one address in a minute.
    pub registrations_per_minute: NonZeroU32,
    /// Registrations from one address at once, when it has made none for a while.
    pub registrations_burst: NonZeroU32,
    /// The refresh token that was traded last may be traded again for so long, since the answer may have been lost.
    pub refresh_reuse_grace_s: i64,
    /// Sessions that a user has at once; the oldest go.
    pub sessions_per_user_max: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            access_ttl_s: 5 * 3600,
            refresh_ttl_s: 7 * 24 * 3600,
            login_failures_max: 10,
            login_pause_s: 60,
            login_failures_per_address: 100,
            registrations_per_minute: const { NonZeroU32::new(60).unwrap() },
            registrations_burst: const { NonZeroU32::new(100).unwrap() },
            refresh_reuse_grace_s: 10,
            sessions_per_user_max: 1000,
        }
    }
}

/// The service. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Customers(Arc<app::App>);

impl Customers {
    /// A service on its migrated database, which has a signing key, with the way to transactions.
    pub async fn start(database: Database, bus: Bus, transactions: Outbound, settings: Settings) -> Result<Self, Error> {
        Ok(Self(Arc::new(app::App::start(database, bus, transactions, settings).await?)))
    }

    /// Makes the first signing key where there is none.
    pub async fn ensure_first_key(database: &Database) -> Result<(), Error> {
        app::rotate_keys::ensure_first_key(database).await
    }

    /// Every key that verifies tokens.
    pub async fn list_keys(database: &Database) -> Result<Vec<KeyInfo>, Error> {
        app::rotate_keys::list_keys(database).await
    }

    /// Publishes a new key that signs after some seconds; the others verify for some more after that. None while an earlier rotation's key
    /// does not sign yet.
    pub async fn rotate_keys(database: &Database, sign_after_s: i64, retire_after_s: i64) -> Result<Option<KeyInfo>, Error> {
        app::rotate_keys::rotate_keys(database, sign_after_s, retire_after_s).await
    }

    /// What the public listener serves.
    pub fn public_routes(&self) -> Routes {
        grpc::public_routes(&self.0)
    }

    /// As [`public_routes`](Self::public_routes), with what only services may call.
    pub fn all_routes(&self) -> Routes {
        grpc::all_routes(&self.0)
    }

    /// The keys that verify tokens.
    pub async fn public_keys(&self) -> Result<Vec<PublicKey>, Error> {
        self.0.public_keys().await
    }

    /// The tokens that are dead, as this service knows them.
    pub fn revoked(&self) -> Revocations {
        self.0.revoked.clone()
    }

    /// Background work, until told to stop.
    pub async fn run_jobs(&self, stop: CancellationToken) {
        keep_running("jobs", &stop, || {
            let (app, stop) = (self.0.clone(), stop.clone());
            async move { jobs::run(&app, stop).await }
        })
        .await;
    }

    /// Whether there is an administrator who may log in.
    pub async fn has_administrator(&self) -> Result<bool, Error> {
        app::admin::has_administrator(&self.0).await
    }

    /// The addresses of the first administrators who may log in.
    pub async fn administrators(&self) -> Result<Vec<String>, Error> {
        app::admin::administrators(&self.0).await
    }

    /// Whether an address is that of an administrator who may log in.
    pub async fn is_administrator(&self, email: &str) -> Result<bool, Error> {
        app::admin::is_administrator(&self.0, email).await
    }

    /// Gives an administrator another password, ends its sessions, and forgets its failed logins.
    pub async fn reset_administrator(&self, administrator: &Administrator) -> Result<(), Error> {
        app::admin::reset_administrator(&self.0, administrator).await
    }

    /// Makes an administrator with these credentials.
    pub async fn create_administrator(&self, administrator: &Administrator) -> Result<(), Error> {
        app::admin::create_administrator(&self.0, administrator).await
    }
}
