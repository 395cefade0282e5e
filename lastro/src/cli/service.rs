//! The settings of services that run as processes of their own.

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches as _};
use lastro_database::PostgresUrl;
use lastro_mesh::config::{Invalid, Problems, Setting};
use lastro_mesh::identity::Policy;
use lastro_mesh::serve::{ConnectionLimits, Security};
use lastro_mesh::tls::{Tls, TlsFiles};
use lastro_service::{Service, Settings};

use super::groups::{BusGroup, ConnectionsGroup, GatewayGroup, read_postgres_url};
use crate::routes::CallLimits;
use crate::services::{called_by, offered_over_rest};

/// What every process is told.
#[derive(Args)]
struct ProcessArgs {
    /// Where to serve /livez, /readyz and /metrics, in plain text: not for the outside.
    #[arg(long, env = "LASTRO_OPS", value_name = "ADDR", default_value = "127.0.0.1:9464")]
    ops: Setting,
    /// This service's certificate, PEM; read again when it changes.
    #[arg(long, env = "LASTRO_TLS_CERT", value_name = "PATH")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key, PEM.
    #[arg(long, env = "LASTRO_TLS_KEY", value_name = "PATH")]
    tls_key: Option<PathBuf>,
    /// The authority that the certificates of all services come from, PEM.
    #[arg(long, env = "LASTRO_TLS_CA", value_name = "PATH")]
    tls_ca: Option<PathBuf>,
    /// Who may call what, JSON: for each name in a certificate the paths that it may call. `lastro certs` writes one.
    #[arg(long, env = "LASTRO_TLS_POLICY", value_name = "PATH")]
    tls_policy: Option<PathBuf>,
    /// Talk in plain text and believe every caller. Only with addresses of this machine itself.
    #[arg(long, env = "LASTRO_PLAINTEXT", value_name = "BOOL", default_value = "false")]
    plaintext: Setting,
    /// Folder for the public keys of tokens, so that this service can start while customers is away. Replicas may share it.
    #[arg(long, env = "LASTRO_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// What is logged to standard error: error, warn, info, debug, or per target as in warn,lastro_transactions=info.
    #[arg(long, env = "LASTRO_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
    /// Where OpenTelemetry traces go by OTLP over gRPC, such as http://127.0.0.1:4317. Without: nowhere.
    #[arg(long, env = "LASTRO_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Per cent of traces that are recorded, 0 to 100; a caller's decision is kept.
    #[arg(long, env = "LASTRO_TRACE_PERCENT", value_name = "N", default_value = "100")]
    trace_percent: Setting,
    /// Calls that are handled at once, 1 to 1000000; what exceeds it is refused with UNAVAILABLE.
    #[arg(long, env = "LASTRO_CONCURRENCY_MAX", value_name = "N", default_value = "4096")]
    concurrency_max: Setting,
    /// Seconds of the longest deadline that a gRPC caller gets, and of one that sets none, 1 to 35: as long as
    /// a process that stops waits for what is in flight.
    #[arg(long, env = "LASTRO_DEADLINE_MAX", value_name = "SECONDS", default_value = "35")]
    deadline_max: Setting,
    /// Seconds after SIGTERM during which new connections and calls are still taken, 0 to 60: longer than a proxy keeps an idle connection.
    #[arg(long, env = "LASTRO_DRAIN_LINGER", value_name = "SECONDS", default_value = "5")]
    drain_linger: Setting,
    #[command(flatten)]
    connections: ConnectionsGroup,
}

/// Where a service keeps what it knows.
#[derive(Args)]
struct StoreArgs {
    /// A PostgreSQL server, postgres://role:password@host:port; the service's own database on it is lastro_<service>.
    #[arg(long, env = "LASTRO_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    database_url: Option<String>,
    /// A file that holds the URL, for secrets.
    #[arg(long, env = "LASTRO_DATABASE_URL_FILE", value_name = "PATH")]
    database_url_file: Option<PathBuf>,
    /// Connections to the database, 4 to 1000.
    #[arg(long, env = "LASTRO_DATABASE_CONNECTIONS", value_name = "N", default_value = "16")]
    database_connections: Setting,
    /// A Redis server, redis://user:password@host:port, as the bus.
    #[arg(long, env = "LASTRO_REDIS_URL", value_name = "URL", hide_env_values = true)]
    redis_url: Option<String>,
    /// A file that holds the URL, for secrets.
    #[arg(long, env = "LASTRO_REDIS_URL_FILE", value_name = "PATH")]
    redis_url_file: Option<PathBuf>,
    #[command(flatten)]
    bus: BusGroup,
}

/// What `lastro <service>` is told, beside the service's own settings and where the services that it calls are.
#[derive(Args)]
struct ServiceArgs {
    /// Where to serve gRPC.
    #[arg(long, env = "LASTRO_GRPC", value_name = "ADDR", default_value = "127.0.0.1:50051")]
    grpc: Setting,
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    store: StoreArgs,
    /// Whether gRPC reflection tells the public surface.
    #[arg(long, env = "LASTRO_REFLECTION", value_name = "BOOL", default_value = "false")]
    reflection: Setting,
}

/// What `lastro gateway` is told, beside where the services are.
#[derive(Args)]
pub struct GatewayArgs {
    /// Where to serve REST.
    #[arg(long, env = "LASTRO_REST", value_name = "ADDR", default_value = "127.0.0.1:8080")]
    rest: Setting,
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    edge: GatewayGroup,
}

/// [`ProcessArgs`], read and checked.
pub struct ProcessSettings {
    pub ops: SocketAddr,
    pub security: Security,
    pub data: Option<PathBuf>,
    pub log: String,
    pub otlp_endpoint: Option<String>,
    pub trace_percent: u32,
    pub concurrency_max: usize,
    pub deadline_max: Duration,
    pub drain_linger: Duration,
    pub connections: ConnectionLimits,
}

/// [`StoreArgs`], read and checked.
pub struct StoreSettings {
    pub database_url: PostgresUrl,
    pub database_connections: u32,
    pub redis_url: String,
    pub topic_bytes_max: u64,
}

/// The settings of `lastro <service>`.
pub struct ServiceSettings {
    pub grpc: SocketAddr,
    pub process: ProcessSettings,
    pub store: StoreSettings,
    pub reflection: bool,
    /// The service's own.
    pub own: Settings,
    /// Where each service is that it calls.
    pub places: Places,
}

/// The settings of `lastro gateway`.
pub struct GatewaySettings {
    pub rest: SocketAddr,
    pub process: ProcessSettings,
    pub places: Places,
    pub rate_limits: lastro_gateway::Limits,
    pub cors_origins: Vec<String>,
}

/// Where services are, by name: host:port each.
pub type Places = HashMap<&'static str, Vec<String>>;

/// A mistake was reported for whatever could not be read, so that this is never seen.
fn missing() -> Invalid {
    Invalid(vec!["a setting is missing".to_owned()])
}

/// A secret, from the flag or from the file that the flag `<name>-file` names; a mistake if both are given.
pub fn given_or_in_file(problems: &mut Problems, name: &str, given: Option<&str>, file: Option<&Path>) -> Option<String> {
    match (given, file) {
        (Some(_), Some(_)) => problems.add(format!("{name} and {name}-file: give one of them")),
        (Some(given), None) => return Some(given.to_owned()),
        (None, Some(file)) => match std::fs::read_to_string(file) {
            Ok(text) => return Some(text.trim().to_owned()),
            Err(error) => problems.add(format!("{name}-file {}: {error}", file.display())),
        },
        (None, None) => {}
    }
    None
}

impl ProcessArgs {
    /// `listens` and `calls` are the addresses that plain text must not leave this machine by.
    fn read(self, problems: &mut Problems, listens: Option<SocketAddr>, calls: &[String]) -> Option<ProcessSettings> {
        let ops = problems.take_address("--ops", &self.ops);
        let trace_percent = problems.take_within("--trace-percent", &self.trace_percent, 0..=100);
        let concurrency_max = problems.take_within("--concurrency-max", &self.concurrency_max, 1..=1_000_000);
        let deadline_max = problems.take_within("--deadline-max", &self.deadline_max, 1..=35);
        let drain_linger = problems.take_within("--drain-linger", &self.drain_linger, 0..=60);
        let plaintext = problems.take::<bool>("--plaintext", &self.plaintext);
        let connections = self.connections.read(problems);
        if self.otlp_endpoint.as_ref().is_some_and(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
            problems.add("--otlp-endpoint: must begin with http:// or https://");
        }
        let security = if plaintext? {
            loopback(problems, listens, calls)
        } else {
            mutual(problems, [self.tls_cert, self.tls_key, self.tls_ca, self.tls_policy])
        };
        Some(ProcessSettings {
            ops: ops?,
            security: security?,
            data: self.data,
            log: self.log,
            otlp_endpoint: self.otlp_endpoint,
            trace_percent: trace_percent?,
            concurrency_max: concurrency_max?,
            deadline_max: Duration::from_secs(deadline_max?),
            drain_linger: Duration::from_secs(drain_linger?),
            connections: connections?,
        })
    }
}

fn mutual(problems: &mut Problems, paths: [Option<PathBuf>; 4]) -> Option<Security> {
    let flags = ["--tls-cert", "--tls-key", "--tls-ca", "--tls-policy"];
    for (flag, _) in flags.iter().zip(&paths).filter(|(_, path)| path.is_none()) {
        problems
            .add(format!("{flag}: is needed; `lastro certs DIR` makes one for development, --plaintext true does without on this machine itself"));
    }
    let [cert, key, ca, policy] = paths;
    let (files, policy) = (TlsFiles { cert: cert?, key: key?, ca: ca? }, policy?);
    let tls = Tls::load(files).map_err(|error| problems.add(format!("--tls-cert, --tls-key, --tls-ca: {error}"))).ok();
    let policy = Policy::read(&policy).map_err(|error| problems.add(format!("--tls-policy: {error}"))).ok();
    Some(Security::Mutual(tls?, Arc::new(policy?)))
}

fn loopback(problems: &mut Problems, listens: Option<SocketAddr>, calls: &[String]) -> Option<Security> {
    if listens.is_some_and(|address| !address.ip().is_loopback()) {
        problems.add("--plaintext: services listen in plain text on loopback addresses only, such as 127.0.0.1");
    }
    for place in calls {
        let elsewhere = place.to_socket_addrs().map_or(true, |mut addresses| addresses.any(|address| !address.ip().is_loopback()));
        if elsewhere {
            problems.add(format!("--plaintext: {place} is not on this machine; services call in plain text on loopback only"));
        }
    }
    Some(Security::Loopback)
}

impl StoreArgs {
    fn read(self, problems: &mut Problems) -> Option<StoreSettings> {
        let database_connections = problems.take_within("--database-connections", &self.database_connections, 4..=1000);
        let mut url = |name: &str, given: Option<&str>, file: Option<&Path>| {
            if given.is_none() && file.is_none() {
                problems.add(format!("{name} or {name}-file: is needed"));
            }
            given_or_in_file(problems, name, given, file)
        };
        let database_url = url("--database-url", self.database_url.as_deref(), self.database_url_file.as_deref());
        let redis_url = url("--redis-url", self.redis_url.as_deref(), self.redis_url_file.as_deref());
        let database_url = database_url.and_then(|url| read_postgres_url(problems, "--database-url", &url));
        let redis_schemes = ["redis://", "rediss://", "redis+unix://"];
        if redis_url.as_ref().is_some_and(|url| !redis_schemes.iter().any(|scheme| url.starts_with(scheme))) {
            // The value may hold a password, so it is not repeated.
            problems.add(format!("--redis-url: must begin with {}", redis_schemes.join(" or ")));
        }
        let topic_bytes_max = self.bus.read(problems);
        Some(StoreSettings {
            database_url: database_url?,
            database_connections: database_connections?,
            redis_url: redis_url?,
            topic_bytes_max: topic_bytes_max?,
        })
    }
}

/// Adds a flag for where each of these services is.
fn add_places(command: Command, called: &[&'static str], why: impl Fn(&str) -> Option<&'static str>) -> Command {
    called.iter().fold(command, |command, target| {
        let what = why(target).map_or_else(String::new, |why| format!(", which {why}"));
        command.arg(
            Arg::new(*target)
                .long(*target)
                // Once for each service that there is.
                .env(&*Box::leak(format!("LASTRO_{}", target.to_uppercase()).into_boxed_str()))
                .value_name("ADDR")
                .value_delimiter(',')
                .action(ArgAction::Append)
                .help(format!("Where {target} is{what}: host:port, several with commas between them; a name may stand for several addresses")),
        )
    })
}

/// Where each of these services is looked for.
fn read_places(matches: &ArgMatches, problems: &mut Problems, called: &[&'static str]) -> Places {
    let mut places = Places::new();
    for target in called {
        let given: Vec<String> = matches.get_many::<String>(target).into_iter().flatten().cloned().collect();
        if given.is_empty() {
            problems.add(format!("--{target}: is needed, as host:port"));
        }
        for place in &given {
            if let Err(error) = lastro_mesh::outbound::check_place(place) {
                problems.add(format!("--{target}: {error}"));
            }
        }
        places.insert(target, given);
    }
    places
}

/// The command of a service.
pub fn service_command(service: &'static Service) -> Command {
    let command = (service.settings.add_to)(ServiceArgs::augment_args(Command::new(service.name)));
    let port: &'static str = Box::leak(format!("127.0.0.1:{}", service.port).into_boxed_str());
    let why = |target: &str| service.needs.iter().find(|need| need.service == target).map(|need| need.why);
    add_places(command.mut_arg("grpc", |grpc| grpc.default_value(port)), &called_by(service), why)
        .about(format!("Run {} alone: {}. On PostgreSQL and Redis; any number of replicas", service.name, service.about))
        .long_about(None)
}

impl ServiceSettings {
    /// Reads every setting, or says all that is wrong.
    pub fn read(service: &'static Service, matches: &ArgMatches) -> anyhow::Result<Self> {
        let args = ServiceArgs::from_arg_matches(matches)?;
        let mut problems = Problems::default();
        let grpc = problems.take_address("--grpc", &args.grpc);
        let places = read_places(matches, &mut problems, &called_by(service));
        let process = args.process.read(&mut problems, grpc, &places.values().flatten().cloned().collect::<Vec<_>>());
        let store = args.store.read(&mut problems);
        let own = service.settings.read(matches, &mut problems);
        let reflection = problems.take::<bool>("--reflection", &args.reflection);
        problems.check()?;
        Ok(Self {
            grpc: grpc.ok_or_else(missing)?,
            process: process.ok_or_else(missing)?,
            store: store.ok_or_else(missing)?,
            reflection: reflection.ok_or_else(missing)?,
            own: own.ok_or_else(missing)?,
            places,
        })
    }
}

/// Adds to the command of the gateway where the services are.
pub fn gateway_command(command: Command) -> Command {
    add_places(command, offered_over_rest(), |_| None)
}

impl GatewaySettings {
    /// Reads every setting, or says all that is wrong.
    pub fn read(args: GatewayArgs, matches: &ArgMatches) -> Result<Self, Invalid> {
        let mut problems = Problems::default();
        let rest = problems.take_address("--rest", &args.rest);
        let places = read_places(matches, &mut problems, offered_over_rest());
        let process = args.process.read(&mut problems, rest, &places.values().flatten().cloned().collect::<Vec<_>>());
        let rate_limits = args.edge.read_limits(&mut problems);
        problems.check()?;
        Ok(Self {
            rest: rest.ok_or_else(missing)?,
            process: process.ok_or_else(missing)?,
            places,
            rate_limits: rate_limits.ok_or_else(missing)?,
            cors_origins: args.edge.cors_origins,
        })
    }
}

impl ProcessSettings {
    /// What calls may take of a service.
    pub fn call_limits(&self) -> CallLimits {
        CallLimits { concurrency_max: self.concurrency_max, deadline_max: self.deadline_max }
    }
}
