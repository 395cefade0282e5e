//! `lastro gateway`.

use anyhow::Result;
use lastro_gateway::{Gateway, NAME};
use lastro_mesh::identity::Revocations;

use super::{connection, listener, start, verifier};
use crate::cli::GatewayArgs;
use crate::process::bind;
use crate::routes::outbound;

/// Runs until SIGTERM or Ctrl-C.
pub async fn run(args: GatewayArgs) -> Result<()> {
    let settings = args.read()?;
    let process = start(NAME, &settings.process).await?;
    let customers = connection(lastro_customers::NAME, &settings.customers, &settings.process);
    let transactions = connection(lastro_transactions::NAME, &settings.transactions, &settings.process);
    // Ready when it knows where to send calls. Whether they are answered there is for each call to find out: a gateway that left because
    // customers is away would take transactions along.
    for (check, found) in [("customers found", customers.found()), ("transactions found", transactions.found())] {
        let waited = process.until_it_works(check, || {
            let mut found = found.clone();
            async move { Ok(found.wait_for(|found| *found).await.map(|_| ())?) }
        });
        if waited.await.is_none() {
            return Ok(());
        }
    }
    let verifier = verifier(&process, NAME, &customers, &settings.process, Revocations::default());
    let concurrency_max = settings.process.concurrency_max;
    let gateway = Gateway::new(lastro_gateway::Settings {
        customers: outbound(NAME, lastro_customers::NAME, customers, concurrency_max),
        transactions: outbound(NAME, lastro_transactions::NAME, transactions, concurrency_max),
        verifier,
        limits: settings.rate_limits,
        concurrency_max,
        cors_origins: settings.cors_origins,
        health: process.health.clone(),
    });
    let listener = listener(bind("--rest", settings.rest).await?, &settings.process, false);
    tracing::info!(address = %settings.rest, "ready to serve");
    lastro_gateway::serve(gateway, listener, process.stop.clone()).await;
    process.end().await;
    Ok(())
}
