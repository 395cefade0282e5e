//! A reader of the events of transactions as a process of its own, which a test can kill: by the bus, and by `lastro.internal.events.v1` of the
//! service's replicas, as an operator.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use lastro_events::bus::Bus;
use lastro_events::bus::redis_streams::{RedisBus, TOPIC_BYTES_MAX};
use lastro_mesh::metrics::MethodMetrics;
use lastro_mesh::outbound::{OutboundSettings, far};
use lastro_mesh::tls::{Tls, TlsFiles};
use lastro_proto::methods::{METHODS, class_of, is_retry_safe};
use lastro_tests::reader;
use tokio_util::sync::CancellationToken;

/// Usage: lastro-reader DATABASE REDIS CERTIFICATES REPLICA,REPLICA,…
#[tokio::main]
async fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let [database, redis, certificates, replicas] = &given[..] else { return Err(anyhow!("DATABASE REDIS CERTIFICATES REPLICAS")) };
    let file = |name: &str| PathBuf::from(certificates).join(name);
    let tls =
        Tls::load(TlsFiles { cert: file("operator.pem"), key: file("operator.key"), ca: file("ca.pem") }).map_err(|error| anyhow!("{error}"))?;
    let connection = far("transactions", replicas.split(',').map(str::to_owned).collect(), Some(tls));
    let metrics = Arc::new(MethodMetrics::outbound("reader", METHODS.iter().map(|method| method.path)));
    let publisher = OutboundSettings::new("transactions", is_retry_safe, class_of, metrics).wrap(connection);
    let source = lastro_service::events::source(reader::STORE.topic, publisher);
    let database = reader::open(database).await?;
    reader::run(&database, source, Bus::Redis(RedisBus::new(redis, TOPIC_BYTES_MAX)?), CancellationToken::new()).await;
    Ok(())
}
