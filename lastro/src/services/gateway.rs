//! `lastro gateway`.

use std::collections::HashMap;

use anyhow::Result;
use lastro_gateway::{Gateway, NAME};
use lastro_mesh::identity::Revocations;
use lastro_mesh::outbound::Far;

use super::run::{connection, keep_fresh, listener, start, verifier};
use super::{IDENTITY, channels_of_gateway, offered_over_rest};
use crate::cli::GatewaySettings;
use crate::process::bind;
use crate::routes::{keys_of, outbound};

/// Runs until SIGTERM or Ctrl-C.
pub async fn run(settings: GatewaySettings) -> Result<()> {
    let process = start(NAME, &settings.process).await?;
    let connections: HashMap<&'static str, Far> = offered_over_rest()
        .iter()
        .map(|target| (*target, connection(target, settings.places.get(target).map(Vec::as_slice).unwrap_or_default(), &settings.process)))
        .collect();
    // Ready when it knows where to send calls. Whether they are answered there is for each call to find out: a gateway that left because one
    // service is away would take the others along.
    for target in offered_over_rest().iter().copied() {
        let (check, found) = (Box::leak(format!("{target} found").into_boxed_str()), connections[target].found());
        let waited = process.until_it_works(check, || {
            let mut found = found.clone();
            async move { Ok(found.wait_for(|found| *found).await.map(|_| ())?) }
        });
        if waited.await.is_none() {
            return Ok(());
        }
    }
    // Each use has a stack of its own over the same connections: calls of clients do not pause because asking for keys fails.
    let channel = |target: &'static str| outbound(NAME, target, connections[target].clone(), settings.process.concurrency_max);
    let verifier = verifier(NAME, keys_of(channel(IDENTITY)), &settings.process, Revocations::default());
    keep_fresh(&process, &verifier);
    let gateway = Gateway::new(lastro_gateway::Settings {
        channels: channels_of_gateway(channel),
        verifier,
        limits: settings.rate_limits,
        concurrency_max: settings.process.concurrency_max,
        cors_origins: settings.cors_origins,
        health: process.health.clone(),
    });
    let listener = listener(bind("--rest", settings.rest).await?, &settings.process, false);
    tracing::info!(address = %settings.rest, "ready to serve");
    lastro_gateway::serve(gateway, listener, process.stop.clone()).await;
    process.end().await;
    Ok(())
}
