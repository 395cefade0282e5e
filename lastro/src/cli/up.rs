//! The settings of `lastro up`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgMatches, Args, Command};
use lastro_database::PostgresUrl;
use lastro_mesh::config::{Invalid, Problems, Setting};
use lastro_mesh::serve::ConnectionLimits;
use lastro_service::Settings;

use super::groups::{BusGroup, ConnectionsGroup, GatewayGroup, read_postgres_url};
use crate::routes::CallLimits;
use crate::services::SERVICES;

/// As given: every value is kept as text, so that all mistakes are reported at once.
#[derive(Args)]
pub struct UpArgs {
    /// Folder for keys, the administrator's first password, and the databases where no URL is given. 0700, and locked while in use.
    #[arg(long, env = "LASTRO_DATA", value_name = "DIR", default_value = "data")]
    data: PathBuf,
    /// Where to serve REST.
    #[arg(long, env = "LASTRO_REST", value_name = "ADDR", default_value = "127.0.0.1:8080")]
    rest: Setting,
    /// Where to serve gRPC.
    #[arg(long, env = "LASTRO_GRPC", value_name = "ADDR", default_value = "127.0.0.1:50051")]
    grpc: Setting,
    /// Where to serve /livez, /readyz and /metrics.
    #[arg(long, env = "LASTRO_OPS", value_name = "ADDR", default_value = "127.0.0.1:9464")]
    ops: Setting,
    /// A PostgreSQL server, postgres://user:password@host:port; each service has its own database on it. Without: SQLite files in the data folder.
    #[arg(long, env = "LASTRO_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    database_url: Option<String>,
    /// A Redis server, redis://user:password@host:port, as the bus. Without: the embedded bus.
    #[arg(long, env = "LASTRO_REDIS_URL", value_name = "URL", hide_env_values = true)]
    redis_url: Option<String>,
    /// What is logged to standard error: error, warn, info, debug, or per target as in warn,lastro_transactions=info.
    #[arg(long, env = "LASTRO_LOG", value_name = "FILTER", default_value = "warn")]
    log: String,
    /// Where OpenTelemetry traces go by OTLP over gRPC, such as http://127.0.0.1:4317. Without: nowhere.
    #[arg(long, env = "LASTRO_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Per cent of traces that are recorded, 0 to 100; a caller's decision is kept.
    #[arg(long, env = "LASTRO_TRACE_PERCENT", value_name = "N", default_value = "100")]
    trace_percent: Setting,
    /// Connections to each PostgreSQL database, 4 to 1000.
    #[arg(long, env = "LASTRO_DATABASE_CONNECTIONS", value_name = "N", default_value = "16")]
    database_connections: Setting,
    /// Calls that one service handles at once, 1 to 1000000; what exceeds it is refused with UNAVAILABLE.
    #[arg(long, env = "LASTRO_CONCURRENCY_MAX", value_name = "N", default_value = "4096")]
    concurrency_max: Setting,
    /// Seconds of the longest deadline that a gRPC caller gets, and of one that sets none, 1 to 35: as long as
    /// a process that stops waits for what is in flight.
    #[arg(long, env = "LASTRO_DEADLINE_MAX", value_name = "SECONDS", default_value = "35")]
    deadline_max: Setting,
    #[command(flatten)]
    edge: GatewayGroup,
    #[command(flatten)]
    bus: BusGroup,
    #[command(flatten)]
    connections: ConnectionsGroup,
    /// Whether gRPC reflection tells the public surface.
    #[arg(long, env = "LASTRO_REFLECTION", value_name = "BOOL", default_value = "true")]
    reflection: Setting,
}

/// The settings of `lastro up`, read and checked.
pub struct UpSettings {
    pub data: PathBuf,
    pub rest: SocketAddr,
    pub grpc: SocketAddr,
    pub ops: SocketAddr,
    pub database_url: Option<PostgresUrl>,
    pub redis_url: Option<String>,
    pub topic_bytes_max: u64,
    pub log: String,
    pub otlp_endpoint: Option<String>,
    pub trace_percent: u32,
    pub database_connections: u32,
    pub concurrency_max: usize,
    pub deadline_max: Duration,
    pub rate_limits: lastro_gateway::Limits,
    pub cors_origins: Vec<String>,
    /// Those of each service, by its name.
    pub own: HashMap<&'static str, Settings>,
    pub connections: ConnectionLimits,
    pub reflection: bool,
}

/// Adds to the command what each service may be told.
pub fn up_command(command: Command) -> Command {
    let (about, long_about) = (command.get_about().cloned(), command.get_long_about().cloned());
    let command = SERVICES.iter().fold(command, |command, service| (service.settings.add_to)(command));
    // A group of flags brings its own description along.
    let command = command.about(about.unwrap_or_default());
    match long_about {
        Some(text) => command.long_about(text),
        None => command.long_about(None),
    }
}

impl UpSettings {
    /// Reads every setting, or says all that is wrong.
    pub fn read(args: UpArgs, matches: &ArgMatches) -> Result<Self, Invalid> {
        let mut problems = Problems::default();
        let rest = problems.take_address("--rest", &args.rest);
        let grpc = problems.take_address("--grpc", &args.grpc);
        let ops = problems.take_address("--ops", &args.ops);
        let trace_percent = problems.take_within("--trace-percent", &args.trace_percent, 0..=100);
        let database_connections = problems.take_within("--database-connections", &args.database_connections, 4..=1000);
        let concurrency_max = problems.take_within("--concurrency-max", &args.concurrency_max, 1..=1_000_000);
        let deadline_max = problems.take_within("--deadline-max", &args.deadline_max, 1..=35);
        let rate_limits = args.edge.read_limits(&mut problems);
        let own = SERVICES.iter().map(|service| Some((service.name, service.settings.read(matches, &mut problems)?))).collect::<Vec<_>>();
        let topic_bytes_max = args.bus.read(&mut problems);
        let connections = args.connections.read(&mut problems);
        let database_url = args.database_url.as_ref().map(|url| read_postgres_url(&mut problems, "--database-url", url));
        let reflection = problems.take::<bool>("--reflection", &args.reflection);
        for (name, url, schemes) in [
            ("--redis-url", &args.redis_url, &["redis://", "rediss://", "redis+unix://"][..]),
            ("--otlp-endpoint", &args.otlp_endpoint, &["http://", "https://"]),
        ] {
            if url.as_ref().is_some_and(|url| !schemes.iter().any(|scheme| url.starts_with(scheme))) {
                // The value may hold a password, so it is not repeated.
                problems.add(format!("{name}: must begin with {}", schemes.join(" or ")));
            }
        }
        problems.check()?;
        let missing = || Invalid(vec!["a setting is missing".to_owned()]);
        Ok(Self {
            data: args.data,
            rest: rest.ok_or_else(missing)?,
            grpc: grpc.ok_or_else(missing)?,
            ops: ops.ok_or_else(missing)?,
            database_url: database_url.flatten(),
            redis_url: args.redis_url,
            topic_bytes_max: topic_bytes_max.ok_or_else(missing)?,
            log: args.log,
            otlp_endpoint: args.otlp_endpoint,
            trace_percent: trace_percent.ok_or_else(missing)?,
            database_connections: database_connections.ok_or_else(missing)?,
            concurrency_max: concurrency_max.ok_or_else(missing)?,
            deadline_max: Duration::from_secs(deadline_max.ok_or_else(missing)?),
            rate_limits: rate_limits.ok_or_else(missing)?,
            cors_origins: args.edge.cors_origins,
            own: own.into_iter().collect::<Option<_>>().ok_or_else(missing)?,
            connections: connections.ok_or_else(missing)?,
            reflection: reflection.ok_or_else(missing)?,
        })
    }

    /// What calls may take of a service.
    pub fn call_limits(&self) -> CallLimits {
        CallLimits { concurrency_max: self.concurrency_max, deadline_max: self.deadline_max }
    }
}
