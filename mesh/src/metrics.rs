//! Prometheus metrics: one recorder a process, and handles that are made once a method so that a call only adds to atomics.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Histogram, counter, histogram};
pub use metrics_exporter_prometheus::PrometheusHandle;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use tonic::Code;

/// Upper bounds of the latency buckets, in seconds.
const LATENCY_BUCKETS_S: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0];

/// Installs the process's recorder. Call once; a second call answers an error.
pub fn install() -> Result<PrometheusHandle, metrics_exporter_prometheus::BuildError> {
    PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &LATENCY_BUCKETS_S)?.install_recorder()
}

/// Metric handles by the method's path on the wire.
pub struct MethodMetrics {
    methods: HashMap<&'static str, Arc<Handles>>,
    other: Arc<Handles>,
}

/// The handles of one method.
pub struct Handles {
    total: String,
    service: &'static str,
    method: String,
    ok: Counter,
    latency: Histogram,
}

impl MethodMetrics {
    /// Handles for these paths; calls to any other path are counted together as `other`.
    pub fn new(service: &'static str, paths: impl IntoIterator<Item = &'static str>) -> Self {
        Self::named("lastro_rpc", service, paths)
    }

    /// As [`new`](Self::new), for the calls that a service makes.
    pub fn outbound(service: &'static str, paths: impl IntoIterator<Item = &'static str>) -> Self {
        Self::named("lastro_outbound", service, paths)
    }

    fn named(prefix: &'static str, service: &'static str, paths: impl IntoIterator<Item = &'static str>) -> Self {
        let handles = |path: &str| Arc::new(Handles::new(prefix, service, path.trim_start_matches('/')));
        Self { methods: paths.into_iter().map(|path| (path, handles(path))).collect(), other: handles("other") }
    }

    /// The handles of a path.
    pub fn of(&self, path: &str) -> Arc<Handles> {
        self.methods.get(path).unwrap_or(&self.other).clone()
    }
}

impl Handles {
    fn new(prefix: &'static str, service: &'static str, method: &str) -> Self {
        let total = format!("{prefix}_total");
        Self {
            ok: counter!(total.clone(), "service" => service, "method" => method.to_owned(), "code" => "Ok"),
            latency: histogram!(format!("{prefix}_duration_seconds"), "service" => service, "method" => method.to_owned()),
            total,
            service,
            method: method.to_owned(),
        }
    }

    /// Counts one call.
    pub fn record(&self, code: Code, elapsed: Duration) {
        self.latency.record(elapsed);
        match code {
            Code::Ok => self.ok.increment(1),
            code => {
                counter!(self.total.clone(), "service" => self.service, "method" => self.method.clone(), "code" => format!("{code:?}")).increment(1);
            }
        }
    }
}
