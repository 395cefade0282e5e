//! A consumer: reads the events of one topic and applies them through the inbox. At least once on the wire, exactly once in effect.
//!
//! It has two ways to events. The **fast** one is the bus. The **sure** one is the event store of the publisher, which it reads from its cursor: when
//! it is new, when it was away for longer than Redis keeps entries, when Redis lost something, or when an event is parked and the gap before it does
//! not close. The cursor says up to where everything is applied; once a second it follows what came by the bus. On the embedded bus the sure way is
//! the only one.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use lastro_database::{Database, Error, Kind, Transaction};
use metrics::{counter, gauge, histogram};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::bus::redis_streams::{Marker, Observation, RedisBus};
use crate::bus::{Bus, BusError};
use crate::event::Event;
use crate::heartbeat::Heartbeat;
use crate::inbox::{Inbox, Outcome, Progress, Step, Unapplied, now_us};
use crate::source::{Page, Source, SourceError};
use crate::store::{Cursor, EventStore};

/// Attempts before an event that is at fault itself becomes a dead letter.
const ATTEMPTS_MAX: usize = 5;
/// Attempts before an event that takes longer than a statement may is given up, although the load of others may be why: it must not hold up every
/// other event for ever.
const CANCELLED_MAX: usize = 10;
const PAUSES: ExponentialBuilder =
    ExponentialBuilder::new().with_min_delay(Duration::from_millis(50)).with_max_delay(Duration::from_secs(2)).with_factor(2.0).without_max_times();
/// Events that are asked for at once.
const PAGE: u32 = 1000;
/// How long a reader of the embedded bus waits before it looks again, should no wake-up reach it (another process, a late commit).
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long after a wake-up it reads.
const GATHER: Duration = Duration::from_millis(20);
/// Failures of a batch that may pass by themselves, until it is tried by halves: it may be too large for the time that a statement has.
const FAILURES_UNTIL_HALVED: u32 = 3;
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
    /// Times that the event store was read from the cursor to its end, that have begun.
    begun: AtomicU64,
    /// The last of them that has ended, and what Redis had been given when it began: all of that is applied.
    ended: watch::Sender<(u64, Option<Marker>)>,
    /// Where the group's cursor was last, and from where to read on. On the embedded bus nobody else moves it.
    known_place: Mutex<Option<(Cursor, Cursor)>>,
    heartbeat: Heartbeat,
    /// Whether events that came by the bus are being applied.
    is_delivering: AtomicBool,
}

/// What became of a delivery.
enum Delivery {
    Done,
    /// Another replica has read the same from the event store.
    Overtaken,
    Stopped,
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
    /// move past those, so that nothing is skipped. What is committed while it reads need not be read, however much comes.
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

    /// Applies events however long that takes; finds those that cannot be applied, which become dead letters.
    async fn deliver(&self, events: &[Event], step: Option<Step>, stop: &CancellationToken) -> Delivery {
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
    async fn give_up(&self, event: &Event, failure: &Failure) -> bool {
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

    /// Takes events from Redis, whenever the gate is open.
    async fn take_from(&self, bus: &RedisBus, mut gate: watch::Receiver<bool>, stop: &CancellationToken) {
        let (mut subscription, mut pauses) = (bus.subscribe(self.topic.name, self.topic.reader), PAUSES.build());
        loop {
            let delivered = tokio::select! {
                () = stop.cancelled() => return,
                delivered = async {
                    // Its sender lives as long as this consumer.
                    let _ = gate.wait_for(|is_open| *is_open).await;
                    let covered = self.ended.borrow().1;
                    subscription.next(covered).await
                } => delivered,
            };
            let delivered = match delivered {
                Ok(delivered) => delivered,
                Err(error) => {
                    tracing::warn!(%error, topic = self.topic.name, "the bus does not deliver");
                    // An answer that is lost on its way may have had entries, which the group is not given again for a while.
                    self.misses.store(true, Ordering::SeqCst);
                    if self.pause(stop, pauses.next()).await.is_none() {
                        return;
                    }
                    continue;
                }
            };
            pauses = PAUSES.build();
            for what in &delivered.malformed {
                tracing::error!(what, topic = self.topic.name, "something on the bus is no event; it is put aside");
                counter!("lastro_events_malformed_total", "topic" => self.topic.name).increment(1);
            }
            if delivered.has_hole {
                let begun = self.begun.load(Ordering::SeqCst);
                self.misses.store(true, Ordering::SeqCst);
                let mut ended = self.ended.subscribe();
                tokio::select! {
                    () = stop.cancelled() => return,
                    // By one that began after the hole was seen.
                    _ = ended.wait_for(|(ended, _)| *ended > begun) => {}
                }
                continue;
            }
            if !delivered.malformed.is_empty() {
                // Before it is acknowledged: from then on nothing else tells of it.
                self.misses.store(true, Ordering::SeqCst);
            }
            if !delivered.events.is_empty() {
                self.is_delivering.store(true, Ordering::SeqCst);
                let delivery = self.deliver(&delivered.events, None, stop).await;
                self.is_delivering.store(false, Ordering::SeqCst);
                if matches!(delivery, Delivery::Stopped) {
                    return;
                }
            }
            if let Err(error) = subscription.acknowledge(&delivered).await {
                // They are delivered again, and the inbox knows them.
                tracing::warn!(%error, topic = self.topic.name, "entries could not be acknowledged");
            }
        }
    }

    /// Sees to it that nothing is missed: reads the event store first, then looks every second whether something that came by Redis may be missing, and
    /// reads again where it may.
    async fn watch_over(&self, bus: &RedisBus, open: &watch::Sender<bool>, stop: &CancellationToken) {
        let is_behind = gauge!("lastro_consumer_catching_up", "topic" => self.topic.name, "group" => self.topic.reader);
        let mut said = "";
        loop {
            is_behind.set(1.0);
            open.send_replace(false);
            self.misses.store(false, Ordering::SeqCst);
            let this = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            // Looked at before reading: what goes wrong meanwhile is noticed afterwards.
            let begin = bus.observe(self.topic.name, self.topic.reader).await;
            if self
                .catch_up(
                    stop,
                    |is_reachable| {
                        open.send_replace(!is_reachable);
                    },
                    |_| (),
                )
                .await
                .is_none()
            {
                return;
            }
            self.beat_unless_delivering();
            open.send_replace(true);
            self.ended.send_replace((this, begin.as_ref().ok().and_then(|begin| begin.marker)));
            is_behind.set(0.0);
            // Also where something is missed again and again: nobody waits for ever.
            self.close_gaps(stop).await;
            let Some(why) = self.until_something_is_missed(bus, begin, stop).await else { return };
            if why != said {
                tracing::warn!(
                    topic = self.topic.name,
                    group = self.topic.reader,
                    why,
                    "the bus may have left something out; it is read from the event store"
                );
                said = why;
            }
            counter!("lastro_consumer_catch_ups_total", "topic" => self.topic.name, "why" => why).increment(1);
        }
    }

    /// Looks every second, and moves the group's cursor up to where everything is applied. What is missed; None when told to stop.
    async fn until_something_is_missed(
        &self,
        bus: &RedisBus,
        begin: Result<Observation, BusError>,
        stop: &CancellationToken,
    ) -> Option<&'static str> {
        const AWAY: &str = "redis is away";
        let mut published: Option<Marker> = None;
        loop {
            self.pause(stop, Some(LOOK_EVERY)).await?;
            let (Ok(begin), Ok(now)) = (&begin, bus.observe(self.topic.name, self.topic.reader).await) else { return Some(AWAY) };
            if let Some(why) = now.missed_since(begin) {
                return Some(why);
            }
            if self.misses.load(Ordering::SeqCst) {
                return Some("something on the bus was no event, or was gone before it was applied");
            }
            if let Some(marker) = published.filter(|marker| now.has_all_of(marker)) {
                if let Err(error) = self.advance(&marker).await {
                    tracing::warn!(%error, topic = self.topic.name, "the place of a reader cannot be kept");
                }
                published = None;
            }
            published = published.or(now.marker);
            self.close_gaps(stop).await;
            self.beat_unless_delivering();
        }
    }

    async fn advance(&self, marker: &Marker) -> Result<(), Error> {
        let from = self.inbox().cursor().await?;
        self.inbox().advance(from, marker.cursor).await.map(|_| ())
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

    /// As [`beat`](Self::beat), for whoever only looks: a consumer that tries the same delivery again and again must not seem alive because it is looked whether
    /// anything is missing.
    fn beat_unless_delivering(&self) {
        if !self.is_delivering.load(Ordering::SeqCst) {
            self.beat();
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
