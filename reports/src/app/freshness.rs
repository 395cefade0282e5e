//! A read that its caller wants to see what it has written.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use lastro_events::changes::Versions as _;
use lastro_events::inbox;
use lastro_events::store::Cursor;
use lastro_mesh::call::Call;
use lastro_mesh::freshness::{Asked, FRESHNESS_HEADER};
use lastro_mesh::status::Problem;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use super::App;
use crate::Error;
use crate::store::entries;

/// A read waits for so long at most.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// An answer has to be on its way so long before the caller gives up.
const MARGIN: Duration = Duration::from_millis(300);
const TOPICS: [&str; 2] = ["accounts", "transactions"];

/// How often it is looked how far the event store was read.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A read that is to see what its caller has written, by this instant at most.
#[derive(Debug, Clone, Copy)]
pub struct SeesBy(Instant);

/// Waits until all of it is seen here. None where nothing is asked for.
pub async fn wait_until_seen(app: &App, call: &Call, asked: &Asked) -> Result<Option<SeesBy>, Error> {
    if asked.is_empty() {
        return Ok(None);
    }
    let deadline = Instant::now() + WAIT_MAX.min(call.remaining().saturating_sub(MARGIN));
    let topics = asked.marks.iter().map(|mark| &mark.topic).chain(asked.places.iter().map(|(topic, _)| topic));
    if let Some(other) = topics.into_iter().find(|topic| !TOPICS.contains(&topic.as_str())) {
        return Err(Problem::field(FRESHNESS_HEADER, format!("names {other:?}, which these reports are not made from")).into());
    }
    let marks = &asked.marks;
    let _place = app.waiting.try_acquire().map_err(|_| Problem::crowded("too many reads wait until they see a write"))?;
    // Before it is looked at: what comes in between is not missed.
    let mut followers: Vec<_> = marks.iter().map(|mark| (app.seen.follow(mark.aggregate_id), mark.version)).collect();
    let ids: Vec<Uuid> = marks.iter().map(|mark| mark.aggregate_id).collect();
    let seen: HashMap<Uuid, i64> = app.versions().versions(&ids).await?.into_iter().collect();
    let mut missing = Vec::new();
    for (mark, (follower, version)) in marks.iter().zip(&mut followers) {
        if seen.get(&mark.aggregate_id).is_none_or(|seen| *seen < *version) {
            missing.push(follower.changed(*version - 1));
        }
    }
    if missing.is_empty() && asked.places.is_empty() {
        return Ok(Some(SeesBy(deadline)));
    }
    // Waiting is no load.
    call.slot.release();
    let all = async {
        join_all(missing).await;
        for (topic, place) in &asked.places {
            wait_until_read(app, topic, place).await?;
        }
        Ok(Some(SeesBy(deadline)))
    };
    timeout_at(deadline, all).await.unwrap_or(Err(Error::NotFreshYet))
}

/// Waits until nothing that is stored of these accounts waits for an earlier posting: what the caller has written may stand behind a gap, which closes as
/// soon as the event of another transaction comes.
pub async fn wait_until_counted(app: &App, accounts: &[Uuid], sees_by: Option<SeesBy>) -> Result<(), Error> {
    while sees_by.is_some() && entries::any_ahead(app.database.reader(), accounts).await? {
        wait_a_moment(sees_by).await?;
    }
    Ok(())
}

/// For what will be here in a moment, unless the time for that is over. Whoever waits for no write does not wait for this either.
pub async fn wait_a_moment(sees_by: Option<SeesBy>) -> Result<(), Error> {
    if sees_by.is_none_or(|SeesBy(deadline)| Instant::now() + LOOK_EVERY > deadline) {
        return Err(Error::NotFreshYet);
    }
    sleep(LOOK_EVERY).await;
    Ok(())
}

async fn wait_until_read(app: &App, topic: &str, place: &str) -> Result<(), Error> {
    let malformed = |_| Problem::field(FRESHNESS_HEADER, "must be as an earlier answer had it");
    let place: Cursor = place.parse().map_err(malformed)?;
    while inbox::cursor(&app.database, topic, crate::NAME).await? < place {
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}
