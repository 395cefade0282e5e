//! `lastro <service>`: one service as a process of its own. It starts before what it depends on, listens when it can work, and ends without a call
//! that fails.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::ArgMatches;
use lastro_database::Database;
use lastro_events::bus::Bus;
use lastro_events::bus::redis_streams::RedisBus;
use lastro_events::relay::Relay;
use lastro_mesh::identity::{KeySource, Revocations, TokenVerifier};
use lastro_mesh::inbound::GrpcService;
use lastro_mesh::outbound::{Far, Outbound, far};
use lastro_mesh::serve::{Drain, Listener, Security};
use lastro_mesh::tls::Tls;
use lastro_service::{Given, Job, Running, Service};
use tokio::net::TcpListener;

use super::revocations::Learner;
use super::{IDENTITY, called_by, readers_of, topics_of};
use crate::cli::{ProcessSettings, ServiceSettings, StoreSettings};
use crate::process::{Process, Telemetry, bind};
use crate::routes::{Common, Dispatch, inbound, keys_of, outbound};

/// Runs until SIGTERM or Ctrl-C.
pub async fn run(service: &'static Service, matches: &ArgMatches) -> Result<()> {
    let settings = ServiceSettings::read(service, matches)?;
    let process = start(service.name, &settings.process).await?;
    let redis = RedisBus::new(&settings.store.redis_url, settings.store.topic_bytes_max).context("--redis-url cannot be used")?;
    let connections: HashMap<&'static str, Far> = called_by(service)
        .into_iter()
        .map(|target| (target, connection(target, settings.places.get(target).map(Vec::as_slice).unwrap_or_default(), &settings.process)))
        .collect();
    // Each use has a stack of its own over the same connections: calls of the service do not pause because those of its background work fail.
    let channel = |target: &'static str| outbound(service.name, target, connections[target].clone(), settings.process.concurrency_max);
    let channels: HashMap<&'static str, Outbound> = service.needs.iter().map(|need| (need.service, channel(need.service))).collect();
    let Some(database) = open_database(&process, service, &settings.store).await? else { return Ok(()) };
    let revoked = Revocations::default();
    let bus = Bus::Redis(redis.clone());
    let topics = topics_of(service, &bus, |publisher, store| lastro_service::events::source(store.topic, channel(publisher.name)));
    let started = process.until_it_works("service", || async {
        let given = Given {
            database: database.clone(),
            bus: bus.clone(),
            revoked: revoked.clone(),
            settings: settings.own.clone(),
            channels: channels.clone(),
            topics: topics.clone(),
        };
        (service.start)(given).await
    });
    let Some(Running { all, keys, learns_revocations, jobs, .. }) = started.await else { return Ok(()) };
    let has_keys = keys.is_some();
    let verifier = match keys {
        Some(keys) => Arc::new(TokenVerifier::new(keys, None, revoked.clone())),
        None => verifier(service.name, keys_of(channel(IDENTITY)), &settings.process, revoked.clone()),
    };
    keep_fresh(&process, &verifier);
    if !has_keys {
        let known = process.until_it_works("token keys", || async {
            anyhow::ensure!(verifier.has_keys(), "{IDENTITY} has not told its public keys yet");
            Ok(())
        });
        if known.await.is_none() {
            return Ok(());
        }
    }
    if !learns_revocations {
        let learner = Arc::new(Learner::new(channel(IDENTITY), revoked));
        if process.until_it_works("revocations", || learner.learn()).await.is_none() {
            return Ok(());
        }
        process.keep_working(service.name, Job::essential("revocations", &learner, |learner, stop| async move { learner.run(stop).await }));
    }
    for store in service.publishes {
        process.keep_relaying(service.name, Relay::new(*store, &database, &redis));
    }
    jobs.into_iter().for_each(|job| process.keep_working(service.name, job));
    let all = lastro_service::events::add_to(all, service, &database, readers_of);
    let serving = inbound(service, &verifier, settings.process.call_limits(), &process.stop).wrap(all);
    serve_grpc(process, service, serving, &verifier, &settings).await?;
    database.close().await;
    Ok(())
}

/// Starts the process of a service; its operations port answers from now on, and says that it is not ready.
pub async fn start(name: &'static str, settings: &ProcessSettings) -> Result<Process> {
    let telemetry = Telemetry { filter: &settings.log, otlp_endpoint: settings.otlp_endpoint.as_deref(), trace_percent: settings.trace_percent };
    let process = Process::start(name, &telemetry)?;
    process.serve_ops(bind("--ops", settings.ops).await?);
    if let Security::Mutual(tls, _) = &settings.security {
        process.keep_working(name, Job::helping("certificates", tls, |tls, stop| async move { tls.follow(stop).await }));
    }
    process.drain_on_stop();
    Ok(process)
}

/// The service's database, once it answers and has the tables that this version needs; None when told to stop before that.
async fn open_database(process: &Process, service: &'static Service, settings: &StoreSettings) -> Result<Option<Database>> {
    let (url, connections_max) = (&settings.database_url, settings.database_connections);
    let database = Database::connect_postgres(url, &service.database_name(), connections_max).context("--database-url cannot be used")?;
    let opened = process.until_it_works("database", || async {
        database.ping().await?;
        let missing = service.migrator.missing(&database).await.context("its tables cannot be seen; `lastro migrate` makes them")?;
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
pub fn connection(target: &'static str, places: &[String], settings: &ProcessSettings) -> Far {
    far(target, places.to_vec(), tls_of(&settings.security))
}

fn tls_of(security: &Security) -> Option<Arc<Tls>> {
    match security {
        Security::Mutual(tls, _) => Some(tls.clone()),
        Security::Open | Security::Loopback => None,
    }
}

/// Verifies tokens with keys that are also kept on disk where there is a folder for it.
pub fn verifier(name: &'static str, keys: KeySource, settings: &ProcessSettings, revoked: Revocations) -> Arc<TokenVerifier> {
    let disk: Option<PathBuf> = settings.data.as_ref().map(|folder| folder.join(format!("{name}.jwks.json")));
    Arc::new(TokenVerifier::new(keys, disk, revoked))
}

/// Keeps the keys of a verifier fresh.
pub fn keep_fresh(process: &Process, verifier: &Arc<TokenVerifier>) {
    process.keep_working("process", Job::essential("token keys", verifier, |verifier, stop| async move { verifier.keep_fresh(stop).await }));
}

/// What a process listens with.
pub fn listener(tcp: TcpListener, settings: &ProcessSettings, at_once: bool) -> Listener {
    Listener {
        tcp,
        security: settings.security.clone(),
        drain: Drain { linger: settings.drain_linger, at_once },
        limits: settings.connections.clone(),
    }
}

/// Serves a service, health and reflection on one listener until the process is told to stop, and then until what is in flight has ended.
async fn serve_grpc(
    process: Process,
    service: &'static Service,
    serving: GrpcService,
    verifier: &Arc<TokenVerifier>,
    settings: &ServiceSettings,
) -> Result<()> {
    let common = Common::new();
    let others = crate::routes::inbound_common(verifier, settings.process.call_limits(), &process.stop).wrap(common.routes(settings.reflection)?);
    let dispatch = Dispatch { services: Dispatch::all_of(service, &serving), rest: others };
    let listener = listener(bind("--grpc", settings.grpc).await?, &settings.process, true);
    tracing::info!(address = %settings.grpc, "ready to serve");
    common.keep_following(&process);
    lastro_mesh::serve::serve_grpc(listener, process.stop.clone(), dispatch.boxed()).await;
    process.end().await;
    Ok(())
}
