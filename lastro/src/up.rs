//! `lastro up`: every service in one process. They meet through generated clients and their inbound stacks, as they do on a cluster.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use lastro_customers::Customers;
use lastro_database::Database;
use lastro_events::EventStore;
use lastro_events::bus::Bus;
use lastro_events::bus::embedded::EmbeddedBus;
use lastro_events::bus::redis_streams::RedisBus;
use lastro_events::relay::Relay;
use lastro_gateway::Gateway;
use lastro_mesh::identity::{Revocations, TokenVerifier};
use lastro_mesh::outbound::{Late, near};
use lastro_mesh::serve::Listener;
use lastro_transactions::Transactions;

use crate::admin;
use crate::banner::{self, Listening};
use crate::cli::{UpArgs, UpSettings};
use crate::data_dir::DataDir;
use crate::process::{Process, Telemetry, bind};
use crate::routes::{Common, Dispatch, inbound, keys_of_customers, outbound, own_keys};
use crate::storage::Storage;

/// Runs until SIGTERM or Ctrl-C.
pub async fn up(args: UpArgs) -> Result<()> {
    let settings = args.read()?;
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

    Customers::ensure_first_key(&storage.customers).await?;
    // The two call each other: customers is made first, and told later where transactions is.
    let transactions_inside = Late::default();
    let to_transactions = |caller| outbound(caller, lastro_transactions::NAME, transactions_inside.clone(), settings.concurrency_max);
    let customers =
        Customers::start(storage.customers.clone(), bus.clone(), to_transactions(lastro_customers::NAME), settings.customers.clone()).await?;
    let customers_verifier = Arc::new(TokenVerifier::new(own_keys(&customers), None, customers.revoked()));
    let customers_inbound = inbound(lastro_customers::NAME, &customers_verifier, settings.call_limits());
    let to_customers_inside = customers_inbound.wrap(customers.all_routes());
    let customers_outside = customers_inbound.wrap(customers.public_routes());

    let to_customers = |caller| outbound(caller, lastro_customers::NAME, near(to_customers_inside.clone(), caller), settings.concurrency_max);
    let revoked = Revocations::default();
    let transactions_verifier = Arc::new(TokenVerifier::new(
        keys_of_customers(to_customers(lastro_transactions::NAME)),
        Some(data.private_file("transactions.jwks.json")?),
        revoked.clone(),
    ));
    let (database, to_its_customers, its_settings) =
        (storage.transactions.clone(), to_customers(lastro_transactions::NAME), settings.transactions.clone());
    let transactions = Transactions::start(database, bus, lastro_customers::EVENTS, to_its_customers, revoked, its_settings).await?;
    let transactions_inbound = inbound(lastro_transactions::NAME, &transactions_verifier, settings.call_limits());
    let transactions_service = transactions_inbound.wrap(transactions.public_routes());
    transactions_inside.set(transactions_inbound.wrap(transactions.all_routes()), lastro_customers::NAME);

    let gateway_keys = keys_of_customers(to_customers(lastro_gateway::NAME));
    let gateway_verifier = Arc::new(TokenVerifier::new(gateway_keys, None, Revocations::default()));
    let gateway = Gateway::new(lastro_gateway::Settings {
        customers: to_customers(lastro_gateway::NAME),
        transactions: outbound(
            lastro_gateway::NAME,
            lastro_transactions::NAME,
            near(transactions_service.clone(), lastro_gateway::NAME),
            settings.concurrency_max,
        ),
        verifier: gateway_verifier.clone(),
        limits: settings.rate_limits,
        concurrency_max: settings.concurrency_max,
        cors_origins: settings.cors_origins.clone(),
        health: process.health.clone(),
    });
    let common = Common::new();
    let dispatch = Dispatch {
        services: vec![("/lastro.customers.", customers_outside), ("/lastro.transactions.", transactions_service)],
        rest: inbound("lastro", &customers_verifier, settings.call_limits()).wrap(common.routes(settings.reflection)?),
    };

    let administrator = admin::ensure(&customers, &data).await?;
    let listening = Listening { rest: rest.local_addr()?, grpc: grpc.local_addr()?, ops: operations.local_addr()? };
    let end = &process.end_of_background;
    let job = |customers: Customers, stop| async move { customers.run_jobs(stop).await };
    process.spawn(job(customers, end.clone()));
    let job = |transactions: Transactions, stop| async move { transactions.run_jobs(stop).await };
    process.spawn(job(transactions, end.clone()));
    for verifier in [customers_verifier, transactions_verifier, gateway_verifier] {
        let stop = end.clone();
        process.spawn(async move { verifier.keep_fresh(stop).await });
    }
    for (check, database) in [("customers database", &storage.customers), ("transactions database", &storage.transactions)] {
        database.ping().await.with_context(|| format!("the {check} does not answer"))?;
        process.watch_database(check, database);
    }
    process.spawn(Common::follow(common.reporter(), process.health.clone(), end.clone()));
    process.serve_ops(operations);
    process.drain_on_stop();
    announce(&listening, administrator.as_ref(), &data);

    let open = |tcp| Listener { limits: settings.connections.clone(), ..Listener::open(tcp) };
    let serve_grpc = lastro_mesh::serve::serve_grpc(open(grpc), process.stop.clone(), dispatch.open_to(&settings.cors_origins));
    tokio::join!(serve_grpc, lastro_gateway::serve(gateway, open(rest), process.stop.clone()));
    process.end().await;
    storage.close().await;
    Ok(())
}

#[allow(clippy::print_stdout, reason = "what a start prints")]
fn announce(listening: &Listening, administrator: Option<&lastro_customers::Administrator>, data: &DataDir) {
    println!("{}", banner::listening(listening));
    if let Some(administrator) = administrator {
        println!("{}", banner::first_session(listening, administrator, &data.file("admin.json").display().to_string()));
    }
}

/// The bus, and the relays that fill it where it is not embedded.
fn start_bus(settings: &UpSettings, storage: &Storage, process: &Process) -> Result<Bus> {
    let publishers: [(EventStore, &Database); 2] =
        [(lastro_customers::EVENTS, &storage.customers), (lastro_transactions::EVENTS, &storage.transactions)];
    let Some(url) = &settings.redis_url else {
        let publishers: HashMap<_, _> = publishers.into_iter().map(|(store, database)| (store.topic, database.clone())).collect();
        return Ok(Bus::Embedded(EmbeddedBus::new(publishers)));
    };
    let bus = RedisBus::new(url).context("--redis-url cannot be used")?;
    for (store, database) in publishers {
        let relay = Relay { store, database: database.clone(), bus: bus.clone() };
        process.keep_relaying(relay);
    }
    Ok(Bus::Redis(bus))
}
