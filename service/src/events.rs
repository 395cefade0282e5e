//! Events between services: what every service that publishes or reads events serves to others (`lastro.internal.events.v1`), and the way to the
//! events of another service.

use std::time::Duration;

use lastro_database::Database;
use lastro_events::source::{Fetch, Given, Page, Source, SourceError};
use lastro_events::store::Cursor;
use lastro_events::{Event, EventStore, dead_letters};
use lastro_mesh::call::Call;
use lastro_mesh::identity::Principal;
use lastro_mesh::outbound::Outbound;
use lastro_mesh::status::{INTERNAL, NOT_FOUND, PERMISSION_DENIED, Problem, UNAVAILABLE};
use lastro_proto::internal::events::v1 as wire;
use lastro_proto::internal::events::v1::dead_letters_service_server::{DeadLettersService, DeadLettersServiceServer};
use lastro_proto::internal::events::v1::events_service_client::EventsServiceClient;
use lastro_proto::internal::events::v1::events_service_server::{EventsService, EventsServiceServer};
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::Service;

/// The package of both.
pub const PACKAGE: &str = "lastro.internal.events.v1";

/// An answer ends after so many bytes of events.
const PAGE_BYTES: usize = 1024 * 1024;
/// Rows to a statement: of what is far larger than an answer may be, so many are read in vain at most.
const ROWS_AT_ONCE: u32 = 250;
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Who may read every topic: an operator, and whoever is on the same machine where nothing proves who calls.
const READS_ALL: [&str; 2] = ["operator", "loopback"];
const DEAD_LETTERS_PER_PAGE: u32 = 100;

/// Which services read a topic.
pub type ReadersOf = fn(&str) -> Vec<&'static str>;

/// Adds to the routes of a service what it serves to others of events.
pub fn add_to(routes: Routes, service: &'static Service, database: &Database, readers_of: ReadersOf) -> Routes {
    let mut routes = routes;
    if !service.publishes.is_empty() {
        routes = routes.add_service(EventsServiceServer::new(Events { stores: service.publishes, database: database.clone(), readers_of }));
    }
    if !service.reads.is_empty() {
        routes = routes.add_service(DeadLettersServiceServer::new(DeadLetters { database: database.clone() }));
    }
    routes
}

struct Events {
    stores: &'static [EventStore],
    database: Database,
    readers_of: ReadersOf,
}

impl Events {
    /// The store of a topic, for one of its readers. The policy says who may read events at all; which ones, the registrations say.
    fn store<T>(&self, topic: &str, request: &Request<T>) -> Result<EventStore, Problem> {
        let found = self.stores.iter().find(|store| store.topic == topic).copied();
        let store = found.ok_or_else(|| Problem::new(&NOT_FOUND, "this service publishes no such topic"))?;
        match &Call::of(request)?.principal {
            Some(Principal::Service(name)) if READS_ALL.contains(&name.as_ref()) || (self.readers_of)(topic).contains(&name.as_ref()) => Ok(store),
            Some(Principal::Service(name)) => {
                Err(Problem::new(&PERMISSION_DENIED, format!("{name} does not read {topic}: the topic is not among what it registers as read")))
            }
            _ => Err(Problem::new(&PERMISSION_DENIED, "only services may read events")),
        }
    }
}

#[tonic::async_trait]
impl EventsService for Events {
    async fn read_events(&self, request: Request<wire::ReadEventsRequest>) -> Result<Response<wire::ReadEventsResponse>, Status> {
        let store = self.store(&request.get_ref().topic, &request)?;
        let asked = request.into_inner();
        let limit = asked.limit.unsigned_abs() as usize;
        let mut cursor = match asked.cursor.as_str() {
            "" => Cursor::default(),
            text => text.parse().map_err(|_| Problem::field("cursor", "must be the cursor of an earlier answer, or empty"))?,
        };
        let (mut events, mut bytes, mut has_more) = (Vec::new(), 0, true);
        while has_more && events.len() < limit && bytes < PAGE_BYTES {
            let rows = ROWS_AT_ONCE.min((limit - events.len()) as u32);
            let found = store.after(&self.database, cursor, rows).await.map_err(problem)?;
            has_more = found.len() == rows as usize;
            for (place, event) in found {
                if bytes >= PAGE_BYTES {
                    has_more = true;
                    break;
                }
                cursor = place;
                bytes += bytes_of(&event);
                events.push(to_wire(event));
            }
        }
        Ok(Response::new(wire::ReadEventsResponse { events, cursor: cursor.to_string(), has_more }))
    }

    async fn read_aggregate(&self, request: Request<wire::ReadAggregateRequest>) -> Result<Response<wire::ReadAggregateResponse>, Status> {
        let store = self.store(&request.get_ref().topic, &request)?;
        let asked = request.into_inner();
        let limit = asked.limit.unsigned_abs() as usize;
        let aggregate_id = Uuid::parse_str(&asked.aggregate_id).map_err(|_| Problem::field("aggregate_id", "must be a UUID"))?;
        let (mut events, mut bytes, mut version) = (Vec::new(), 0, asked.from_version);
        while events.len() < limit && bytes < PAGE_BYTES {
            let rows = ROWS_AT_ONCE.min((limit - events.len()) as u32);
            let found = store.stream_from(&self.database, aggregate_id, version, rows).await.map_err(problem)?;
            let is_last = found.len() < rows as usize;
            for event in found {
                if bytes >= PAGE_BYTES {
                    break;
                }
                version = event.version + 1;
                bytes += bytes_of(&event);
                events.push(to_wire(event));
            }
            if is_last {
                break;
            }
        }
        Ok(Response::new(wire::ReadAggregateResponse { events }))
    }
}

struct DeadLetters {
    database: Database,
}

#[tonic::async_trait]
impl DeadLettersService for DeadLetters {
    async fn list_dead_letters(&self, request: Request<wire::ListDeadLettersRequest>) -> Result<Response<wire::ListDeadLettersResponse>, Status> {
        let token = request.into_inner().page_token;
        let after = if token.is_empty() {
            None
        } else {
            Some(place_of(&token).ok_or_else(|| Problem::field("page_token", "must be the token of an earlier answer, or empty"))?)
        };
        let found = dead_letters::list(&self.database, after, DEAD_LETTERS_PER_PAGE).await.map_err(problem)?;
        let last = found.last().filter(|_| found.len() == DEAD_LETTERS_PER_PAGE as usize);
        let next_page_token = last.map(|last| format!("{} {} {}", last.topic, last.aggregate_id, last.version)).unwrap_or_default();
        let dead_letters = found.into_iter().map(|one| wire::DeadLetter {
            topic: one.topic,
            aggregate_id: one.aggregate_id.to_string(),
            version: one.version,
            kind: one.kind,
            correlation_id: one.correlation_id,
            error: one.error,
            dead_us: one.dead_us,
        });
        Ok(Response::new(wire::ListDeadLettersResponse { dead_letters: dead_letters.collect(), next_page_token }))
    }

    async fn retry_dead_letters(&self, request: Request<wire::RetryDeadLettersRequest>) -> Result<Response<wire::RetryDeadLettersResponse>, Status> {
        let asked = request.into_inner();
        let aggregate_id = Uuid::parse_str(&asked.aggregate_id).map_err(|_| Problem::field("aggregate_id", "must be a UUID"))?;
        let events = dead_letters::retry(&self.database, &asked.topic, aggregate_id).await.map_err(problem)?;
        Ok(Response::new(wire::RetryDeadLettersResponse { events: i32::try_from(events).unwrap_or(i32::MAX) }))
    }
}

fn place_of(token: &str) -> Option<(&str, Uuid, i64)> {
    let mut parts = token.split(' ');
    Some((parts.next()?, Uuid::parse_str(parts.next()?).ok()?, parts.next()?.parse().ok()?))
}

fn problem(error: lastro_database::Error) -> Problem {
    if error.is_transient() {
        tracing::warn!(%error, "the database is busy or away");
        return Problem::new(&UNAVAILABLE, "the database is busy or away");
    }
    tracing::error!(%error, "the database refused");
    Problem::new(&INTERNAL, "internal error")
}

fn bytes_of(event: &Event) -> usize {
    200 + event.payload.len() + event.kind.len() + event.correlation_id.len()
}

fn to_wire(event: Event) -> wire::Event {
    wire::Event {
        id: event.id.as_bytes().to_vec(),
        aggregate_id: event.aggregate_id.as_bytes().to_vec(),
        version: event.version,
        kind: event.kind,
        payload: event.payload,
        correlation_id: event.correlation_id,
        causation_id: event.causation_id.map(|id| id.as_bytes().to_vec()).unwrap_or_default(),
        recorded_us: event.recorded_us,
        digest: event.digest.to_vec(),
        hash: event.hash.to_vec(),
    }
}

fn from_wire(event: wire::Event) -> Option<Event> {
    let causation_id = if event.causation_id.is_empty() { None } else { Some(Uuid::from_slice(&event.causation_id).ok()?) };
    Some(Event {
        id: Uuid::from_slice(&event.id).ok()?,
        aggregate_id: Uuid::from_slice(&event.aggregate_id).ok()?,
        version: event.version,
        kind: event.kind,
        payload: event.payload,
        digest: event.digest.try_into().ok()?,
        correlation_id: event.correlation_id,
        causation_id,
        recorded_us: event.recorded_us,
        hash: event.hash.try_into().ok()?,
    })
}

/// The events of a topic of another service, asked for there.
struct Asked {
    topic: &'static str,
    publisher: EventsServiceClient<Outbound>,
}

/// The way to the events of a topic of another service.
pub fn source(topic: &'static str, publisher: Outbound) -> Source {
    std::sync::Arc::new(Asked { topic, publisher: EventsServiceClient::new(publisher) })
}

impl Fetch for Asked {
    fn after(&self, cursor: Cursor, limit: u32) -> Given<'_, Page> {
        Box::pin(async move {
            let cursor = if cursor == Cursor::default() { String::new() } else { cursor.to_string() };
            let request = wire::ReadEventsRequest { topic: self.topic.to_owned(), cursor, limit: limit as i32 };
            let answer = self.publisher.clone().read_events(Call::start(READ_TIMEOUT).request(request)).await.map_err(refused)?.into_inner();
            let cursor = answer.cursor.parse().map_err(|_| unreadable())?;
            Ok(Page { events: events(answer.events)?, cursor, has_more: answer.has_more })
        })
    }

    fn stream(&self, aggregate_id: Uuid, from_version: i64, limit: u32) -> Given<'_, Vec<Event>> {
        Box::pin(async move {
            let (topic, aggregate_id) = (self.topic.to_owned(), aggregate_id.to_string());
            let request = wire::ReadAggregateRequest { topic, aggregate_id, from_version, limit: limit as i32 };
            let answer = self.publisher.clone().read_aggregate(Call::start(READ_TIMEOUT).request(request)).await.map_err(refused)?;
            events(answer.into_inner().events)
        })
    }
}

fn events(events: Vec<wire::Event>) -> Result<Vec<Event>, SourceError> {
    events.into_iter().map(from_wire).collect::<Option<_>>().ok_or_else(unreadable)
}

fn refused(status: Status) -> SourceError {
    SourceError(format!("{:?}: {}", status.code(), status.message()))
}

fn unreadable() -> SourceError {
    SourceError("the publisher's answer does not read".to_owned())
}
