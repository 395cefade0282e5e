//! A read that its caller wants to see what it has written.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use lastro_database::Database;
use lastro_events::changes::Versions as _;
use lastro_events::inbox;
use lastro_events::store::Cursor;
use lastro_mesh::call::Call;
use lastro_mesh::freshness::{Asked, FRESHNESS_HEADER};
use lastro_mesh::status::Problem;
use tokio::sync::{Mutex, OwnedSemaphorePermit};
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use super::App;
use crate::Error;
use crate::consume::TOPICS;
use crate::store::entries;

/// A read waits for so long at most.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// An answer has to be on its way so long before the caller gives up.
const MARGIN: Duration = Duration::from_millis(300);
/// How often it is looked for what nobody tells of.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A read that is to see what its caller has written, by this instant at most. It holds its places until it is answered.
#[derive(Debug)]
pub struct SeesBy {
    deadline: Instant,
    _places: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// How far the event stores were read, as it was looked up last: all that wait share one look.
pub struct ReadUpTo {
    database: Database,
    looked: Mutex<Option<(Instant, HashMap<&'static str, Cursor>)>>,
}

impl ReadUpTo {
    pub fn new(database: &Database) -> Self {
        Self { database: database.clone(), looked: Mutex::new(None) }
    }

    async fn is_at(&self, topic: &str, place: Cursor) -> Result<bool, Error> {
        let mut looked = self.looked.lock().await;
        let places = match &mut *looked {
            Some((at, places)) if at.elapsed() < LOOK_EVERY => places,
            stale => {
                let mut places = HashMap::new();
                for topic in TOPICS {
                    places.insert(topic, inbox::cursor(&self.database, topic, crate::NAME).await?);
                }
                &mut stale.insert((Instant::now(), places)).1
            }
        };
        Ok(places.get(topic).is_some_and(|cursor| *cursor >= place))
    }
}

/// Waits until all of it is seen here. None where nothing is asked for.
pub async fn wait_until_seen(app: &App, call: &Call, asked: &Asked) -> Result<Option<SeesBy>, Error> {
    if asked.is_empty() {
        return Ok(None);
    }
    let places = read_places(asked)?;
    let deadline = Instant::now() + WAIT_MAX.min(call.remaining().saturating_sub(MARGIN));
    let crowded = || Problem::crowded("too many reads wait until they see a write");
    let of_caller = app.waiting_of_caller.take(call.user()?.id, Instant::now()).await.ok_or_else(crowded)?;
    let of_all = app.waiting.clone().try_acquire_owned().map_err(|_| crowded())?;
    let sees_by = SeesBy { deadline, _places: (of_caller, of_all) };
    // Before it is looked at: what comes in between is not missed.
    let mut followers: Vec<_> = asked.marks.iter().map(|mark| (app.seen.follow(mark.aggregate_id), mark.version)).collect();
    let ids: Vec<Uuid> = asked.marks.iter().map(|mark| mark.aggregate_id).collect();
    let seen: HashMap<Uuid, i64> = app.versions().versions(&ids).await?.into_iter().collect();
    let mut missing = Vec::new();
    for (mark, (follower, version)) in asked.marks.iter().zip(&mut followers) {
        if seen.get(&mark.aggregate_id).is_none_or(|seen| *seen < *version) {
            missing.push(follower.changed(*version - 1));
        }
    }
    let mut unread = Vec::new();
    for (topic, place) in places {
        if !app.read_up_to.is_at(topic, place).await? {
            unread.push((topic, place));
        }
    }
    if missing.is_empty() && unread.is_empty() {
        return Ok(Some(sees_by));
    }
    // Waiting is no load.
    call.slot.release();
    let all = async {
        join_all(missing).await;
        for (topic, place) in unread {
            while !app.read_up_to.is_at(topic, place).await? {
                sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    };
    timeout_at(deadline, all).await.unwrap_or(Err(Error::NotFreshYet))?;
    Ok(Some(sees_by))
}

/// The places that are asked for, where all of it is of topics that are read here.
fn read_places(asked: &Asked) -> Result<Vec<(&str, Cursor)>, Problem> {
    let topics = asked.marks.iter().map(|mark| &mark.topic).chain(asked.places.iter().map(|(topic, _)| topic));
    if let Some(other) = topics.into_iter().find(|topic| !TOPICS.contains(&topic.as_str())) {
        return Err(Problem::field(FRESHNESS_HEADER, format!("names {other:?}, which these reports are not made from")));
    }
    let malformed = |_| Problem::field(FRESHNESS_HEADER, "must be as an earlier answer had it");
    asked.places.iter().map(|(topic, place)| Ok((topic.as_str(), place.parse().map_err(malformed)?))).collect()
}

/// Waits until all that is stored of these accounts by now counts: what the caller has written may stand behind a gap, which closes as soon as the event of
/// another transaction comes. What comes meanwhile is not waited for.
pub async fn wait_until_counted(app: &App, accounts: &[Uuid], sees_by: Option<&SeesBy>) -> Result<(), Error> {
    if sees_by.is_none() {
        return Ok(());
    }
    let stored = entries::stored_ahead(app.database.reader(), accounts).await?;
    let ids: Vec<Uuid> = stored.iter().map(|(id, _)| *id).collect();
    while !ids.is_empty() {
        let counted: HashMap<Uuid, i64> = entries::versions_of(app.database.reader(), &ids).await?.into_iter().collect();
        if stored.iter().all(|(id, version)| counted.get(id).is_some_and(|counted| counted >= version)) {
            break;
        }
        wait_a_moment(sees_by).await?;
    }
    Ok(())
}

/// For what will be here in a moment, unless the time for that is over. Whoever waits for no write does not wait for this either.
pub async fn wait_a_moment(sees_by: Option<&SeesBy>) -> Result<(), Error> {
    if sees_by.is_none_or(|sees_by| Instant::now() + LOOK_EVERY > sees_by.deadline) {
        return Err(Error::NotFreshYet);
    }
    sleep(LOOK_EVERY).await;
    Ok(())
}
