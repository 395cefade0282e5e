//! orders: what is bought, and the sagas that carry it out. `grpc` calls `app` (one file a use case), which uses `batches`, `saga`, `store` and the pure rules
//! in `domain`.

mod app;
mod batches;
mod domain;
mod error;
mod grpc;
mod migrations;
mod saga;
mod settings;
mod store;

use std::sync::Arc;

use lastro_service::{Given, Job, Need, Running, Service, SettingsGroup};

pub use domain::saga::{Direction, Step};
pub use error::Error;
pub use migrations::Migrator;
pub use saga::methods as methods_of_step;
pub use settings::Settings;
pub use store::order_events::ORDER_EVENTS;

/// The service's name in logs, metrics and topics.
pub const NAME: &str = "orders";

/// The service, as it registers itself.
pub static SERVICE: Service = Service {
    name: NAME,
    about: "orders, and the sagas that carry them out",
    port: 50054,
    packages: &["lastro.orders.v1"],
    internal: &[],
    needs: &[
        Need {
            service: "inventory",
            why: "knows prices, and reserves what is ordered",
            calls: &["/lastro.internal.inventory.v1.CatalogueService/*", "/lastro.internal.inventory.v1.ReservationsService/*"],
        },
        Need {
            service: "transactions",
            why: "moves the money",
            calls: &["/lastro.internal.transactions.v1.OrderPaymentsService/*", "/lastro.transactions.v1.AccountsService/GetAccount"],
        },
    ],
    publishes: &[ORDER_EVENTS],
    reads: &[],
    append_only: &[],
    read_only: &[],
    migrator: lastro_migrations::Migrator::of::<migrations::Migrator>(),
    prepare: Service::nothing_to_prepare,
    settings: SettingsGroup::of::<settings::OrdersGroup>(),
    replay: None,
    start: |given| Box::pin(std::future::ready(start(given))),
};

fn start(given: Given) -> anyhow::Result<Running> {
    let (inventory, transactions) = (given.channel("inventory")?, given.channel("transactions")?);
    let settings = given.settings.get::<Settings>()?;
    let app = Arc::new(app::App::new(given.database, given.bus, inventory, transactions, settings));
    let jobs = vec![
        Job::essential("batches", &app, |app, stop| async move { app.batches.run(stop).await }),
        Job::essential("lookups", &app, |app, stop| async move { app.batches.run_lookups(stop).await }),
        Job::essential("sagas", &app, |app, stop| async move { saga::sweep(&app, stop).await }),
        Job::helping("changes for other replicas", &app, |app, stop| async move { app.batches.changes().keep_announcing(stop).await }),
        Job::essential("changes by other replicas", &app, |app, stop| async move { app.batches.changes().keep_hearing(&*app, stop).await }),
    ];
    Ok(Running::new(grpc::routes(&app), grpc::routes(&app)).with_jobs(jobs))
}
