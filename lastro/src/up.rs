//! `lastro up`: every service in one process. They meet through generated clients and their inbound stacks, as they do on a cluster.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use lastro_customers::Administrator;
use lastro_events::bus::Bus;
use lastro_events::bus::embedded::EmbeddedBus;
use lastro_events::bus::redis_streams::RedisBus;
use lastro_events::relay::Relay;
use lastro_events::source::Near;
use lastro_gateway::Gateway;
use lastro_mesh::identity::{Caller, Revocations, TokenVerifier};
use lastro_mesh::outbound::Late;
use lastro_mesh::serve::Listener;
use lastro_service::{Given, Running, Service};
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::banner::{self, Listening};
use crate::cli::UpSettings;
use crate::data_dir::DataDir;
use crate::print;
use crate::process::{Process, Telemetry, bind};
use crate::routes::{Common, Dispatch, inbound, inbound_common, keys_of, outbound};
use crate::services::policy::parsed_policy;
use crate::services::run::keep_fresh;
use crate::services::{IDENTITY, SERVICES, by_name, channels_of_gateway, readers_of, topics_of};
use crate::storage::Storage;

/// `lastro up` when it serves.
pub struct Begun {
    /// Where REST is.
    pub rest: SocketAddr,
    /// Ends it when it is cancelled; is cancelled by SIGTERM and Ctrl-C.
    pub stop: CancellationToken,
}

/// Runs until SIGTERM or Ctrl-C.
pub async fn up(settings: UpSettings) -> Result<()> {
    run(settings, |listening, administrator, data, _| announce(listening, administrator, data)).await
}

/// Runs inside another program, which is told when it serves.
pub async fn up_within(settings: UpSettings, begun: impl FnOnce(Begun)) -> Result<()> {
    run(settings, |listening, _, _, stop| begun(Begun { rest: listening.rest, stop: stop.clone() })).await
}

async fn run(settings: UpSettings, serves: impl FnOnce(&Listening, Option<&Administrator>, &DataDir, &CancellationToken)) -> Result<()> {
    let telemetry = Telemetry { filter: &settings.log, otlp_endpoint: settings.otlp_endpoint.as_deref(), trace_percent: settings.trace_percent };
    let process = Process::start("lastro", &telemetry)?;
    let data = DataDir::open(&settings.data)?;
    // Bound before anything is made, so that a port that is taken costs nothing.
    let (rest, grpc, operations) = (bind("--rest", settings.rest).await?, bind("--grpc", settings.grpc).await?, bind("--ops", settings.ops).await?);
    let storage = match &settings.database_url {
        Some(url) => Storage::open_postgres(url, settings.database_connections).await?,
        None => Storage::open_sqlite(&data).await?,
    };
    let bus = start_bus(&settings, &storage, &process)?;
    let administrator = admin::ensure(&admin::customers_of(storage.of(identity()?).clone()).await?, &data).await?;

    // Services call each other: every way leads to a place where the service is put once it has started.
    let places: HashMap<&'static str, Late> = SERVICES.iter().map(|service| (service.name, Late::default())).collect();
    // What the policy refuses on a cluster is refused here too, so that whoever adds a call learns of it at once.
    let policy = parsed_policy()?;
    let channel = |caller: &'static str, target: &'static str| {
        let way = places[target].called_by(caller, policy.caller(caller).unwrap_or_else(Caller::on_loopback));
        outbound(caller, target, way, settings.concurrency_max)
    };
    // One list of dead tokens: whoever ends a session in this process ends it for all.
    let revoked = Revocations::default();
    let mut outside = Vec::new();
    for service in SERVICES {
        let given = Given {
            database: storage.of(service).clone(),
            bus: bus.clone(),
            revoked: revoked.clone(),
            settings: settings.own[service.name].clone(),
            channels: service.needs.iter().map(|need| (need.service, channel(service.name, need.service))).collect(),
            topics: topics_of(service, &bus, |publisher, store| match &bus {
                Bus::Embedded(_) => Near::source(store, storage.of(publisher)),
                Bus::Redis(_) => lastro_service::events::source(store.topic, channel(service.name, publisher.name)),
            }),
        };
        let Running { public, all, keys, jobs, .. } = (service.start)(given).await.with_context(|| format!("{} cannot start", service.name))?;
        let verifier = match keys {
            Some(keys) => TokenVerifier::new(keys, None, revoked.clone()),
            None => {
                let kept = data.private_file(&format!("{}.jwks.json", service.name))?;
                TokenVerifier::new(keys_of(channel(service.name, IDENTITY)), Some(kept), revoked.clone())
            }
        };
        let verifier = Arc::new(verifier);
        keep_fresh(&process, &verifier);
        let inbound = inbound(service, &verifier, settings.call_limits(), &process.stop);
        places[service.name].set(inbound.wrap(lastro_service::events::add_to(all, service, storage.of(service), readers_of)));
        outside.extend(Dispatch::public_of(service, &inbound.wrap(public)));
        jobs.into_iter().for_each(|job| process.keep_working(service.name, job));
    }

    let gateway_verifier = Arc::new(TokenVerifier::new(keys_of(channel(lastro_gateway::NAME, IDENTITY)), None, revoked));
    keep_fresh(&process, &gateway_verifier);
    let gateway = Gateway::new(lastro_gateway::Settings {
        channels: channels_of_gateway(|service| channel(lastro_gateway::NAME, service)),
        verifier: gateway_verifier.clone(),
        limits: settings.rate_limits,
        concurrency_max: settings.concurrency_max,
        cors_origins: settings.cors_origins.clone(),
        health: process.health.clone(),
    });
    let common = Common::new();
    let others = inbound_common(&gateway_verifier, settings.call_limits(), &process.stop).wrap(common.routes(settings.reflection)?);
    let dispatch = Dispatch { services: outside, rest: others };

    let listening = Listening { rest: rest.local_addr()?, grpc: grpc.local_addr()?, ops: operations.local_addr()? };
    for service in SERVICES {
        let check = Box::leak(format!("{} database", service.name).into_boxed_str());
        storage.of(service).ping().await.with_context(|| format!("the {check} does not answer"))?;
        process.watch_database(check, storage.of(service));
    }
    common.keep_following(&process);
    process.serve_ops(operations);
    process.drain_on_stop();
    serves(&listening, administrator.as_ref(), &data, &process.stop);

    let open = |tcp| Listener { limits: settings.connections.clone(), ..Listener::open(tcp) };
    let serve_grpc = lastro_mesh::serve::serve_grpc(open(grpc), process.stop.clone(), dispatch.open_to(&settings.cors_origins));
    tokio::join!(serve_grpc, lastro_gateway::serve(gateway, open(rest), process.stop.clone()));
    process.end().await;
    storage.close().await;
    Ok(())
}

fn announce(listening: &Listening, administrator: Option<&Administrator>, data: &DataDir) {
    print::line(banner::listening(listening));
    if let Some(administrator) = administrator {
        print::line(banner::first_session(listening, administrator, &data.file("admin.json").display().to_string()));
    }
}

fn identity() -> Result<&'static Service> {
    by_name(IDENTITY).context("the service that has the keys of tokens is not among the services")
}

/// The bus, and the relays that fill it where it is not embedded.
fn start_bus(settings: &UpSettings, storage: &Storage, process: &Process) -> Result<Bus> {
    let Some(url) = &settings.redis_url else { return Ok(Bus::Embedded(EmbeddedBus::default())) };
    let bus = RedisBus::new(url, settings.topic_bytes_max).context("--redis-url cannot be used")?;
    for service in SERVICES {
        for store in service.publishes {
            process.keep_relaying(service.name, Relay::new(*store, storage.of(service), &bus));
        }
    }
    Ok(Bus::Redis(bus))
}
