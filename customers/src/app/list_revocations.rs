//! What was revoked since a cursor, page by page to the end: for services that the bus may have failed, and for other replicas of customers.
//!
//! The set decides who gets in, so that nothing of it may be missed: not what a page has no room for, and not what is committed late. A reader that
//! has no cursor yet gets everything that still matters, then what the event store has had since it began. From then on it follows the event
//! store, whose order is complete (see `lastro_events::store`), from where it came to, whenever that was: no clock is asked.
//!
//! Complete means that it ends before the oldest transaction that is open anywhere in the cluster. A dead token must not wait for that one. So what
//! lies beyond is told as well, again at each call, until the order has come so far: what is told twice does no harm.

use std::fmt;
use std::str::FromStr;

use lastro_events::Event;
use lastro_events::store::Cursor;
use lastro_mesh::clock;
use lastro_mesh::identity::Revocation;
use lastro_mesh::status::Problem;
use lastro_proto::customers::events::v1::{UserEvent, user_event};
use prost::Message as _;
use uuid::Uuid;

use super::App;
use crate::store::{sessions, users};
use crate::{EVENTS, Error};

/// Revocations, or events, that one page looks at.
const PAGE: u32 = 1000;

/// How far a reader has come. Its text is nobody's business but ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Among the sessions that were ended by themselves, after this one; the event store stood there when it began.
    Sessions(Cursor, (i64, Uuid)),
    /// Among the users whose older tokens are dead, after this one.
    Users(Cursor, Uuid),
    /// In the event store.
    Events(Cursor),
    /// Beyond what is complete, which ends at the first cursor: after the second one.
    Beyond(Cursor, Cursor),
}

/// A page, the cursor of the next one, and whether that has something already.
#[derive(Debug)]
pub struct Page {
    pub revocations: Vec<Revocation>,
    pub cursor: String,
    pub more: bool,
}

/// The page after an earlier one's cursor; an empty one begins.
pub async fn list_revocations(app: &App, cursor: &str) -> Result<Page, Error> {
    let place = if cursor.is_empty() {
        Place::Sessions(EVENTS.end(&app.database).await?, (i64::MIN, Uuid::nil()))
    } else {
        cursor.parse().map_err(|()| Problem::field("cursor", "must be the cursor of an earlier answer, or empty"))?
    };
    let (reader, now_s) = (app.database.reader(), clock::now_s());
    let (revocations, next, more) = match place {
        Place::Sessions(begin, after) => {
            let page = sessions::revoked_after(reader, after, now_s, PAGE).await?;
            let last = page.last().filter(|_| page.len() >= PAGE as usize).map(|last| (last.revoked_us, last.id));
            let next = last.map_or(Place::Users(begin, Uuid::nil()), |last| Place::Sessions(begin, last));
            let told = page.into_iter().map(|one| Revocation::Session { session_id: one.id, forget_after_s: one.forget_after_s });
            (told.collect(), next, true)
        }
        Place::Users(begin, after) => {
            let page = users::revoked_after(reader, after, now_s, PAGE).await?;
            let last = page.last().filter(|_| page.len() >= PAGE as usize).map(|last| last.id);
            let next = last.map_or(Place::Events(begin), |last| Place::Users(begin, last));
            let told = page.into_iter().map(|one| Revocation::User {
                user_id: one.id,
                token_version: one.token_version,
                forget_after_s: one.tokens_forget_after_s,
            });
            (told.collect(), next, true)
        }
        Place::Events(after) => {
            let page = EVENTS.after(&app.database, after, PAGE).await?;
            let (complete, more) = (page.last().map_or(after, |(cursor, _)| *cursor), page.len() >= PAGE as usize);
            let next = if more { Place::Events(complete) } else { Place::Beyond(complete, complete) };
            let has_beyond = more || !EVENTS.visible_after(&app.database, complete, 1).await?.is_empty();
            let next = if has_beyond { next } else { Place::Events(complete) };
            (revocations_of(&page), next, has_beyond)
        }
        Place::Beyond(complete, after) => {
            let page = EVENTS.visible_after(&app.database, after, PAGE).await?;
            let last = page.last().filter(|_| page.len() >= PAGE as usize).map(|(cursor, _)| *cursor);
            let next = last.map_or(Place::Events(complete), |last| Place::Beyond(complete, last));
            (revocations_of(&page), next, last.is_some())
        }
    };
    Ok(Page { revocations, cursor: next.to_string(), more })
}

fn revocations_of(page: &[(Cursor, Event)]) -> Vec<Revocation> {
    page.iter().filter_map(|(_, event)| revocation_of(event)).collect()
}

/// What an event revokes. One of ours always reads; none is left out.
fn revocation_of(event: &Event) -> Option<Revocation> {
    match UserEvent::decode(event.payload.as_slice()).ok()?.event? {
        user_event::Event::SessionRevoked(session) => {
            let session_id = Uuid::parse_str(&session.session_id).ok()?;
            Some(Revocation::Session { session_id, forget_after_s: session.forget_after_s })
        }
        user_event::Event::TokensRevoked(revoked) => {
            Some(Revocation::User { user_id: event.aggregate_id, token_version: revoked.token_version, forget_after_s: revoked.forget_after_s })
        }
        user_event::Event::UserCreated(_)
        | user_event::Event::UserDisabled(_)
        | user_event::Event::RolesChanged(_)
        | user_event::Event::UserDeleted(_)
        | user_event::Event::UserUpdated(_) => None,
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sessions(begin, (us, id)) => write!(formatter, "sessions:{begin}:{us}:{id}"),
            Self::Users(begin, id) => write!(formatter, "users:{begin}:{id}"),
            Self::Events(cursor) => write!(formatter, "events:{cursor}"),
            Self::Beyond(complete, after) => write!(formatter, "beyond:{complete}:{after}"),
        }
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        fn read<T: FromStr>(part: Option<&str>) -> Result<T, ()> {
            part.ok_or(())?.parse().map_err(|_| ())
        }
        let mut parts = text.split(':');
        let kind = parts.next();
        let cursor: Cursor = read(parts.next())?;
        match kind {
            Some("sessions") => Ok(Self::Sessions(cursor, (read(parts.next())?, read(parts.next())?))),
            Some("users") => Ok(Self::Users(cursor, read(parts.next())?)),
            Some("events") => Ok(Self::Events(cursor)),
            Some("beyond") => Ok(Self::Beyond(cursor, read(parts.next())?)),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back() {
        let cursor = Cursor { incarnation: 1, xid: 7, seq: 9, cluster: 3 };
        let beyond = Place::Beyond(cursor, Cursor { xid: 8, ..cursor });
        for place in [Place::Sessions(cursor, (-3, Uuid::from_u128(1))), Place::Users(cursor, Uuid::from_u128(2)), Place::Events(cursor), beyond] {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        for text in ["", "events", "events:1", "events:x:1", "users:0.0.1.1", "beyond:0.0.1.1:2", "others:0.0.1.1"] {
            assert_eq!(text.parse::<Place>(), Err(()), "{text}");
        }
    }
}
