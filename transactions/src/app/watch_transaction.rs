//! What happens to one transaction, as it happens.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lastro_mesh::identity::User as Caller;
use lastro_mesh::status::Problem;
use metrics::{Gauge, gauge};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::App;
use super::get_transaction::get_transaction;
use crate::contract::state_after;
use crate::domain::operation::{Operation, State, is_terminal};
use crate::store::operations;
use crate::{EVENTS, Error};

/// Should the news of a change by another replica not reach us: all that is watched is looked at in one statement.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// What is left is read with the next look.
const CHANGES_AT_ONCE: u32 = 100;

/// A transaction as it stood after one of its events.
pub struct Change {
    /// Of the event.
    pub event_id: Uuid,
    pub operation: Operation,
}

/// One reader. It reads the events itself when it is asked for the next one, so that one who asks slowly keeps nothing here.
pub struct Watching {
    app: Arc<App>,
    operation: Operation,
    /// The version of the last event that was read.
    read_to: i64,
    read: VecDeque<Change>,
    has_ended: bool,
    place: Place,
}

/// Begins with the state as it stands, or after an event that the reader had.
pub async fn watch_transaction(app: &Arc<App>, caller: &Caller, id: &str, last_event_id: Option<&str>) -> Result<Watching, Error> {
    let operation = get_transaction(app, caller, id).await?;
    // Before the events are read, so that none is missed in between.
    let place = app.watched.begin(operation.id);
    let events = EVENTS.stream(&app.database, operation.id).await?;
    let after = match last_event_id {
        // All but the last one.
        None => events.len().saturating_sub(1),
        Some(last) => {
            let had = Uuid::parse_str(last).ok().and_then(|last| events.iter().position(|event| event.id == last));
            had.ok_or_else(|| Problem::field("last_event_id", "must be the id of an event of this transaction"))? + 1
        }
    };
    let mut watching = Watching { app: app.clone(), operation, read_to: after as i64, read: VecDeque::new(), has_ended: false, place };
    watching.read_on().await?;
    // It had the end before.
    let last_state = events.last().and_then(|event| state_after(&event.kind));
    watching.has_ended |= watching.read.is_empty() && last_state.is_some_and(is_terminal);
    Ok(watching)
}

impl Watching {
    /// The next change; None after a terminal state.
    pub async fn next(&mut self) -> Result<Option<Change>, Error> {
        loop {
            if let Some(change) = self.read.pop_front() {
                return Ok(Some(change));
            }
            if self.has_ended {
                return Ok(None);
            }
            self.place.changed(self.read_to).await;
            self.read_on().await?;
        }
    }

    async fn read_on(&mut self) -> Result<(), Error> {
        for event in EVENTS.stream_from(&self.app.database, self.operation.id, self.read_to + 1, CHANGES_AT_ONCE).await? {
            self.read_to = event.version;
            // A newer version may know more kinds of events.
            let Some(state) = state_after(&event.kind) else { continue };
            if state == State::Rejected {
                // The reason stands in its row.
                self.operation = self.app.read_operation.get(self.operation.id).await?.ok_or(Error::TransactionNotFound)?;
            }
            let reason = self.operation.reason.filter(|_| state == State::Rejected);
            let operation = Operation { state, reason, update_time_us: event.recorded_us, ..self.operation.clone() };
            self.has_ended |= is_terminal(state);
            self.read.push_back(Change { event_id: event.id, operation });
        }
        Ok(())
    }
}

/// The transactions that are watched, and how far each has come.
pub struct Watched {
    by_id: Mutex<HashMap<Uuid, Entry>>,
    readers: Gauge,
}

struct Entry {
    /// The version of the last event.
    version: watch::Sender<i64>,
    readers: usize,
}

impl Default for Watched {
    fn default() -> Self {
        Self { by_id: Mutex::default(), readers: gauge!("lastro_transactions_watchers") }
    }
}

impl Watched {
    fn begin(self: &Arc<Self>, id: Uuid) -> Place {
        let mut by_id = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = by_id.entry(id).or_insert_with(|| Entry { version: watch::Sender::new(0), readers: 0 });
        entry.readers += 1;
        self.readers.increment(1.0);
        Place { id, version: entry.version.subscribe(), watched: self.clone() }
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

/// A reader's place, until it is dropped.
struct Place {
    id: Uuid,
    version: watch::Receiver<i64>,
    watched: Arc<Watched>,
}

impl Place {
    /// Until there is something after a version.
    async fn changed(&mut self, version: i64) {
        // Its sender lives as long as this place.
        let _ = self.version.wait_for(|now| *now > version).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.watched.readers.decrement(1.0);
        let mut by_id = self.watched.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = by_id.get_mut(&self.id) {
            entry.readers -= 1;
            if entry.readers == 0 {
                by_id.remove(&self.id);
            }
        }
    }
}

/// Looks how far everything that is watched has come, until told to stop: when something is settled here, and from time to time.
pub async fn keep_looking(app: &App, stop: CancellationToken) {
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = timeout(LOOK_EVERY, app.pipeline.settled()) => {}
        }
        let ids = app.watched.ids();
        if ids.is_empty() {
            continue;
        }
        match operations::versions(app.database.reader(), &ids).await {
            Ok(versions) => app.watched.tell(&versions),
            Err(error) => tracing::warn!(%error, "transactions that are watched could not be looked at; their readers wait"),
        }
    }
}
