//! What an operator may set of orders.

use std::time::Duration;

use clap::Args;
use lastro_mesh::config::{Problems, Setting};
use lastro_service::ReadSettings;

/// What an operator may change.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A saga that is not done after so long is given up, and what it did is undone.
    pub saga_timeout: Duration,
    /// Whoever has taken a saga up has it for so long; should that replica be killed, another one goes on after that.
    pub lease: Duration,
}

/// What orders is told of sagas.
#[derive(Args)]
pub struct OrdersGroup {
    /// An order that is not carried out after so long is given up, and what was done is undone, in seconds, 1 to 600.
    #[arg(long, env = "LASTRO_SAGA_TIMEOUT", value_name = "SECONDS", default_value = "300")]
    saga_timeout: Setting,
    /// Should a replica be killed, another one goes on with its orders after so long, in milliseconds, 500 to 60000.
    #[arg(long, env = "LASTRO_SAGA_LEASE_MS", value_name = "MS", default_value = "10000")]
    saga_lease_ms: Setting,
}

impl ReadSettings for OrdersGroup {
    type Settings = Settings;

    fn read(&self, problems: &mut Problems) -> Option<Settings> {
        // Pieces are kept for 15 minutes: what is to be done has to be done by then.
        let saga_timeout = problems.take_within("--saga-timeout", &self.saga_timeout, 1..=600);
        let lease = problems.take_within("--saga-lease-ms", &self.saga_lease_ms, 500..=60_000);
        Some(Settings { saga_timeout: Duration::from_secs(saga_timeout?), lease: Duration::from_millis(lease?) })
    }
}
