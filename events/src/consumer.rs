//! A consumer: takes deliveries from the bus, applies each through the inbox, and acknowledges them. At least once on the wire,
//! exactly once in effect.

use std::time::Duration;

use lastro_database::{Database, Error, Transaction};
use metrics::counter;
use tokio_util::sync::CancellationToken;

use crate::bus::Subscription;
use crate::event::Event;
use crate::inbox::{self, Outcome};

/// Attempts before an event that is at fault itself becomes a dead letter.
const ATTEMPTS_MAX: u32 = 5;
const PAUSE_BASE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Why an event could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The database failed; what is transient is tried until it works.
    #[error(transparent)]
    Database(#[from] Error),
    /// The event itself cannot be applied.
    #[error("{0}")]
    Event(String),
}

/// What a service does with the events of others.
pub trait Handler: Send + Sync + 'static {
    /// Writes the event's effect in the given transaction. Called once an event, in the order of its aggregate.
    fn apply(&self, tx: &Transaction, event: &Event) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Told once the effect is committed: the place to change what is kept in memory.
    fn applied(&self, _event: &Event) {}
}

/// Consumes one topic into one database.
pub struct Consumer<H> {
    /// The stream's name.
    pub topic: &'static str,
    /// Where the effects and the inbox live.
    pub database: Database,
    /// What to do with an event.
    pub handler: H,
}

impl<H: Handler> Consumer<H> {
    /// Consumes until told to stop.
    pub async fn run(self, mut subscription: Subscription, stop: CancellationToken) {
        loop {
            let deliveries = tokio::select! {
                () = stop.cancelled() => return,
                deliveries = subscription.next() => deliveries,
            };
            match deliveries {
                Ok(deliveries) => {
                    for delivery in &deliveries {
                        if !self.deliver(&delivery.event, &stop).await {
                            return;
                        }
                    }
                    if let Err(error) = subscription.acknowledge(&deliveries).await {
                        // They come again, and the inbox knows them.
                        tracing::warn!(%error, topic = self.topic, "deliveries could not be acknowledged");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, topic = self.topic, "the bus does not deliver");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(PAUSE_MAX) => {}
                    }
                }
            }
        }
    }

    /// Applies one event however long that takes; false when told to stop meanwhile.
    async fn deliver(&self, event: &Event, stop: &CancellationToken) -> bool {
        let (mut pause, mut attempts_left) = (PAUSE_BASE, ATTEMPTS_MAX);
        loop {
            let error = match inbox::apply(&self.database, self.topic, event, &self.handler).await {
                Ok(outcome) => {
                    count(self.topic, &outcome);
                    return true;
                }
                Err(error) => error,
            };
            let transient = matches!(&error, Failure::Database(error) if error.is_transient());
            attempts_left -= u32::from(!transient);
            if attempts_left == 0 {
                tracing::error!(%error, topic = self.topic, aggregate = %event.aggregate_id, version = event.version, "an event becomes a dead letter");
                match inbox::dead_letter(&self.database, self.topic, event, &error.to_string()).await {
                    Ok(()) => return true,
                    Err(_) => attempts_left = 1,
                }
            }
            tokio::select! {
                () = stop.cancelled() => return false,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
            }
        }
    }
}

fn count(topic: &'static str, outcome: &Outcome) {
    let outcome = match outcome {
        Outcome::Applied { .. } => "applied",
        Outcome::Duplicate => "duplicate",
        Outcome::Parked => "parked",
        Outcome::Dead => "dead",
    };
    counter!("lastro_events_consumed_total", "topic" => topic, "outcome" => outcome).increment(1);
}
