//! Follows one transaction: its changes of state, as they happen.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lastro_events::Event;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::status::Problem;
use metrics::{Gauge, gauge};
use tokio::sync::watch as channel;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::App;
use super::get_transaction::get_transaction;
use crate::contract::state_after;
use crate::domain::operation::{Operation, State, is_terminal};
use crate::store::operations;
use crate::{EVENTS, Error};

/// Another replica may settle a transaction that is watched here, so all watched transactions are polled, in one statement.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Polling takes at most one part in ten of the time, however many transactions are watched and however often something is settled.
const LOOK_SHARE: u32 = 10;
/// Events that one query reads at most; the next query reads on.
const CHANGES_AT_ONCE: u32 = 100;

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
    watcher: Watcher,
}

/// Opens a stream. It starts with the current state, or after the event that the caller received last.
pub async fn watch_transaction(app: &Arc<App>, caller: &Caller, id: &str, last_event_id: Option<&str>) -> Result<TransactionWatch, Error> {
    let _turn = app.open_turn(caller.id).await?;
    let operation = get_transaction(app, caller, id).await?;
    // Registered before the events are queried, so that no change in between is missed.
    let watcher = app.watchers.begin(operation.id);
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
    let mut watch = TransactionWatch { app: app.clone(), operation, read_to: after as i64, read: VecDeque::new(), has_ended: false, watcher };
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
            self.watcher.changed(self.read_to).await;
            self.read_on().await?;
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
    if state != State::Rejected {
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

/// The transactions that have open streams, with the latest version known of each.
pub struct Watchers {
    by_id: Mutex<HashMap<Uuid, Entry>>,
    readers: Gauge,
}

struct Entry {
    /// The version of the last event.
    version: channel::Sender<i64>,
    readers: usize,
}

impl Default for Watchers {
    fn default() -> Self {
        Self { by_id: Mutex::default(), readers: gauge!("lastro_transactions_watchers") }
    }
}

impl Watchers {
    fn begin(self: &Arc<Self>, id: Uuid) -> Watcher {
        let mut by_id = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = by_id.entry(id).or_insert_with(|| Entry { version: channel::Sender::new(0), readers: 0 });
        entry.readers += 1;
        self.readers.increment(1.0);
        Watcher { id, version: entry.version.subscribe(), watchers: self.clone() }
    }

    fn ids(&self) -> Vec<Uuid> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    fn tell(&self, versions: &[(Uuid, i64)]) {
        let by_id = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, version) in versions {
            if let Some(entry) = by_id.get(id) {
                entry.version.send_if_modified(|known| std::mem::replace(known, *version) < *version);
            }
        }
    }
}

/// The registration of one stream; dropping it removes it.
struct Watcher {
    id: Uuid,
    version: channel::Receiver<i64>,
    watchers: Arc<Watchers>,
}

impl Watcher {
    /// Waits until the transaction has a later event than this version.
    async fn changed(&mut self, version: i64) {
        // The sender lives in the map as long as this watcher, so that waiting cannot fail.
        let _ = self.version.wait_for(|now| *now > version).await;
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.watchers.readers.decrement(1.0);
        let mut by_id = self.watchers.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = by_id.get_mut(&self.id) {
            entry.readers -= 1;
            if entry.readers == 0 {
                by_id.remove(&self.id);
            }
        }
    }
}

/// Polls the versions of all watched transactions until told to stop: whenever this replica settles something, and every 250 ms.
pub async fn keep_looking(app: &App, stop: CancellationToken) {
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = timeout(LOOK_EVERY, app.pipeline.settled()) => {}
        }
        let ids = app.watchers.ids();
        if ids.is_empty() {
            continue;
        }
        let started = Instant::now();
        match operations::versions(app.database.reader(), &ids).await {
            Ok(versions) => app.watchers.tell(&versions),
            Err(error) => tracing::warn!(%error, "transactions that are watched could not be looked at; their readers wait"),
        }
        let rest = started.elapsed() * LOOK_SHARE;
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(rest) => {}
        }
    }
}
