//! Services that run as processes of their own. Each starts before what it depends on, listens when it can work, and ends without a call
//! that fails.

pub mod customers;
pub mod gateway;
pub mod transactions;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use lastro_database::Database;
use lastro_mesh::identity::{Revocations, TokenVerifier};
use lastro_mesh::inbound::GrpcService;
use lastro_mesh::outbound::{Far, far};
use lastro_mesh::serve::{Drain, Listener, Security};
use lastro_mesh::tls::Tls;
use lastro_migrations::MigratorTrait;
use tokio::net::TcpListener;

use crate::cli::{ProcessSettings, StoreSettings};
use crate::process::{Process, Telemetry, bind};
use crate::routes::{Common, Dispatch, inbound, keys_of_customers, outbound};

/// Starts the process of a service; its operations port answers from now on, and says that it is not ready.
async fn start(name: &'static str, settings: &ProcessSettings) -> Result<Process> {
    let telemetry = Telemetry { filter: &settings.log, otlp_endpoint: settings.otlp_endpoint.as_deref(), trace_percent: settings.trace_percent };
    let process = Process::start(name, &telemetry)?;
    process.serve_ops(bind("--ops", settings.ops).await?);
    if let Security::Mutual(tls, _) = &settings.security {
        let (tls, stop) = (tls.clone(), process.end_of_background.clone());
        process.spawn(async move { tls.follow(stop).await });
    }
    process.drain_on_stop();
    Ok(process)
}

/// The service's database, once it answers and has the tables that this version needs; None when told to stop before that.
async fn open_database<M: MigratorTrait>(process: &Process, name: &'static str, settings: &StoreSettings) -> Result<Option<Database>> {
    let (url, connections_max) = (&settings.database_url, settings.database_connections);
    let database = Database::connect_postgres(url, &format!("lastro_{name}"), connections_max).context("--database-url cannot be used")?;
    let opened = process.until_it_works("database", || async {
        database.ping().await?;
        let missing = lastro_migrations::missing::<M>(&database).await.context("its tables cannot be seen; `lastro migrate` makes them")?;
        anyhow::ensure!(missing.is_empty(), "its tables lack {}; `lastro migrate` brings them to this version", missing.join(", "));
        Ok(())
    });
    if opened.await.is_none() {
        return Ok(None);
    }
    process.watch_database("database", &database);
    Ok(Some(database))
}

/// The connection to another service.
fn connection(target: &'static str, places: &[String], settings: &ProcessSettings) -> Far {
    far(target, places.to_vec(), tls_of(&settings.security))
}

fn tls_of(security: &Security) -> Option<Arc<Tls>> {
    match security {
        Security::Mutual(tls, _) => Some(tls.clone()),
        Security::Open | Security::Loopback => None,
    }
}

/// Verifies tokens with the keys of customers, which are kept fresh, and on disk where there is a folder for it.
fn verifier(process: &Process, name: &'static str, customers: &Far, settings: &ProcessSettings, revoked: Revocations) -> Arc<TokenVerifier> {
    let disk: Option<PathBuf> = settings.data.as_ref().map(|folder| folder.join(format!("{name}.jwks.json")));
    let keys = keys_of_customers(outbound(name, lastro_customers::NAME, customers.clone(), settings.concurrency_max));
    let verifier = Arc::new(TokenVerifier::new(keys, disk, revoked));
    let (fresh, stop) = (verifier.clone(), process.end_of_background.clone());
    process.spawn(async move { fresh.keep_fresh(stop).await });
    verifier
}

fn listener(tcp: TcpListener, settings: &ProcessSettings, at_once: bool) -> Listener {
    Listener {
        tcp,
        security: settings.security.clone(),
        drain: Drain { linger: settings.drain_linger, at_once },
        limits: settings.connections.clone(),
    }
}

/// Serves a service, health and reflection on one listener until the process is told to stop, and then until what is in flight has ended.
async fn serve_grpc(process: Process, grpc: Grpc<'_>) -> Result<()> {
    let Grpc { prefixes, address, service, verifier, reflection, settings, jobs } = grpc;
    let common = Common::new();
    let others = inbound("lastro", verifier, settings.call_limits()).wrap(common.routes(reflection)?);
    let dispatch = Dispatch { services: prefixes.iter().map(|prefix| (*prefix, service.clone())).collect(), rest: others };
    let listener = listener(bind("--grpc", address).await?, settings, true);
    tracing::info!(%address, "ready to serve");
    process.spawn(Common::follow(common.reporter(), process.health.clone(), process.end_of_background.clone()));
    process.spawn(jobs);
    lastro_mesh::serve::serve_grpc(listener, process.stop.clone(), dispatch.boxed()).await;
    process.end().await;
    Ok(())
}

/// What [`serve_grpc`] serves.
struct Grpc<'a> {
    /// What the paths of the service's methods begin with.
    prefixes: &'static [&'static str],
    address: std::net::SocketAddr,
    service: GrpcService,
    verifier: &'a Arc<TokenVerifier>,
    reflection: bool,
    settings: &'a ProcessSettings,
    jobs: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
}
