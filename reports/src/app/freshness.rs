//! A read that its caller wants to see what it has written.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use lastro_database::Database;
use lastro_events::changes::Versions as _;
use lastro_events::inbox;
use lastro_events::store::Cursor;
use lastro_mesh::call::{Call, Slot};
use lastro_mesh::freshness::{Asked, FRESHNESS_HEADER, MUST_BE, Mark};
use lastro_mesh::quota::{Permit, Quota};
use lastro_mesh::status::Problem;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use super::App;
use crate::Error;
use crate::consume::{ORDERS, TOPICS, TRANSACTIONS};
use crate::store::{early, entries};

/// A read waits for so long at most.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// An answer has to be on its way so long before the caller gives up.
const MARGIN: Duration = Duration::from_millis(300);
/// Reads that wait at once until they see a write.
const WAITING_MAX: usize = 1_024;
/// And those of one caller.
const WAITING_OF_CALLER: usize = 32;
/// Transactions that posted to accounts which are not known yet, that a read looks for: where there are more, accounts are far behind.
const EARLY_MAX: usize = 1_000;
/// How often the database is asked for changes that nobody announces.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The places of reads that wait for a write: a read takes one when it begins to wait, and none if it need not.
pub fn waiting() -> Arc<Quota<Uuid>> {
    Quota::new(WAITING_OF_CALLER, WAITING_MAX)
}

/// A read that is to see what its caller has written, by an instant at most.
pub struct SeesBy {
    deadline: Instant,
    caller_id: Uuid,
    waiting: Arc<Quota<Uuid>>,
    /// Once it has waited it holds it until it is answered.
    place: OnceCell<Permit<Uuid>>,
    slot: Slot,
    /// The transactions that it is to see, as far as they are named.
    transactions: Vec<Uuid>,
    /// Whether it is to see others too.
    and_others: bool,
    /// Who wrote what it waits for.
    writer: &'static str,
}

impl SeesBy {
    /// Takes the place of a read that waits, unless it has one, and gives up the call's place among those that are handled at once: waiting is no load.
    /// Refuses where too many wait.
    async fn waits(&self) -> Result<(), Problem> {
        let take = async || self.waiting.take(Some(self.caller_id), 1).ok_or_else(too_many);
        self.place.get_or_try_init(take).await?;
        self.slot.release();
        Ok(())
    }

    /// What it waits for was not seen in time.
    const fn too_late(&self) -> Error {
        Error::NotFreshYet { writer: self.writer }
    }
}

fn too_many() -> Problem {
    let rule =
        format!("{WAITING_OF_CALLER} reads of yours, or {WAITING_MAX} of all callers, wait until they see a write; ask again when some are answered");
    Problem::crowded(rule)
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
    let sees_by = SeesBy {
        deadline: Instant::now() + WAIT_MAX.min(call.remaining().saturating_sub(MARGIN)),
        caller_id: call.user()?.id,
        waiting: app.waiting.clone(),
        place: OnceCell::new(),
        slot: call.slot.clone(),
        transactions: asked.marks.iter().filter(|mark| mark.topic == TRANSACTIONS).map(|mark| mark.aggregate_id).collect(),
        writer: if asked.topics().all(|topic| topic == ORDERS) { ORDERS } else { TRANSACTIONS },
        and_others: places.iter().any(|(topic, _)| *topic == TRANSACTIONS),
    };
    let mut unread = Vec::new();
    for (topic, place) in places {
        if !app.read_up_to.is_at(topic, place).await? {
            unread.push((topic, place));
        }
    }
    if unread.is_empty() && unseen(app, &asked.marks).await?.is_empty() {
        return Ok(Some(sees_by));
    }
    sees_by.waits().await?;
    // They are followed before it is looked how far they are: what comes in between is not missed.
    let followers: Vec<_> = asked.marks.iter().map(|mark| (mark.aggregate_id, app.seen.follow(mark.aggregate_id), mark.version)).collect();
    let missing = unseen(app, &asked.marks).await?;
    let all = async {
        let following = followers.into_iter().filter(|(id, ..)| missing.contains(id));
        join_all(following.map(async |(_, mut follower, version)| follower.changed(version - 1).await)).await;
        for (topic, place) in unread {
            while !app.read_up_to.is_at(topic, place).await? {
                sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    };
    timeout_at(sees_by.deadline, all).await.unwrap_or(Err(sees_by.too_late()))?;
    Ok(Some(sees_by))
}

/// The aggregates that have not come so far yet.
async fn unseen(app: &App, marks: &[Mark]) -> Result<HashSet<Uuid>, Error> {
    let ids: Vec<Uuid> = marks.iter().map(|mark| mark.aggregate_id).collect();
    let seen: HashMap<Uuid, i64> = app.versions().versions(&ids).await?.into_iter().collect();
    let unseen = marks.iter().filter(|mark| seen.get(&mark.aggregate_id).is_none_or(|seen| *seen < mark.version));
    Ok(unseen.map(|mark| mark.aggregate_id).collect())
}

/// The places that are asked for, where all of it is of topics that are read here.
fn read_places(asked: &Asked) -> Result<Vec<(&str, Cursor)>, Problem> {
    if let Some(other) = asked.topics().find(|topic| !TOPICS.contains(topic)) {
        return Err(Problem::field(
            FRESHNESS_HEADER,
            format!("has a token of {other:?}, which reports are not made from; send only tokens of accounts, orders and transactions"),
        ));
    }
    let malformed = |_| Problem::field(FRESHNESS_HEADER, MUST_BE);
    asked.places.iter().map(|(topic, place)| Ok((topic.as_str(), place.parse().map_err(malformed)?))).collect()
}

/// Waits until every posting of these accounts that is stored now also counts: that of the caller may stand behind a gap, which closes when the event of another
/// transaction comes. What is stored later is not waited for. Refuses where the time is over.
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

/// Waits until every account is known to which the writes posted that the read is to see: that it was opened may come later than what was posted to it.
pub async fn wait_until_opened(app: &App, sees_by: Option<&SeesBy>) -> Result<(), Error> {
    let Some(sees) = sees_by else { return Ok(()) };
    let on = app.database.reader();
    let mut transactions = sees.transactions.clone();
    if sees.and_others {
        // What the read is to see is among those that are noted now: what comes meanwhile is not waited for.
        transactions.extend(early::all_of_them(on, EARLY_MAX + 1).await?);
        if transactions.len() > EARLY_MAX + sees.transactions.len() {
            return Err(sees.too_late());
        }
    }
    while early::are_of(on, &transactions).await? {
        wait_a_moment(sees_by).await?;
    }
    Ok(())
}

/// Sleeps until it is time to look again. Refuses where the deadline comes first, and for a read without a token, which waits for nothing.
pub async fn wait_a_moment(sees_by: Option<&SeesBy>) -> Result<(), Error> {
    let Some(sees_by) = sees_by else { return Err(Error::NotFreshYet { writer: TRANSACTIONS }) };
    if Instant::now() + LOOK_EVERY > sees_by.deadline {
        return Err(sees_by.too_late());
    }
    sees_by.waits().await?;
    sleep(LOOK_EVERY).await;
    Ok(())
}
