//! What every process has, whatever it serves: logs, metrics, readiness, background work, and its end.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lastro_database::Database;
use lastro_events::Heartbeat;
use lastro_events::relay::Relay;
use lastro_mesh::health::Health;
use lastro_mesh::metrics::PrometheusHandle;
use lastro_mesh::serve::{ConnectionLimits, Listener};
use lastro_mesh::supervise::{Work, keep_running};
use lastro_service::Job;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ops;

const PING_EVERY: Duration = Duration::from_millis(500);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// Work that is alive says so at least every few seconds: a consumer tries for 5 s, and pauses for 2 s.
const STUCK_AFTER: Duration = Duration::from_secs(10);
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Logs and traces of a process.
pub struct Telemetry<'a> {
    pub filter: &'a str,
    pub otlp_endpoint: Option<&'a str>,
    pub trace_percent: u32,
}

/// A process until it ends.
pub struct Process {
    /// Cancelled by the first SIGTERM or Ctrl-C.
    pub stop: CancellationToken,
    pub health: Health,
    /// Cancelled when what is in flight has ended.
    pub end_of_background: CancellationToken,
    background: TaskTracker,
    metrics: PrometheusHandle,
    /// Held for what it still has to write.
    _logs: lastro_mesh::logs::Guard,
}

impl Process {
    /// Starts logs, metrics and the watch for signals.
    pub fn start(name: &'static str, telemetry: &Telemetry<'_>) -> Result<Self> {
        // Each connection takes one. Where it cannot be raised, the limits of the listeners are what is left.
        let _ = rlimit::increase_nofile_limit(u64::MAX);
        let logs = lastro_mesh::logs::start(telemetry.filter, name, telemetry.otlp_endpoint, telemetry.trace_percent);
        let process = Self {
            _logs: logs.map_err(anyhow::Error::msg)?,
            metrics: lastro_mesh::metrics::install()?,
            stop: lastro_mesh::shutdown::on_signal()?,
            health: Health::new(),
            end_of_background: CancellationToken::new(),
            background: TaskTracker::new(),
        };
        let metrics = Arc::new(process.metrics.clone());
        process.keep_working("process", Job::helping("metrics", &metrics, |metrics, stop| async move { keep_metrics(&metrics, stop).await }));
        Ok(process)
    }

    /// Publishes a service's events in the background.
    pub fn keep_relaying(&self, service: &'static str, relay: Relay) {
        let relay = Arc::new(relay);
        self.keep_working(service, Job::helping("relay", &relay, |relay, stop| async move { relay.run(stop).await }));
        self.keep_working(service, Job::helping("lag of the relay", &relay, |relay, stop| async move { relay.measure(stop).await }));
    }

    /// Background work of a service, supervised until the process ends.
    pub fn keep_working(&self, service: &'static str, job: Job) {
        let (stop, health) = (self.end_of_background.clone(), self.health.clone());
        // Once for each kind of work, for as long as the process lives.
        let check = Box::leak(format!("{service}: {}", job.name).into_boxed_str());
        let work = Work { name: job.name, check, is_essential: job.is_essential };
        if let Some(heartbeat) = job.heartbeat.clone() {
            self.watch_heartbeat(Box::leak(format!("{check} (stuck)").into_boxed_str()), heartbeat);
        }
        self.spawn(async move { keep_running(work, &health, &stop, || job.run(stop.clone())).await });
    }

    /// Lists work as degraded that has not said for a while that it is alive.
    fn watch_heartbeat(&self, what: &'static str, heartbeat: Heartbeat) {
        let (stop, health) = (self.end_of_background.clone(), self.health.clone());
        self.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(PING_EVERY) => health.set_degraded(what, heartbeat.age() > STUCK_AFTER),
                }
            }
        });
    }

    /// Work in the background, to end when `end_of_background` is cancelled.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.background.spawn(work);
    }

    /// Serves `/livez`, `/readyz` and `/metrics` to the very end.
    pub fn serve_ops(&self, listener: TcpListener) {
        // It keeps its own few: whoever fills the others must not keep an operator from seeing it.
        let listener = Listener {
            limits: ConnectionLimits { per_address: 64, in_all: 256, streams: 16, ..ConnectionLimits::default() },
            ..Listener::open(listener)
        };
        self.spawn(ops::serve(listener, self.end_of_background.clone(), self.health.clone(), self.metrics.clone()));
    }

    /// Makes readiness depend on a database that answered a moment ago.
    pub fn watch_database(&self, check: &'static str, database: &Database) {
        self.health.set(check, true);
        let watched = Arc::new((database.clone(), self.health.clone()));
        let watch = Job::essential("watching the database", &watched, move |watched, stop| async move {
            watch_database(check, &watched.0, &watched.1, stop).await;
        });
        self.keep_working("process", watch);
    }

    /// Makes the process not ready as soon as it is told to stop.
    pub fn drain_on_stop(&self) {
        let (stop, health) = (self.stop.clone(), self.health.clone());
        tokio::spawn(async move {
            stop.cancelled().await;
            health.set("not draining", false);
        });
    }

    /// Tries to get to work until it can; None when told to stop before that. What is in the way is logged, and shows in readiness.
    pub async fn until_it_works<T, F>(&self, what: &'static str, mut attempt: impl FnMut() -> F) -> Option<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.health.set(what, false);
        let mut said = String::new();
        loop {
            let outcome = tokio::select! {
                () = self.stop.cancelled() => return None,
                outcome = attempt() => outcome,
            };
            match outcome {
                Ok(works) => {
                    self.health.set(what, true);
                    return Some(works);
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if error != said {
                        tracing::warn!(error, "{what}: not yet; trying on");
                        said = error;
                    }
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep(TRY_AGAIN_AFTER) => {}
            }
        }
    }

    /// Ends the background work and waits for it.
    pub async fn end(self) {
        self.end_of_background.cancel();
        self.background.close();
        self.background.wait().await;
    }
}

/// Listens, or says with which flag it could not.
pub async fn bind(flag: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{flag} {address} cannot be listened on"))
}

/// Histograms gather single values until somebody sums them up, whether or not anybody reads the metrics.
async fn keep_metrics(metrics: &PrometheusHandle, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(UPKEEP_EVERY) => metrics.run_upkeep(),
        }
    }
}

async fn watch_database(check: &'static str, database: &Database, health: &Health, stop: CancellationToken) {
    let (mut answered, mut was_away) = (true, false);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PING_EVERY) => {}
        }
        let pinged = tokio::time::timeout(PING_TIMEOUT, database.ping()).await;
        let answers = matches!(pinged, Ok(Ok(())));
        was_away |= matches!(&pinged, Ok(Err(error)) if !error.is_of_full_pool());
        if answers && !answered && was_away {
            // What was opened before may remember what is over, such as that it takes no writes. After mere load it is not distrusted: to open all
            // anew is the last thing that a busy database needs.
            database.distrust_connections();
            was_away = false;
        }
        answered = answers;
        health.set(check, answers);
    }
}
