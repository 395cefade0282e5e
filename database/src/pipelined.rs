//! Connections to PostgreSQL by a driver that pipelines statements, copies in binary and leaves Nagle's algorithm off: for the batches
//! that money waits for (docs/adr/0003).

use deadpool_postgres::{Manager, ManagerConfig, RecyclingMethod, Runtime};
use tokio_postgres::{Config, NoTls};

pub use deadpool_postgres::Pool;

use crate::{ACQUIRE_TIMEOUT, Error, POSTGRES_SESSION};

/// Two batches in flight, a worker, and one to spare.
const CONNECTIONS_MAX: usize = 4;

/// Connects when first used.
pub fn pool(url: &str, name: &str) -> Result<Pool, Error> {
    let mut config: Config = url.parse()?;
    // Every statement of a batch names its rows by key. A planner that has no statistics yet would read a small table whole instead.
    let by_key = [("enable_seqscan", "off"), ("enable_hashjoin", "off"), ("enable_mergejoin", "off")];
    let settings: Vec<String> = POSTGRES_SESSION.iter().chain(&by_key).map(|(name, value)| format!("-c {name}={value}")).collect();
    config.dbname(name).application_name("lastro").connect_timeout(ACQUIRE_TIMEOUT).options(settings.join(" "));
    let manager = Manager::from_config(config, NoTls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    let pool = Pool::builder(manager).max_size(CONNECTIONS_MAX).wait_timeout(Some(ACQUIRE_TIMEOUT)).create_timeout(Some(ACQUIRE_TIMEOUT));
    pool.runtime(Runtime::Tokio1).build().map_err(Error::other)
}
