//! Connections to PostgreSQL for the batches that money waits for: everything that a batch writes goes out at once and is answered at
//! once, COPY and COMMIT included (docs/adr/0009). Opening a connection and proving who one is are the driver's.

mod connection;
mod copy;
mod row;

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::Host;
use tokio_postgres::{Config, NoTls};

pub use connection::{Connection, Pipeline, Statement};
pub use copy::CopyRows;
pub use row::Row;

use crate::{ACQUIRE_TIMEOUT, Error, POSTGRES_SESSION};
use connection::Stream;

/// Connections that are reused.
pub type Pool = managed::Pool<Manager>;
/// A connection on loan from the pool.
pub type Pooled = managed::Object<Manager>;

/// Three batches in flight, a worker, and one to spare.
const CONNECTIONS_MAX: usize = 5;
const PORT_DEFAULT: u16 = 5432;

/// Opens connections, and sees whether one is still good.
#[derive(Debug)]
pub struct Manager {
    config: Config,
}

/// Connects when first used.
pub fn pool(url: &str, name: &str) -> Result<Pool, Error> {
    let mut config: Config = url.parse()?;
    // Every statement of a batch names its rows by key. A planner that has no statistics yet would read a small table whole instead.
    let by_key = [("enable_seqscan", "off"), ("enable_hashjoin", "off"), ("enable_mergejoin", "off")];
    let settings: Vec<String> = POSTGRES_SESSION.iter().chain(&by_key).map(|(name, value)| format!("-c {name}={value}")).collect();
    config.dbname(name).application_name("lastro").options(settings.join(" "));
    let pool = Pool::builder(Manager { config }).max_size(CONNECTIONS_MAX);
    let pool = pool.wait_timeout(Some(ACQUIRE_TIMEOUT)).create_timeout(Some(ACQUIRE_TIMEOUT));
    pool.runtime(Runtime::Tokio1).build().map_err(Error::other)
}

impl Manager {
    /// The first of the URL's hosts that can be reached.
    async fn reach(&self) -> Result<Box<dyn Stream>, Error> {
        let mut last = None;
        for (index, host) in self.config.get_hosts().iter().enumerate() {
            // One port for each host, or one for all.
            let ports = self.config.get_ports();
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(PORT_DEFAULT);
            match reach(host, port).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or_else(|| Error::corrupt("a URL of a database names no host"), Error::from))
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

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<Error> {
        if connection.is_idle() { Ok(()) } else { Err(RecycleError::message("ended by the server, or left in the middle of something")) }
    }
}
