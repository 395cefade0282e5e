//! inventory: the catalogue, and the stock of its products in every store. `grpc` calls `app` (one file a use case), which uses `batches`, `cache`, `store`
//! and the pure rules in `domain`.

mod app;
mod batches;
mod cache;
mod domain;
mod error;
mod grpc;
mod migrations;
mod store;

use std::sync::Arc;

use lastro_service::{Given, Job, Need, Running, Service, SettingsGroup};

pub use error::Error;
pub use migrations::Migrator;

pub use store::products::PRODUCT_EVENTS;
pub use store::stock::STOCK_EVENTS;

/// The service's name in logs, metrics and topics.
pub const NAME: &str = "inventory";

/// The service, as it registers itself.
pub static SERVICE: Service = Service {
    name: NAME,
    about: "the catalogue, stock in every store, reservations",
    port: 50053,
    packages: &["lastro.inventory.v1"],
    internal: &["lastro.internal.inventory.v1"],
    needs: &[Need {
        service: "transactions",
        why: "says whether a merchant's account takes the currency of a price",
        calls: &["/lastro.internal.transactions.v1.OwnersService/ConfirmAccount"],
    }],
    publishes: &[PRODUCT_EVENTS, STOCK_EVENTS],
    reads: &[],
    append_only: &["stock_snapshots", "adjustments"],
    read_only: &[],
    migrator: lastro_migrations::Migrator::of::<migrations::Migrator>(),
    prepare: Service::nothing_to_prepare,
    settings: SettingsGroup::NONE,
    replay: None,
    start: |given| Box::pin(std::future::ready(start(given))),
};

fn start(given: Given) -> anyhow::Result<Running> {
    let transactions = given.channel("transactions")?;
    let app = Arc::new(app::App::new(given.database, given.bus, transactions));
    let jobs = vec![
        Job::essential("batches", &app, |app, stop| async move { app.batches.run(stop).await }),
        Job::essential("lookups", &app, |app, stop| async move { app.batches.run_lookups(stop).await }),
        Job::helping("expiry of reservations", &app, |app, stop| async move { app.batches.run_expiry(stop).await }),
        Job::helping("changes for other replicas", &app, |app, stop| async move { app.cache.keep_announcing(stop).await }),
        Job::helping("changes by other replicas", &app, |app, stop| async move { app.cache.keep_hearing(stop).await }),
    ];
    Ok(Running::new(grpc::public_routes(&app), grpc::all_routes(&app)).with_jobs(jobs))
}
