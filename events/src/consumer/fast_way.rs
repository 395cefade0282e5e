//! The fast way: events that come by Redis, and watching over it, so that whatever it leaves out is read from the event store.

use std::sync::atomic::Ordering;

use backon::BackoffBuilder as _;
use lastro_database::Error;
use metrics::{counter, gauge};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::deliver::Delivery;
use super::{Consumer, Handler, LOOK_EVERY, PAUSES};
use crate::bus::BusError;
use crate::bus::redis_streams::{Marker, Observation, RedisBus};

impl<H: Handler> Consumer<H> {
    /// Takes events from Redis, whenever the gate is open.
    pub(super) async fn take_from(&self, bus: &RedisBus, mut gate: watch::Receiver<bool>, stop: &CancellationToken) {
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
    pub(super) async fn watch_over(&self, bus: &RedisBus, open: &watch::Sender<bool>, stop: &CancellationToken) {
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

    /// As [`beat`](Self::beat), for whoever only looks: a consumer that tries the same delivery again and again must not seem alive because it is looked whether
    /// anything is missing.
    fn beat_unless_delivering(&self) {
        if !self.is_delivering.load(Ordering::SeqCst) {
            self.beat();
        }
    }

    async fn advance(&self, marker: &Marker) -> Result<(), Error> {
        let from = self.inbox().cursor().await?;
        self.inbox().advance(from, marker.cursor).await.map(|_| ())
    }
}
