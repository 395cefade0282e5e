//! Follows one transaction: its changes of state, as they happen.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use lastro_events::Event;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::status::Problem;
use metrics::{Gauge, gauge};
use uuid::Uuid;

use super::App;
use super::get_transaction::get_transaction;
use crate::contract::state_after;
use crate::domain::operation::{Operation, State, is_terminal};
use crate::{EVENTS, Error};
use lastro_events::changes::Follower;

/// Events that one query reads at most; the next query reads on.
const CHANGES_AT_ONCE: u32 = 100;

/// Before events are read again that were told of and are not there.
const READ_AGAIN: Duration = Duration::from_millis(250);

/// A transaction as it stood after one of its events.
pub struct Change {
    /// Of the event.
    pub event_id: Uuid,
    pub operation: Operation,
}

/// One open stream. It queries events only when the next one is asked for, so that a caller that reads slowly uses no memory here.
pub struct TransactionWatch {
    app: Arc<App>,
    operation: Operation,
    /// The version of the last event that was read.
    read_to: i64,
    read: VecDeque<Change>,
    has_ended: bool,
    follower: Follower,
    _open: OpenStream,
}

/// Opens a stream. It starts with the current state, or after the event that the caller received last.
pub async fn watch_transaction(app: &Arc<App>, caller: &Caller, id: &str, last_event_id: Option<&str>) -> Result<TransactionWatch, Error> {
    let _turn = app.open_turn(caller.id).await?;
    let operation = get_transaction(app, caller, id).await?;
    // Registered before the events are queried, so that no change in between is missed.
    let follower = app.changes().follow(operation.id);
    let events = EVENTS.stream(&app.database, operation.id).await?;
    let after = match last_event_id {
        // Without an id, all events but the last one are skipped: the last one is the current state.
        None => events.len().saturating_sub(1),
        Some(last) => {
            let had = Uuid::parse_str(last).ok().and_then(|last| events.iter().position(|event| event.id == last));
            had.ok_or_else(|| Problem::field("last_event_id", "must be the id of an event of this transaction"))? + 1
        }
    };
    let last = events.last().ok_or_else(|| lastro_database::Error::corrupt("an operation without events"))?;
    let last_state = state_after(&last.kind);
    let (read_to, read, has_ended) = (after as i64, VecDeque::new(), false);
    let mut watch = TransactionWatch { app: app.clone(), operation, read_to, read, has_ended, follower, _open: OpenStream::new() };
    watch.take(events.into_iter().skip(after)).await?;
    // The caller has already received the terminal event.
    watch.has_ended |= watch.read.is_empty() && last_state.is_some_and(is_terminal);
    Ok(watch)
}

impl TransactionWatch {
    /// The next change; None after a terminal state.
    pub async fn next(&mut self) -> Result<Option<Change>, Error> {
        loop {
            if let Some(change) = self.read.pop_front() {
                return Ok(Some(change));
            }
            if self.has_ended {
                return Ok(None);
            }
            self.follower.changed(self.read_to).await;
            let before = self.read_to;
            self.read_on().await?;
            // Told of what is not there: a database that was restored meanwhile.
            if self.read_to == before {
                tokio::time::sleep(READ_AGAIN).await;
            }
        }
    }

    async fn read_on(&mut self) -> Result<(), Error> {
        let events = EVENTS.stream_from(&self.app.database, self.operation.id, self.read_to + 1, CHANGES_AT_ONCE).await?;
        self.take(events.into_iter()).await
    }

    /// Adds the changes that these events brought about.
    async fn take(&mut self, events: impl Iterator<Item = Event>) -> Result<(), Error> {
        for event in events {
            self.read_to = event.version;
            // A newer version of the service may store kinds of events that this one does not know.
            let Some(state) = state_after(&event.kind) else { continue };
            if is_terminal(state) {
                // What came of it is stored in the row of the operation.
                self.operation = self.app.operation_loader.load(self.operation.id).await?.ok_or(Error::TransactionNotFound)?;
            }
            let operation = as_it_stood(&self.operation, state, event.recorded_us);
            self.has_ended |= is_terminal(state);
            self.read.push_back(Change { event_id: event.id, operation });
        }
        Ok(())
    }
}

/// An operation as it stood in a state that it has come to: what only later states have is left out.
fn as_it_stood(now: &Operation, state: State, update_time_us: i64) -> Operation {
    let mut then = Operation { state, update_time_us, ..now.clone() };
    if !matches!(state, State::Rejected | State::Voided) {
        (then.reason, then.rejected_leg) = (None, None);
    }
    if state != State::Completed {
        then.balances_after = None;
        if let Some(hold) = &mut then.hold {
            hold.captured = None;
            // A hold counts when it is captured.
            then.effective_time_us = then.create_time_us;
        }
    }
    then
}

/// Streams that are open, as a metric has them.
struct OpenStream(Gauge);

impl OpenStream {
    fn new() -> Self {
        let open = gauge!("lastro_transactions_watchers");
        open.increment(1.0);
        Self(open)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
