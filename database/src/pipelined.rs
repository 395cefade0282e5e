//! Connections to PostgreSQL for the batches that money waits for: everything that a batch writes goes out at once and is answered at
//! once, COPY and COMMIT included (docs/adr/0009). Opening a connection and proving who one is are the driver's.

mod connection;
mod copy;
mod row;

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::Host;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Config, NoTls};

pub use connection::{Connection, Pipeline, Statement};
pub use copy::{Column, Field, Written, copy_statement};
pub use row::Row;

use crate::batch_loader::IN_FLIGHT_MAX;
use crate::{ACQUIRE_TIMEOUT, Error, PostgresUrl, read_only};
use connection::Stream;

/// Connections that are reused.
pub type Pool = managed::Pool<Manager>;
/// A connection on loan from the pool.
pub type Pooled = managed::Object<Manager>;

/// Three batches in flight, two that wait for locks, a worker, and one to spare.
pub(crate) const FOR_BATCHES: usize = 7;
/// Single reads at once: of two loaders, so that one whose table is locked does not starve the other.
pub(crate) const FOR_READS: usize = 2 * IN_FLIGHT_MAX;
/// Pages of lists that are read at once.
pub(crate) const FOR_PAGES: usize = 4;

/// Opens connections, and sees whether one is still good.
#[derive(Debug)]
pub struct Manager {
    config: Config,
}

/// Connects when first used.
pub fn pool(url: &PostgresUrl, name: &str, connections_max: usize) -> Result<Pool, Error> {
    let pool = Pool::builder(Manager { config: url.for_pipelined(name) }).max_size(connections_max);
    let pool = pool.wait_timeout(Some(ACQUIRE_TIMEOUT)).create_timeout(Some(ACQUIRE_TIMEOUT));
    pool.runtime(Runtime::Tokio1).build().map_err(Error::other)
}

/// The rows of one statement, which is prepared when it comes first: there must not be many.
pub(crate) async fn query(pool: &Pool, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
    let mut connection = match pool.get().await {
        Err(busy @ managed::PoolError::Timeout(managed::TimeoutType::Wait)) => return Err(Error::crowded(busy)),
        connection => connection?,
    };
    let statement = connection.prepare(sql).await?;
    let mut pipeline = connection.pipeline();
    pipeline.execute(&statement, parameters);
    pipeline.send().await
}

/// Whether a session of the pool takes writes. True when all are busy moving money just now.
pub async fn takes_writes(pool: &Pool) -> Result<bool, Error> {
    let mut connection = match pool.get().await {
        Err(managed::PoolError::Timeout(managed::TimeoutType::Wait)) => return Ok(true),
        connection => connection?,
    };
    let statement = connection.prepare(read_only::TAKES_WRITES).await?;
    let mut pipeline = connection.pipeline();
    pipeline.execute(&statement, &[]);
    pipeline.send().await?.first().map_or(Ok(false), |row| row.get(0))
}

impl Manager {
    /// The server of the URL.
    async fn reach(&self) -> Result<Box<dyn Stream>, Error> {
        let (host, port) = self.config.get_hosts().first().zip(self.config.get_ports().first()).ok_or_else(|| Error::corrupt("no host"))?;
        Ok(reach(host, *port).await?)
    }
}

async fn reach(host: &Host, port: u16) -> std::io::Result<Box<dyn Stream>> {
    match host {
        Host::Tcp(host) => {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            // What is small must not wait until what went before is acknowledged (docs/adr/0003).
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
        Host::Unix(folder) => Ok(Box::new(UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).await?)),
    }
}

impl managed::Manager for Manager {
    type Type = Connection;
    type Error = Error;

    async fn create(&self) -> Result<Connection, Error> {
        let mut stream = self.reach().await?;
        // The driver starts the session and authenticates; then it gives the stream back, with nothing read ahead: the server is silent
        // until it is asked.
        drop(self.config.connect_raw(&mut stream, NoTls).await?);
        Ok(Connection::new(stream))
    }

    async fn recycle(&self, connection: &mut Connection, metrics: &Metrics) -> RecycleResult<Error> {
        if connection.is_idle() && read_only::may_be_used(metrics.age()) {
            Ok(())
        } else {
            Err(RecycleError::message("ended by the server, or left in the middle of something"))
        }
    }
}
