//! How whoever waits for an aggregate learns that it has changed, without asking the database again and again.
//!
//! Whoever commits a change of a stored aggregate notes it here. That wakes those who wait in this process, and is announced through Redis to the other
//! replicas. An announcement can be lost: when Redis is away, or when the replica is killed between its commit and its announcement. So all
//! aggregates that somebody waits for are looked at, in one statement, whenever announcements may have been missed, and every few seconds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lastro_database::Error;
use tokio::sync::{Notify, watch as channel};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::bus::Bus;
use crate::bus::redis_streams::RedisBus;

/// For what was lost without a trace.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A connection that has gone silent looks like one on which nothing is announced: after so long another one is opened.
const LISTEN_MAX: Duration = Duration::from_secs(60);
/// Between attempts to reach Redis.
const REDIS_PAUSE: Duration = Duration::from_millis(250);
/// Ids to a statement.
const LOOK_AT_ONCE: usize = 1000;
/// Changes to an announcement: some 24 KB.
const ANNOUNCE_AT_ONCE: usize = 1000;
/// Changes that wait to be announced while Redis is away. Beyond that, others are told to look at everything.
const UNANNOUNCED_MAX: usize = 20_000;

/// An aggregate, and the version of its last event.
pub type Change = (Uuid, i64);

/// Reads the versions of aggregates from the database.
pub trait Versions {
    /// Of these, as far as they are there.
    fn versions(&self, ids: &[Uuid]) -> impl Future<Output = Result<Vec<Change>, Error>> + Send;
}

/// The aggregates that somebody waits for, with the latest version known of each.
pub struct Changes {
    by_id: Mutex<HashMap<Uuid, Entry>>,
    /// None where this process is the only one.
    others: Option<Others>,
}

struct Entry {
    /// The version of the last event.
    version: channel::Sender<i64>,
    followers: usize,
}

/// The replicas beside this one.
struct Others {
    /// Of all that is announced, what is about these aggregates.
    channel: &'static str,
    redis: RedisBus,
    unannounced: Mutex<Vec<Change>>,
    noted: Notify,
}

impl Changes {
    /// Those that this process notes, and through its bus what others do. `channel` is the name by which replicas of a service hear of each other.
    pub fn new(bus: &Bus, channel: &'static str) -> Arc<Self> {
        let others = match bus {
            Bus::Embedded(_) => None,
            Bus::Redis(redis) => Some(Others { channel, redis: redis.clone(), unannounced: Mutex::default(), noted: Notify::new() }),
        };
        Arc::new(Self { by_id: Mutex::default(), others })
    }

    /// Follows an aggregate. What changes from now on is not missed.
    pub fn follow(self: &Arc<Self>, id: Uuid) -> Follower {
        let mut by_id = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = by_id.entry(id).or_insert_with(|| Entry { version: channel::Sender::new(0), followers: 0 });
        entry.followers += 1;
        Follower { id, version: entry.version.subscribe(), changes: self.clone() }
    }

    /// Tells everybody who waits, here and at other replicas, of what was committed.
    pub fn note(&self, changes: impl Iterator<Item = Change>) {
        let changes: Vec<Change> = changes.collect();
        if changes.is_empty() {
            return;
        }
        self.tell(&changes);
        if let Some(others) = &self.others {
            let mut unannounced = others.unannounced.lock().unwrap_or_else(PoisonError::into_inner);
            if unannounced.len() <= UNANNOUNCED_MAX {
                unannounced.extend(changes);
            }
            others.noted.notify_one();
        }
    }

    fn tell(&self, changes: &[Change]) {
        let by_id = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        if by_id.is_empty() {
            return;
        }
        for (id, version) in changes {
            if let Some(entry) = by_id.get(id) {
                entry.version.send_if_modified(|known| std::mem::replace(known, (*version).max(*known)) < *version);
            }
        }
    }

    /// Tells of everything that has changed while nobody told.
    pub async fn look(&self, database: &impl Versions) -> Result<(), Error> {
        let ids: Vec<Uuid> = self.by_id.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect();
        for some in ids.chunks(LOOK_AT_ONCE) {
            self.tell(&database.versions(some).await?);
        }
        Ok(())
    }

    /// Announces what is noted here to other replicas, until told to stop.
    pub async fn keep_announcing(&self, stop: CancellationToken) {
        let Some(others) = &self.others else { return stop.cancelled().await };
        let mut announcer = others.redis.announcer(others.channel);
        while !stop.is_cancelled() {
            let noted = std::mem::take(&mut *others.unannounced.lock().unwrap_or_else(PoisonError::into_inner));
            if noted.is_empty() {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = others.noted.notified() => continue,
                }
            }
            let messages: Vec<Vec<u8>> = if noted.len() > UNANNOUNCED_MAX {
                vec![LOOK_AT_EVERYTHING.to_vec()]
            } else {
                noted.chunks(ANNOUNCE_AT_ONCE).map(to_message).collect()
            };
            for message in messages {
                while let Err(error) = announcer.announce(&message).await {
                    tracing::debug!(%error, "changes cannot be announced to other replicas now");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = sleep(REDIS_PAUSE) => {}
                    }
                }
            }
        }
    }

    /// Hears what other replicas announce, and looks where that may have been missed, until told to stop.
    pub async fn keep_hearing(&self, database: &impl Versions, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.hear(database) => {}
            }
        }
    }

    /// Hears until the connection breaks; without one, until it is time to try again.
    async fn hear(&self, database: &impl Versions) {
        let mut announcements = match &self.others {
            None => None,
            Some(others) => match others.redis.announcements(others.channel).await {
                Ok(announcements) => Some(announcements),
                Err(error) => {
                    tracing::debug!(%error, "what other replicas announce cannot be heard now");
                    self.look_and_log(database).await;
                    return sleep(REDIS_PAUSE).await;
                }
            },
        };
        // What was announced before it listened.
        self.look_and_log(database).await;
        let mut look_at = Instant::now() + LOOK_EVERY;
        let open_again = Instant::now() + LISTEN_MAX;
        loop {
            if announcements.is_some() && Instant::now() >= open_again {
                return;
            }
            let heard = match &mut announcements {
                Some(announcements) => timeout_at(look_at, announcements.next()).await,
                None => timeout_at(look_at, std::future::pending()).await,
            };
            match heard {
                Ok(Some(message)) if message != LOOK_AT_EVERYTHING => self.tell(&of_message(&message)),
                Ok(None) => return,
                Ok(Some(_)) | Err(_) => {
                    self.look_and_log(database).await;
                    look_at = Instant::now() + LOOK_EVERY;
                }
            }
        }
    }

    async fn look_and_log(&self, database: &impl Versions) {
        if let Err(error) = self.look(database).await {
            tracing::warn!(%error, "what is waited for could not be looked at; it is looked at again");
        }
    }
}

/// The registration of somebody who waits; dropping it removes it.
pub struct Follower {
    id: Uuid,
    version: channel::Receiver<i64>,
    changes: Arc<Changes>,
}

impl Follower {
    /// Waits until the aggregate has a later event than this version.
    pub async fn changed(&mut self, version: i64) {
        // The sender lives in the map as long as this follower, so that waiting cannot fail.
        let _ = self.version.wait_for(|now| *now > version).await;
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut by_id = self.changes.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = by_id.get_mut(&self.id) {
            entry.followers -= 1;
            if entry.followers == 0 {
                by_id.remove(&self.id);
            }
        }
    }
}

/// No change has so few bytes.
const LOOK_AT_EVERYTHING: &[u8] = b"*";
const CHANGE_BYTES: usize = 24;

fn to_message(changes: &[Change]) -> Vec<u8> {
    changes.iter().flat_map(|(id, version)| id.as_bytes().iter().copied().chain(version.to_be_bytes())).collect()
}

/// What does not read tells nothing.
fn of_message(message: &[u8]) -> Vec<Change> {
    let (changes, _) = message.as_chunks::<CHANGE_BYTES>();
    let change = |bytes: &[u8; CHANGE_BYTES]| {
        let (id, version) = bytes.split_at(16);
        Some((Uuid::from_slice(id).ok()?, i64::from_be_bytes(version.try_into().ok()?)))
    };
    changes.iter().filter_map(change).collect()
}

#[cfg(test)]
mod tests {
    use crate::bus::embedded::EmbeddedBus;

    use super::*;

    #[test]
    fn changes_are_announced_as_they_were_noted() {
        let changes: Vec<Change> = (0..3).map(|number| (Uuid::from_u128(number << 90 | 7), i64::MAX - number as i64)).collect();
        assert_eq!(of_message(&to_message(&changes)), changes);
        assert!(of_message(LOOK_AT_EVERYTHING).is_empty() && of_message(&[1; 23]).is_empty());
    }

    #[tokio::test]
    async fn whoever_follows_is_told_of_later_versions_and_leaves_nothing_behind() {
        let changes = Changes::new(&Bus::Embedded(EmbeddedBus::default()), "things");
        let (id, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let (mut first, mut second) = (changes.follow(id), changes.follow(id));
        changes.note([(id, 2), (other, 9)].into_iter());
        first.changed(1).await;
        second.changed(1).await;
        let waits = tokio::time::timeout(Duration::from_millis(20), first.changed(2)).await;
        assert!(waits.is_err(), "nothing is known of a third event");
        // What arrives late tells nothing new.
        changes.note([(id, 1)].into_iter());
        first.changed(1).await;
        drop((first, second));
        assert!(changes.by_id.lock().expect("not poisoned").is_empty());
    }
}
