//! `lastro transactions`.

use anyhow::{Context as _, Result};
use lastro_events::bus::Bus;
use lastro_events::bus::redis_streams::RedisBus;
use lastro_events::relay::Relay;
use lastro_mesh::identity::Revocations;
use lastro_migrations::TransactionsMigrator;
use lastro_transactions::{NAME, Transactions};

use super::{Grpc, connection, open_database, serve_grpc, start, verifier};
use crate::cli::TransactionsArgs;
use crate::routes::{inbound, outbound};

/// Runs until SIGTERM or Ctrl-C.
pub async fn run(args: TransactionsArgs) -> Result<()> {
    let settings = args.read()?;
    let process = start(NAME, &settings.process).await?;
    let redis = RedisBus::new(&settings.store.redis_url).context("--redis-url cannot be used")?;
    let customers = connection(lastro_customers::NAME, &settings.customers, &settings.process);
    let revoked = Revocations::default();
    let verifier = verifier(&process, NAME, &customers, &settings.process, revoked.clone());
    let Some(database) = open_database::<TransactionsMigrator>(&process, NAME, &settings.store).await? else { return Ok(()) };
    let to_customers = outbound(NAME, lastro_customers::NAME, customers, settings.process.concurrency_max);
    let started = process.until_it_works("revoked sessions", || async {
        let (database, bus) = (database.clone(), Bus::Redis(redis.clone()));
        Ok(Transactions::start(database, bus, lastro_customers::EVENTS, to_customers.clone(), revoked.clone(), settings.transactions.clone()).await?)
    });
    let Some(transactions) = started.await else { return Ok(()) };
    let known = process.until_it_works("token keys", || async {
        anyhow::ensure!(verifier.has_keys(), "customers has not told its public keys yet");
        Ok(())
    });
    if known.await.is_none() {
        return Ok(());
    }
    let stop = process.end_of_background.clone();
    process.keep_relaying(Relay { store: lastro_transactions::EVENTS, database: database.clone(), bus: redis.clone() });
    let grpc = Grpc {
        prefixes: &["/lastro.transactions.", "/lastro.internal.transactions."],
        address: settings.grpc,
        service: inbound(NAME, &verifier, settings.process.call_limits()).wrap(transactions.all_routes()),
        verifier: &verifier,
        reflection: settings.reflection,
        settings: &settings.process,
        jobs: Box::pin(async move { transactions.run_jobs(stop).await }),
    };
    serve_grpc(process, grpc).await?;
    database.close().await;
    Ok(())
}
