//! customers: users, credentials, sessions, tokens, roles. `grpc` and `jobs` call `app` (one file a use case, one database
//! transaction), which uses `store` and the pure rules in `domain`.

mod app;
mod domain;
mod error;
mod grpc;
mod jobs;
mod migrations;
mod settings;
mod store;

use std::sync::Arc;

use lastro_database::Database;
use lastro_events::EventStore;
use lastro_events::bus::Bus;
use lastro_mesh::identity::{KeySource, Revocations};
use lastro_mesh::outbound::Outbound;
use lastro_service::{Given, Job, Need, Running, Service, SettingsGroup};

pub use app::admin::Administrator;
pub use app::rotate_keys::KeyInfo;
pub use error::Error;
pub use settings::Settings;

/// The service's name in logs, metrics and topics.
pub const NAME: &str = "customers";

/// What customers tells the others.
pub const EVENTS: EventStore = EventStore { table: "user_events", topic: NAME, message: "lastro.customers.events.v1.UserEvent" };

/// The service, as it registers itself.
pub static SERVICE: Service = Service {
    name: NAME,
    about: "users, sessions, tokens",
    port: 50051,
    packages: &["lastro.customers.v1"],
    internal: &["lastro.internal.customers.v1"],
    needs: &[Need {
        service: "transactions",
        why: "closes the accounts of who is deleted",
        calls: &["/lastro.internal.transactions.v1.OwnersService/*"],
    }],
    publishes: &[EVENTS],
    reads: &[],
    append_only: &[],
    read_only: &["signing_keys"],
    migrator: lastro_migrations::Migrator::of::<migrations::Migrator>(),
    prepare: |database| Box::pin(async move { Ok(Customers::ensure_first_key(&database).await?) }),
    settings: SettingsGroup::of::<settings::CustomersGroup>(),
    replay: None,
    start: |given| Box::pin(start(given)),
};

async fn start(given: Given) -> anyhow::Result<Running> {
    let (transactions, settings) = (given.channel("transactions")?, given.settings.get::<Settings>()?);
    let app = Arc::new(app::App::start(given.database, given.bus, transactions, given.revoked, settings).await?);
    let keys_of = app.clone();
    let keys: KeySource = Box::new(move || {
        let app = keys_of.clone();
        Box::pin(async move { app.public_keys().await.ok() })
    });
    let jobs = vec![Job::essential("sessions and keys", &app, |app, stop| async move { jobs::run(&app, stop).await })];
    Ok(Running { keys: Some(keys), learns_revocations: true, jobs, ..Running::new(grpc::public_routes(&app), grpc::all_routes(&app)) })
}

/// What commands ask of customers. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Customers(Arc<app::App>);

impl Customers {
    /// On a migrated database, for a command that serves nobody and deletes nobody.
    pub async fn for_command(database: Database, bus: Bus, transactions: Outbound) -> Result<Self, Error> {
        Ok(Self(Arc::new(app::App::start(database, bus, transactions, Revocations::default(), Settings::default()).await?)))
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
