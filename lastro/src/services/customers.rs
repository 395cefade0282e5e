//! `lastro customers`.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use lastro_customers::{Customers, NAME};
use lastro_events::bus::Bus;
use lastro_events::bus::redis_streams::RedisBus;
use lastro_events::relay::Relay;
use lastro_mesh::identity::TokenVerifier;
use lastro_migrations::CustomersMigrator;

use super::{Grpc, connection, open_database, serve_grpc, start};
use crate::cli::CustomersArgs;
use crate::routes::{inbound, outbound, own_keys};

/// Runs until SIGTERM or Ctrl-C.
pub async fn run(args: CustomersArgs) -> Result<()> {
    let settings = args.read()?;
    let process = start(NAME, &settings.process).await?;
    let redis = RedisBus::new(&settings.store.redis_url).context("--redis-url cannot be used")?;
    let Some(database) = open_database::<CustomersMigrator>(&process, NAME, &settings.store).await? else { return Ok(()) };
    let transactions = connection(lastro_transactions::NAME, &settings.transactions, &settings.process);
    let to_transactions = outbound(NAME, lastro_transactions::NAME, transactions, settings.process.concurrency_max);
    let started = process.until_it_works("signing key", || async {
        Ok(Customers::start(database.clone(), Bus::Redis(redis.clone()), to_transactions.clone(), settings.customers.clone()).await?)
    });
    let Some(customers) = started.await else { return Ok(()) };
    let stop = process.end_of_background.clone();
    process.keep_relaying(Relay { store: lastro_customers::EVENTS, database: database.clone(), bus: redis.clone() });
    let verifier = Arc::new(TokenVerifier::new(own_keys(&customers), None, customers.revoked()));
    let (fresh, end) = (verifier.clone(), stop.clone());
    process.spawn(async move { fresh.keep_fresh(end).await });
    let grpc = Grpc {
        prefixes: &["/lastro.customers.", "/lastro.internal.customers."],
        address: settings.grpc,
        service: inbound(NAME, &verifier, settings.process.call_limits()).wrap(customers.all_routes()),
        verifier: &verifier,
        reflection: settings.reflection,
        settings: &settings.process,
        jobs: Box::pin(async move { customers.run_jobs(stop).await }),
    };
    serve_grpc(process, grpc).await?;
    database.close().await;
    Ok(())
}
