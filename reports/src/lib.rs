//! reports: what happened, read back. Made from the events of transactions and orders: daily balances, statements, reports of transactions, lists of orders. `consume` keeps the
//! tables up to date, `grpc` calls `app` (one file a use case), which reads them; the pure rules are in `domain`.

mod app;
mod business;
mod cache;
mod consume;
mod domain;
mod error;
mod grpc;
mod migrations;
mod settings;
mod store;
pub mod verify;

use std::sync::Arc;

use lastro_events::Consumer;
use lastro_events::replay::Projector;
use lastro_service::{Given, Job, Replay, Replaying, Running, Service, SettingsGroup};

use crate::app::current::CurrentEdition;
use crate::store::edition;

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
    reads: &["accounts", "orders", "transactions"],
    append_only: &[],
    read_only: &[],
    migrator: lastro_migrations::Migrator::of::<migrations::Migrator>(),
    prepare: Service::nothing_to_prepare,
    settings: SettingsGroup::of::<settings::ReportsGroup>(),
    replay: Some(Replay { settings: SettingsGroup::of::<settings::ReplayGroup>(), start: |replaying| Box::pin(replay(replaying)) }),
    start: |given| Box::pin(start(given)),
};

async fn start(given: Given) -> anyhow::Result<Running> {
    let (accounts_topic, orders_topic, transactions_topic) = (given.topic("accounts")?, given.topic("orders")?, given.topic("transactions")?);
    let settings = given.settings.get::<Settings>()?;
    let edition = edition::begin_or_check(&given.database, settings.time_zone).await?;
    let app = Arc::new(app::App::new(given.database, &given.bus, CurrentEdition::new(edition)));
    let jobs = vec![
        Job::beating("events of accounts", &app, move |app, heartbeat, stop| {
            let accounts = consume::accounts::Accounts { readers: app.readers() };
            let consumer = Consumer::new(accounts_topic.clone(), &app.database, accounts).beating(&heartbeat);
            async move { consumer.run(stop).await }
        }),
        Job::beating("events of orders", &app, move |app, heartbeat, stop| {
            let orders = consume::orders::Orders { readers: app.readers() };
            let consumer = Consumer::new(orders_topic.clone(), &app.database, orders).beating(&heartbeat);
            async move { consumer.run(stop).await }
        }),
        Job::beating("events of transactions", &app, move |app, heartbeat, stop| {
            let transactions = consume::transactions::Transactions { readers: app.readers() };
            let consumer = Consumer::new(transactions_topic.clone(), &app.database, transactions).beating(&heartbeat);
            async move { consumer.run(stop).await }
        }),
        Job::helping("business metrics", &app, |app, stop| async move { business::keep_up_to_date(&app, stop).await }),
        Job::helping("another edition of the tables", &app, |app, stop| async move { app.keep_looking_for_another_edition(stop).await }),
        Job::helping("what other replicas have seen", &app, |app, stop| async move { app.seen.keep_hearing(&app.versions(), stop).await }),
        Job::helping("what this replica has seen", &app, |app, stop| async move { app.seen.keep_announcing(stop).await }),
        Job::helping("days that other replicas have changed", &app, |app, stop| async move { app.days_cache.keep_hearing(stop).await }),
        Job::helping("days that this replica has changed", &app, |app, stop| async move { app.days_cache.keep_announcing(stop).await }),
    ];
    Ok(Running::new(grpc::routes(&app), grpc::routes(&app)).with_jobs(jobs))
}

async fn replay(replaying: Replaying) -> anyhow::Result<Vec<Box<dyn Projector>>> {
    let topics = [replaying.topic("accounts")?, replaying.topic("orders")?, replaying.topic("transactions")?];
    let settings = replaying.settings.get::<settings::ReplaySettings>()?;
    edition::begin_anew(&replaying.live, &replaying.new, settings.time_zone).await?;
    Ok(consume::projectors(&replaying.new, topics))
}
