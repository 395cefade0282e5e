//! reports: what happened, read back. Made from the events of transactions: daily balances, statements, reports of transactions. `consume` keeps the
//! tables up to date, `grpc` calls `app` (one file a use case), which reads them; the pure rules are in `domain`.

mod app;
mod cache;
mod consume;
mod domain;
mod error;
mod grpc;
mod migrations;
mod settings;
mod store;

use std::sync::Arc;

use lastro_events::Consumer;
use lastro_service::{Given, Job, Running, Service, SettingsGroup};

pub use error::Error;
pub use migrations::Migrator;
pub use settings::Settings;

/// The service's name in logs, metrics and topics.
pub const NAME: &str = "reports";

/// The service, as it registers itself.
pub static SERVICE: Service = Service {
    name: NAME,
    about: "daily balances, statements, what happened",
    port: 50055,
    packages: &["lastro.reports.v1"],
    internal: &[],
    needs: &[],
    publishes: &[],
    reads: &["accounts", "transactions"],
    append_only: &[],
    read_only: &[],
    migrator: lastro_migrations::Migrator::of::<migrations::Migrator>(),
    prepare: Service::nothing_to_prepare,
    settings: SettingsGroup::of::<settings::ReportsGroup>(),
    start: |given| Box::pin(start(given)),
};

async fn start(given: Given) -> anyhow::Result<Running> {
    let (accounts, transactions) = (given.topic("accounts")?, given.topic("transactions")?);
    let settings = given.settings.get::<Settings>()?;
    store::calendar::keep(&given.database, &settings.time_zone).await?;
    let app = Arc::new(app::App::new(given.database, &given.bus, settings.time_zone));
    let jobs = vec![
        Job::helping("events of accounts", &app, move |app, stop| {
            let consumer = Consumer::new(
                accounts.clone(),
                &app.database,
                consume::accounts::Accounts { seen: app.seen.clone(), days_cache: app.days_cache.clone() },
            );
            async move { consumer.run(stop).await }
        }),
        Job::helping("events of transactions", &app, move |app, stop| {
            let handler =
                consume::transactions::Transactions { calendar: app.calendar.clone(), seen: app.seen.clone(), days_cache: app.days_cache.clone() };
            let consumer = Consumer::new(transactions.clone(), &app.database, handler);
            async move { consumer.run(stop).await }
        }),
        Job::helping("what other replicas have seen", &app, |app, stop| async move { app.seen.keep_hearing(&app.versions(), stop).await }),
        Job::helping("what this replica has seen", &app, |app, stop| async move { app.seen.keep_announcing(stop).await }),
        Job::helping("days that other replicas have changed", &app, |app, stop| async move { app.days_cache.keep_hearing(stop).await }),
        Job::helping("days that this replica has changed", &app, |app, stop| async move { app.days_cache.keep_announcing(stop).await }),
    ];
    Ok(Running::new(grpc::routes(&app), grpc::routes(&app)).with_jobs(jobs))
}
