//! transactions: accounts, the double-entry ledger, the operation pipeline. `grpc`, `consume` and `jobs` call `app` (one file a use
//! case), which uses `pipeline`, `store` and the pure rules in `domain`.

mod app;
pub mod audit;
mod consume;
mod contract;
mod domain;
mod error;
mod grpc;
mod jobs;
mod migrations;
mod pipeline;
mod provider;
mod settings;
mod store;

use std::sync::Arc;

use lastro_events::EventStore;
use lastro_service::{Given, Job, Need, Running, Service, SettingsGroup};

pub use error::Error;
pub use migrations::Migrator;
pub use settings::Settings;

/// The service's name in logs, metrics and topics.
pub const NAME: &str = "transactions";

pub use store::account_events::ACCOUNT_EVENTS;

/// What transactions tells of transactions.
pub const EVENTS: EventStore = EventStore { table: "operation_events", topic: NAME, message: "lastro.transactions.events.v1.OperationEvent" };

/// The service, as it registers itself.
pub static SERVICE: Service = Service {
    name: NAME,
    about: "accounts, the ledger, the operation pipeline",
    port: 50052,
    packages: &["lastro.transactions.v1"],
    internal: &["lastro.internal.transactions.v1"],
    needs: &[Need {
        service: "customers",
        why: "confirms who may own an account, and says which tokens are dead",
        calls: &["/lastro.internal.customers.v1.IdentityService/*"],
    }],
    publishes: &[EVENTS, ACCOUNT_EVENTS],
    reads: &["customers"],
    append_only: &["postings"],
    read_only: &[],
    migrator: lastro_migrations::Migrator::of::<migrations::Migrator>(),
    prepare: Service::nothing_to_prepare,
    settings: SettingsGroup::of::<settings::TransactionsGroup>(),
    replay: None,
    start: |given| Box::pin(start(given)),
};

async fn start(given: Given) -> anyhow::Result<Running> {
    let (customers, users, settings) = (given.channel("customers")?, given.topic("customers")?, given.settings.get::<Settings>()?);
    let app = Arc::new(app::App::start(given.database, given.bus, users, customers, given.revoked, settings).await?);
    let jobs = vec![
        Job::essential("batches", &app, |app, stop| async move { app.pipeline.run_batches(stop).await }),
        Job::essential("lookups", &app, |app, stop| async move { app.pipeline.run_lookups(stop).await }),
        Job::helping("worker", &app, |app, stop| async move { app.pipeline.run_worker(stop).await }),
        Job::helping("expiry of holds", &app, |app, stop| async move { app.pipeline.run_expiry(stop).await }),
        Job::helping("events of providers", &app, |app, stop| async move { app.pipeline.run_reports(stop).await }),
        Job::helping("calls to the payment provider", &app, |app, stop| async move { app::provider_calls::run(&app, stop).await }),
        Job::essential("revocations", &app, |app, stop| async move { jobs::keep_learning(&app, stop).await }),
        Job::helping("changes for other replicas", &app, |app, stop| async move { app.changes().keep_announcing(stop).await }),
        Job::essential("changes by other replicas", &app, |app, stop| async move { app.changes().keep_hearing(&*app, stop).await }),
        Job::helping("owners of operations", &app, |app, stop| async move { jobs::keep_filling_in(&app, stop).await }),
        Job::beating("events of users", &app, |app, heartbeat, stop| async move { consume::run(&app, &heartbeat, stop).await }),
    ];
    Ok(Running { learns_revocations: true, jobs, ..Running::new(grpc::public_routes(&app), grpc::all_routes(&app)) })
}
