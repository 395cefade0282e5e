//! A consumer: reads the events of one topic and applies them through the inbox. At least once on the wire, exactly once in effect.
//!
//! It has two ways to events. The **fast** one is the bus. The **sure** one is the event store of the publisher, which it reads from its cursor: when
//! it is new, when it was away for longer than Redis keeps entries, when Redis lost something, or when an event is parked and the gap before it does
//! not close. The cursor says up to where everything is applied; once a second it follows what came by the bus. On the embedded bus the sure way is
//! the only one.

mod deliver;
mod fast_way;

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use lastro_database::{Database, Error, Kind, Transaction};
use metrics::gauge;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::deliver::Delivery;
use crate::bus::Bus;
use crate::bus::redis_streams::Marker;
use crate::event::Event;
use crate::heartbeat::Heartbeat;
use crate::inbox::{Inbox, Progress, Step, now_us};
use crate::source::{Page, Source, SourceError};
use crate::store::{Cursor, EventStore};

const PAUSES: ExponentialBuilder =
    ExponentialBuilder::new().with_min_delay(Duration::from_millis(50)).with_max_delay(Duration::from_secs(2)).with_factor(2.0).without_max_times();
/// Events that are asked for at once.
const PAGE: u32 = 1000;
/// How long a reader of the embedded bus waits before it looks again, should no wake-up reach it (another process, a late commit).
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long after a wake-up it reads.
const GATHER: Duration = Duration::from_millis(20);
/// How often a consumer looks whether it misses something.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A gap that has not closed after so long does not close by itself.
const GAP_MAX: Duration = Duration::from_secs(2);
/// Aggregates with such gaps that are seen to at once.
const GAPS_AT_ONCE: u32 = 100;

/// Why events could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The database failed; what is transient is tried until it works.
    #[error(transparent)]
    Database(#[from] Error),
    /// One of the events itself cannot be applied.
    #[error("{0}")]
    Event(String),
}

impl Failure {
    fn is_transient(&self) -> bool {
        // A database that is broken or set up wrongly says nothing about an event.
        matches!(self, Self::Database(error) if error.is_transient() || error.kind == Kind::Fault)
    }

    fn is_cancelled(&self) -> bool {
        matches!(self, Self::Database(error) if error.kind == Kind::Cancelled)
    }
}

/// What a service does with the events of others.
pub trait Handler: Send + Sync + 'static {
    /// Writes the effects of events in the given transaction, best in statements for all of them. Each event comes once; those of one aggregate come
    /// in the order of their versions, without a gap, and stand together. If one cannot be applied, none is: the one is found by halves.
    fn apply(&self, tx: &Transaction, events: &[Event]) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Told once the effects are committed: the place to change what is kept in memory.
    fn applied(&self, _events: &[Event]) {}

    /// Where the versions of aggregates are kept.
    fn progress(&self) -> Progress {
        Progress::Inbox
    }
}

/// The events of one publisher, as a consumer gets at them.
#[derive(Clone)]
pub struct Topic {
    /// Its name on the bus.
    pub name: &'static str,
    /// The service that reads it: all of its replicas are one consumer group, and each event is applied by one of them.
    pub reader: &'static str,
    /// The publisher's event store.
    pub source: Source,
    /// The fast way.
    pub bus: Bus,
}

/// Consumes one topic into one database.
pub struct Consumer<H> {
    pub(crate) topic: Topic,
    database: Database,
    handler: H,
    /// Whether something came by the bus of which a part is missing.
    misses: AtomicBool,
    /// How many times the event store was begun to be read from the cursor to its end.
    begun: AtomicU64,
    /// The number of the last such reading that has ended, and the marker that Redis had when it began: everything up to that is applied.
    ended: watch::Sender<(u64, Option<Marker>)>,
    /// On the embedded bus, where nobody else moves it: the group's cursor, and from where to read on, so that it need not be looked up each time.
    known_place: Mutex<Option<(Cursor, Cursor)>>,
    heartbeat: Heartbeat,
    /// Whether events that came by the bus are being applied.
    is_delivering: AtomicBool,
}

impl<H: Handler> Consumer<H> {
    /// A replica of the topic's reader, with what it does with the events.
    pub fn new(topic: Topic, database: &Database, handler: H) -> Self {
        Self {
            topic,
            database: database.clone(),
            handler,
            misses: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            ended: watch::Sender::new((0, None)),
            known_place: Mutex::default(),
            heartbeat: Heartbeat::default(),
            is_delivering: AtomicBool::new(false),
        }
    }

    /// The same, which tells there that it is alive.
    #[must_use]
    pub fn beating(self, heartbeat: &Heartbeat) -> Self {
        Self { heartbeat: heartbeat.clone(), ..self }
    }

    /// Consumes until told to stop.
    pub async fn run(&self, stop: CancellationToken) {
        match &self.topic.bus {
            Bus::Embedded(bus) => {
                let (mut looked, wake) = (Instant::now(), bus.stored(self.topic.name));
                while !stop.is_cancelled() {
                    // Registered before reading, so that what is stored in between wakes it.
                    let stored = pin!(wake.notified());
                    let stored = async {
                        stored.await;
                        // What is stored in many commits a second is read together.
                        sleep(GATHER).await;
                    };
                    if self.catch_up(&stop, |_| (), |_| ()).await.is_none() {
                        return;
                    }
                    self.beat();
                    if looked.elapsed() >= LOOK_EVERY {
                        looked = Instant::now();
                        self.close_gaps(&stop).await;
                    }
                    tokio::select! {
                        () = stop.cancelled() => return,
                        _ = timeout(POLL_INTERVAL, stored) => {}
                    }
                }
            }
            Bus::Redis(bus) => {
                // Events that come by the bus wait while the sure way brings those before them, unless that way is closed.
                let (open, gate) = watch::channel(false);
                tokio::join!(self.watch_over(bus, &open, &stop), self.take_from(bus, gate, &stop));
            }
        }
    }

    fn inbox(&self) -> Inbox<'_, H> {
        Inbox { database: &self.database, topic: self.topic.name, group: self.topic.reader, handler: &self.handler }
    }

    /// Applies all that is in the event store after the group's cursor, and returns; `applied` is told how many events of it are done with. For tables
    /// that are made anew, beside those that [`run`](Self::run) keeps up to date.
    pub async fn read_to_end(&self, applied: impl Fn(usize)) {
        let never = CancellationToken::new();
        // It ends only when told to, or done.
        let _ = self.catch_up(&never, |_| (), applied).await;
        self.close_gaps(&never).await;
    }

    /// Applies everything that the publisher has committed when this is called, including events before which others may be committed later. The cursor does not
    /// move past those, so that nothing is skipped. It ends with the first page that is not full.
    pub async fn read_committed(&self, store: &EventStore, publisher: &Database) -> Result<(), Error> {
        let mut cursor = self.inbox().cursor().await?;
        loop {
            let found = store.visible_after(publisher, cursor, PAGE).await?;
            let Some((last, _)) = found.last() else { return Ok(()) };
            // A page that is not full has all that was committed when it was read.
            let (is_last, next) = (found.len() < PAGE as usize, *last);
            let events: Vec<Event> = found.into_iter().map(|(_, event)| event).collect();
            self.deliver(&events, None, &CancellationToken::new()).await;
            if is_last {
                return Ok(());
            }
            cursor = next;
        }
    }

    /// Reads the event store from the group's cursor to its end. None when told to stop meanwhile. `is_reachable` is told whether the publisher
    /// answers, `applied` how many events are done with.
    async fn catch_up(&self, stop: &CancellationToken, is_reachable: impl Fn(bool), applied: impl Fn(usize)) -> Option<()> {
        let mut pauses = PAUSES.build();
        'anew: loop {
            let known = self.known_place.lock().unwrap_or_else(PoisonError::into_inner).take();
            let (mut cursor, from) = match known {
                Some(place) => place,
                None => {
                    let cursor = self.until_done(stop, || async { self.inbox().cursor().await }).await?;
                    (cursor, cursor)
                }
            };
            let mut next = self.fetch(from);
            loop {
                let page = tokio::select! {
                    () = stop.cancelled() => return None,
                    page = next => page,
                };
                let page = match page.map_err(|error| SourceError(error.to_string())).flatten() {
                    Ok(page) => page,
                    Err(error) => {
                        is_reachable(false);
                        tracing::warn!(%error, topic = self.topic.name, "the event store of the publisher cannot be read; trying on");
                        self.pause(stop, pauses.next()).await?;
                        continue 'anew;
                    }
                };
                pauses = PAUSES.build();
                let (step, has_more) = (Step { from: cursor, to: page.cursor }, page.has_more);
                if page.events.is_empty() {
                    self.know(cursor, page.cursor);
                    return Some(());
                }
                // The next page comes while this one is applied.
                let following = has_more.then(|| self.fetch(page.cursor));
                match self.deliver(&page.events, Some(step), stop).await {
                    // Applied, or given up: either way it goes on.
                    Delivery::Done => {
                        self.beat();
                        cursor = step.to;
                        applied(page.events.len());
                    }
                    Delivery::Overtaken => continue 'anew,
                    Delivery::Stopped => return None,
                }
                match following {
                    Some(following) => next = following,
                    None => {
                        self.know(cursor, cursor);
                        return Some(());
                    }
                }
            }
        }
    }

    /// Remembers the cursor and from where to read on, where nobody else moves it.
    fn know(&self, cursor: Cursor, next: Cursor) {
        if matches!(self.topic.bus, Bus::Embedded(_)) {
            *self.known_place.lock().unwrap_or_else(PoisonError::into_inner) = Some((cursor, next));
        }
    }

    fn fetch(&self, cursor: Cursor) -> tokio::task::JoinHandle<Result<Page, SourceError>> {
        let source = self.topic.source.clone();
        tokio::spawn(async move { source.after(cursor, PAGE).await })
    }

    /// Asks the publisher for what lies before events that have been parked for a while.
    async fn close_gaps(&self, stop: &CancellationToken) {
        let parked_before_us = now_us() - GAP_MAX.as_micros() as i64;
        let closed = async {
            let mut failed = Ok(());
            for aggregate_id in self.inbox().stuck(parked_before_us, GAPS_AT_ONCE).await? {
                // Others are not to wait for one that cannot be closed.
                failed = self.close_gap(aggregate_id, stop).await.and(failed);
            }
            failed
        };
        if let Err(error) = closed.await {
            tracing::warn!(%error, topic = self.topic.name, "a gap in the stream of an aggregate cannot be closed now; trying on");
        }
    }

    async fn close_gap(&self, aggregate_id: Uuid, stop: &CancellationToken) -> Result<(), GapError> {
        loop {
            let (parked, reached) = self.inbox().parked_of(aggregate_id).await?;
            let Some(first) = parked.first() else { return Ok(()) };
            let events =
                if first.version <= reached + 1 { parked.clone() } else { self.topic.source.stream(aggregate_id, reached + 1, PAGE).await? };
            if events.is_empty() {
                // The publisher would have it. Nobody waits for ever for what does not come.
                let failure = Failure::Event(format!("the publisher has no event of this aggregate with the version {}", reached + 1));
                self.give_up(first, &failure).await;
                return Ok(());
            }
            if matches!(self.deliver(&events, None, stop).await, Delivery::Stopped) {
                return Ok(());
            }
        }
    }

    /// Tries until it works; None when told to stop before.
    async fn until_done<T, F: Future<Output = Result<T, Error>>>(&self, stop: &CancellationToken, attempt: impl Fn() -> F) -> Option<T> {
        let mut pauses = PAUSES.build();
        loop {
            match attempt().await {
                Ok(done) => return Some(done),
                Err(error) => tracing::warn!(%error, topic = self.topic.name, "the consumer's database does not answer; trying on"),
            }
            self.pause(stop, pauses.next()).await?;
        }
    }

    async fn pause(&self, stop: &CancellationToken, pause: Option<Duration>) -> Option<()> {
        tokio::select! {
            () = stop.cancelled() => None,
            () = sleep(pause.unwrap_or(LOOK_EVERY)) => Some(()),
        }
    }

    /// It is alive: it has applied something, or has found nothing to do.
    fn beat(&self) {
        self.heartbeat.beat();
        gauge!("lastro_consumer_heartbeat_seconds", "topic" => self.topic.name, "group" => self.topic.reader).set(seconds(now_us()));
    }
}

/// Microseconds as metrics have them.
fn seconds(us: i64) -> f64 {
    Duration::from_micros(us.unsigned_abs()).as_secs_f64()
}

/// Why a gap cannot be closed now.
#[derive(Debug, thiserror::Error)]
enum GapError {
    #[error(transparent)]
    Database(#[from] Error),
    #[error(transparent)]
    Source(#[from] SourceError),
}
