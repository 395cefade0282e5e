//! Applying what was read, however long that takes, and finding the events that cannot be applied.

use backon::BackoffBuilder as _;
use metrics::{counter, histogram};
use tokio_util::sync::CancellationToken;

use super::{Consumer, Failure, Handler, PAUSES, seconds};
use crate::event::Event;
use crate::inbox::{Outcome, Step, Unapplied, now_us};

/// Attempts before an event that is at fault itself becomes a dead letter.
const ATTEMPTS_MAX: usize = 5;
/// Attempts before an event that takes longer than a statement may is given up, although the load of others may be why: it must not hold up every
/// other event for ever.
const CANCELLED_MAX: usize = 10;
/// Failures of a batch that may pass by themselves, until it is tried by halves: it may be too large for the time that a statement has.
const FAILURES_UNTIL_HALVED: u32 = 3;

/// What became of a delivery.
pub enum Delivery {
    Done,
    /// Another replica has read the same from the event store.
    Overtaken,
    Stopped,
}

impl<H: Handler> Consumer<H> {
    /// Applies events however long that takes; finds those that cannot be applied, which become dead letters.
    pub(super) async fn deliver(&self, events: &[Event], step: Option<Step>, stop: &CancellationToken) -> Delivery {
        let (mut pauses, mut failures) = (PAUSES.build(), 0);
        loop {
            match self.inbox().apply(events, step).await {
                Ok(outcome) => {
                    self.count(outcome);
                    self.note_age(events);
                    return Delivery::Done;
                }
                Err(Unapplied::Overtaken) => return Delivery::Overtaken,
                Err(Unapplied::Failed { failure, planned })
                    if planned.is_empty() || (failure.is_transient() && (planned.len() == 1 || failures < FAILURES_UNTIL_HALVED)) =>
                {
                    failures += 1;
                    tracing::warn!(error = %failure, topic = self.topic.name, "events cannot be applied now; trying on");
                    if self.pause(stop, pauses.next()).await.is_none() {
                        return Delivery::Stopped;
                    }
                }
                // Each of them is applied or a dead letter afterwards, and the rest goes on.
                Err(Unapplied::Failed { planned, .. }) => {
                    if self.bisect(planned, stop).await.is_none() {
                        return Delivery::Stopped;
                    }
                    self.beat();
                }
            }
        }
    }

    /// Applies events by halves, so that the one that is at fault is found, and no neighbour of it. None when told to stop meanwhile.
    async fn bisect(&self, events: Vec<Event>, stop: &CancellationToken) -> Option<()> {
        let mut waiting = vec![events];
        // The first part is on top.
        while let Some(mut part) = waiting.pop() {
            if part.len() > 1 {
                let second = part.split_off(part.len() / 2);
                waiting.push(second);
            }
            let (mut pauses, mut attempts, mut cancelled, mut failures) = (PAUSES.build(), 0, 0, 0);
            loop {
                let failure = match self.inbox().apply_alone(&part).await {
                    Ok(outcome) => {
                        self.count(outcome);
                        self.beat();
                        break;
                    }
                    Err(Unapplied::Overtaken) => break,
                    Err(Unapplied::Failed { failure, .. }) => failure,
                };
                failures += 1;
                if part.len() > 1 && (!failure.is_transient() || failures >= FAILURES_UNTIL_HALVED) {
                    waiting.push(part);
                    break;
                }
                attempts += usize::from(!failure.is_transient());
                cancelled += usize::from(failure.is_cancelled());
                if (cancelled >= CANCELLED_MAX || attempts >= ATTEMPTS_MAX) && self.give_up(&part[0], &failure).await {
                    self.beat();
                    break;
                }
                self.pause(stop, pauses.next()).await?;
            }
        }
        Some(())
    }

    /// Whether an event is a dead letter now, or was applied by another replica.
    pub(super) async fn give_up(&self, event: &Event, failure: &Failure) -> bool {
        match self.inbox().dead_letter(event, &failure.to_string()).await {
            Ok(is_dead) => {
                if is_dead {
                    let (aggregate, version) = (event.aggregate_id, event.version);
                    tracing::error!(error = %failure, topic = self.topic.name, %aggregate, version, "an event becomes a dead letter");
                    self.count(Outcome { dead: 1, ..Outcome::default() });
                }
                true
            }
            Err(error) => {
                tracing::warn!(%error, topic = self.topic.name, "a dead letter cannot be stored; trying on");
                false
            }
        }
    }

    /// How old events were when they were done with.
    fn note_age(&self, events: &[Event]) {
        self.beat();
        let ages = histogram!("lastro_consumer_lag_seconds", "topic" => self.topic.name, "group" => self.topic.reader);
        let now_us = now_us();
        events.iter().for_each(|event| ages.record(seconds((now_us - event.recorded_us).max(0))));
    }

    fn count(&self, outcome: Outcome) {
        let outcomes = [("applied", outcome.applied), ("duplicate", outcome.duplicates), ("parked", outcome.parked), ("dead", outcome.dead)];
        for (outcome, count) in outcomes.into_iter().filter(|(_, count)| *count > 0) {
            counter!("lastro_events_consumed_total", "topic" => self.topic.name, "outcome" => outcome).increment(count as u64);
        }
    }
}
