//! Background work of a service. The process supervises it: work that ends or panics is started again.

use std::pin::Pin;
use std::sync::Arc;

use lastro_events::Heartbeat;
use tokio_util::sync::CancellationToken;

/// A kind of background work, with a task of its own.
#[derive(Clone)]
pub struct Job {
    /// In logs, metrics and readiness.
    pub name: &'static str,
    /// Whether the service is not ready while the work keeps failing. Else readiness tells of it, and calls go on.
    pub is_essential: bool,
    /// Where the work says that it is alive, if it does: readiness tells of work that has said nothing for a while. Calls go on.
    pub heartbeat: Option<Heartbeat>,
    work: Arc<dyn Fn(CancellationToken) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>,
}

impl Job {
    /// Work on `of`, such as a service's use cases, without which calls cannot be answered as they should.
    pub fn essential<T, F>(name: &'static str, of: &Arc<T>, work: impl Fn(Arc<T>, CancellationToken) -> F + Send + Sync + 'static) -> Self
    where
        T: Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let of = of.clone();
        Self { name, is_essential: true, heartbeat: None, work: Arc::new(move |stop| Box::pin(work(of.clone(), stop))) }
    }

    /// Work that calls do not wait for.
    pub fn helping<T, F>(name: &'static str, of: &Arc<T>, work: impl Fn(Arc<T>, CancellationToken) -> F + Send + Sync + 'static) -> Self
    where
        T: Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        Self { is_essential: false, ..Self::essential(name, of, work) }
    }

    /// As [`helping`](Self::helping), work that says at its heartbeat that it is alive.
    pub fn beating<T, F>(name: &'static str, of: &Arc<T>, work: impl Fn(Arc<T>, Heartbeat, CancellationToken) -> F + Send + Sync + 'static) -> Self
    where
        T: Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let heartbeat = Heartbeat::default();
        let given = heartbeat.clone();
        Self { heartbeat: Some(heartbeat), ..Self::helping(name, of, move |of, stop| work(of, given.clone(), stop)) }
    }

    /// Does the work until it is told to stop.
    pub fn run(&self, stop: CancellationToken) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        (self.work)(stop)
    }
}
