//! transactions: accounts, the double-entry ledger, the operation pipeline. `grpc`, `consume` and `jobs` call `app` (one file a use
//! case), which uses `pipeline`, `store` and the pure rules in `domain`.

mod app;
mod consume;
mod domain;
mod error;
mod grpc;
mod jobs;
mod pipeline;
mod store;

use std::sync::Arc;

use lastro_database::Database;
use lastro_events::EventStore;
use lastro_events::bus::Bus;
use lastro_mesh::identity::Revocations;
use lastro_mesh::outbound::Outbound;
use lastro_mesh::supervise::keep_running;
use lastro_money::Minor;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use error::Error;

/// The service's name in logs, metrics and topics.
pub const NAME: &str = "transactions";

/// What transactions tells the others.
pub const EVENTS: EventStore = EventStore { table: "operation_events", topic: NAME };

/// What an operator may change.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What one transaction moves at most, in minor units of its currency.
    pub amount_minor_max: Minor,
}

impl Default for Settings {
    /// 10^15: ten million million of a currency with two digits. Far above what anybody pays, and far below what fills a balance of 64 bits.
    fn default() -> Self {
        Self { amount_minor_max: 1_000_000_000_000_000 }
    }
}

/// The service. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Transactions(Arc<app::App>);

impl Transactions {
    /// A service on its migrated database, with the way to customers. `users` is what customers publishes. Dead tokens are learned into
    /// `revoked`, which the verifier of tokens looks at.
    pub async fn start(
        database: Database,
        bus: Bus,
        users: EventStore,
        customers: Outbound,
        revoked: Revocations,
        settings: Settings,
    ) -> Result<Self, Error> {
        Ok(Self(Arc::new(app::App::start(database, bus, users, customers, revoked, settings).await?)))
    }

    /// What the public listener serves.
    pub fn public_routes(&self) -> Routes {
        grpc::public_routes(&self.0)
    }

    /// As [`public_routes`](Self::public_routes), with what only services may call.
    pub fn all_routes(&self) -> Routes {
        grpc::all_routes(&self.0)
    }

    /// Background work, until told to stop. Each kind of it has a task of its own, so that a defect in one leaves the others alone.
    pub async fn run_jobs(&self, stop: CancellationToken) {
        let with_app = || (self.0.clone(), stop.clone());
        tokio::join!(
            keep_running("jobs", &stop, || {
                let (app, stop) = with_app();
                async move { jobs::run(&app, stop).await }
            }),
            keep_running("consumer", &stop, || {
                let (app, stop) = with_app();
                async move { consume::run(&app, stop).await }
            }),
            keep_running("worker", &stop, || {
                let (app, stop) = with_app();
                async move { app.pipeline.run_worker(stop).await }
            }),
        );
    }
}
