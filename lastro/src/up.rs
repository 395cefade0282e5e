//! `lastro up`: every service in one process. They meet through generated clients and their inbound stacks, as they do on a cluster.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lastro_customers::Customers;
use lastro_database::Database;
use lastro_events::EventStore;
use lastro_events::bus::Bus;
use lastro_events::bus::embedded::EmbeddedBus;
use lastro_events::bus::redis_streams::RedisBus;
use lastro_events::relay::Relay;
use lastro_gateway::Gateway;
use lastro_mesh::health::Health;
use lastro_mesh::identity::{KeySource, PublicKey, RevokedSessions, TokenVerifier};
use lastro_mesh::metrics::PrometheusHandle;
use lastro_mesh::outbound::Outbound;
use lastro_proto::customers::v1::GetJwksRequest;
use lastro_proto::customers::v1::auth_service_client::AuthServiceClient;
use lastro_transactions::Transactions;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::banner::{self, Listening};
use crate::cli::{UpArgs, UpSettings};
use crate::data_dir::DataDir;
use crate::routes::{Common, Dispatch, inbound, outbound};
use crate::storage::Storage;
use crate::{admin, ops};

const PING_EVERY: Duration = Duration::from_millis(500);
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs until SIGTERM or Ctrl-C.
pub async fn up(args: UpArgs) -> Result<()> {
    let settings = args.read()?;
    let _logs =
        lastro_mesh::logs::start(&settings.log, "lastro", settings.otlp_endpoint.as_deref(), settings.trace_percent).map_err(anyhow::Error::msg)?;
    let metrics = lastro_mesh::metrics::install()?;
    let stop = lastro_mesh::shutdown::on_signal()?;
    let data = DataDir::open(&settings.data)?;
    // Bound before anything is made, so that a port that is taken costs nothing.
    let (rest, grpc, operations) = (bind("--rest", settings.rest).await?, bind("--grpc", settings.grpc).await?, bind("--ops", settings.ops).await?);
    let storage = match &settings.database_url {
        Some(url) => Storage::open_postgres(url, settings.database_connections).await?,
        None => Storage::open_sqlite(&data).await?,
    };
    let (health, background) = (Health::new(), TaskTracker::new());
    let end_of_background = CancellationToken::new();
    let bus = start_bus(&settings, &storage, &background, &end_of_background)?;

    let customers = Customers::start(storage.customers.clone(), bus.clone(), settings.customers.clone()).await?;
    let customers_verifier = Arc::new(TokenVerifier::new(own_keys(&customers), None, customers.revoked()));
    let customers_inbound = inbound(lastro_customers::NAME, &customers_verifier, settings.concurrency_max);
    let to_customers_inside = customers_inbound.wrap(customers.all_routes());
    let customers_outside = customers_inbound.wrap(customers.public_routes());

    let to_customers = |caller| outbound(caller, lastro_customers::NAME, &to_customers_inside, settings.concurrency_max);
    let revoked = RevokedSessions::default();
    let transactions_verifier = Arc::new(TokenVerifier::new(
        keys_of_customers(to_customers(lastro_transactions::NAME)),
        Some(data.private_file("transactions.jwks.json")?),
        revoked.clone(),
    ));
    let transactions =
        Transactions::start(storage.transactions.clone(), bus, lastro_customers::EVENTS, to_customers(lastro_transactions::NAME), revoked).await?;
    let transactions_inbound = inbound(lastro_transactions::NAME, &transactions_verifier, settings.concurrency_max);
    let transactions_service = transactions_inbound.wrap(transactions.public_routes());

    let gateway = Gateway::new(lastro_gateway::Settings {
        customers: to_customers(lastro_gateway::NAME),
        transactions: outbound(lastro_gateway::NAME, lastro_transactions::NAME, &transactions_service, settings.concurrency_max),
        verifier: Arc::new(TokenVerifier::new(keys_of_customers(to_customers(lastro_gateway::NAME)), None, RevokedSessions::default())),
        limits: settings.rate_limits,
        cors_origins: settings.cors_origins.clone(),
        health: health.clone(),
    });
    let common = Common::new();
    let dispatch = Dispatch {
        services: vec![("/lastro.customers.", customers_outside), ("/lastro.transactions.", transactions_service)],
        rest: inbound("lastro", &customers_verifier, settings.concurrency_max).wrap(common.routes(settings.reflection)?),
    };

    let administrator = admin::ensure(&customers, &data).await?;
    let listening = Listening { rest: rest.local_addr()?, grpc: grpc.local_addr()?, ops: operations.local_addr()? };
    let job = |customers: Customers, stop| async move { customers.run_jobs(stop).await };
    background.spawn(job(customers, end_of_background.clone()));
    let job = |transactions: Transactions, stop| async move { transactions.run_jobs(stop).await };
    background.spawn(job(transactions, end_of_background.clone()));
    for (check, database) in [("customers database", &storage.customers), ("transactions database", &storage.transactions)] {
        database.ping().await.with_context(|| format!("the {check} does not answer"))?;
        health.set(check, true);
        background.spawn(watch_database(check, database.clone(), health.clone(), end_of_background.clone()));
    }
    background.spawn(Common::follow(common.reporter(), health.clone(), end_of_background.clone()));
    background.spawn(keep_metrics(metrics.clone(), end_of_background.clone()));
    background.spawn(ops::serve(operations, end_of_background.clone(), health.clone(), metrics));
    announce(&listening, administrator.as_ref(), &data);

    let (drain, ready) = (stop.clone(), health.clone());
    tokio::spawn(async move {
        drain.cancelled().await;
        ready.set("not draining", false);
    });
    tokio::join!(lastro_mesh::serve::serve_grpc(grpc, stop.clone(), dispatch.boxed()), lastro_gateway::serve(gateway, rest, stop.clone()));
    end_of_background.cancel();
    background.close();
    background.wait().await;
    storage.close().await;
    Ok(())
}

async fn bind(flag: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{flag} {address} cannot be listened on"))
}

#[allow(clippy::print_stdout, reason = "what a start prints")]
fn announce(listening: &Listening, administrator: Option<&lastro_customers::Administrator>, data: &DataDir) {
    println!("{}", banner::listening(listening));
    if let Some(administrator) = administrator {
        println!("{}", banner::first_session(listening, administrator, &data.file("admin.json").display().to_string()));
    }
}

/// The bus, and the relays that fill it where it is not embedded.
fn start_bus(settings: &UpSettings, storage: &Storage, background: &TaskTracker, stop: &CancellationToken) -> Result<Bus> {
    let publishers: [(EventStore, &Database); 2] =
        [(lastro_customers::EVENTS, &storage.customers), (lastro_transactions::EVENTS, &storage.transactions)];
    let Some(url) = &settings.redis_url else {
        let publishers: HashMap<_, _> = publishers.into_iter().map(|(store, database)| (store.topic, database.clone())).collect();
        return Ok(Bus::Embedded(EmbeddedBus::new(publishers)));
    };
    let bus = RedisBus::new(url).context("--redis-url cannot be used")?;
    for (store, database) in publishers {
        let relay = Relay { store, database: database.clone(), bus: bus.clone() };
        background.spawn(relay.run(stop.clone()));
    }
    Ok(Bus::Redis(bus))
}

/// Customers verifies tokens with its own keys.
fn own_keys(customers: &Customers) -> KeySource {
    let customers = customers.clone();
    Box::new(move || {
        let customers = customers.clone();
        Box::pin(async move { customers.public_keys().await.ok() })
    })
}

/// Everybody else asks for them.
fn keys_of_customers(customers: Outbound) -> KeySource {
    let client = AuthServiceClient::new(customers);
    Box::new(move || {
        let mut client = client.clone();
        Box::pin(async move {
            let call = lastro_mesh::call::Call::start(Duration::from_secs(2));
            let jwks = client.get_jwks(call.request(GetJwksRequest {})).await.ok()?.into_inner();
            Some(jwks.keys.into_iter().map(|key| PublicKey { kid: key.kid, x: key.x }).collect())
        })
    })
}

/// Histograms gather single values until somebody sums them up, whether or not anybody reads the metrics.
async fn keep_metrics(metrics: PrometheusHandle, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(UPKEEP_EVERY) => metrics.run_upkeep(),
        }
    }
}

async fn watch_database(check: &'static str, database: Database, health: Health, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PING_EVERY) => {}
        }
        let answers = tokio::time::timeout(PING_TIMEOUT, database.ping()).await.is_ok_and(|pinged| pinged.is_ok());
        health.set(check, answers);
    }
}
