//! What an answer to a write says of the events that it stored, so that its caller can read them back from services that read them.

use lastro_mesh::freshness;
use tonic::Response;
use uuid::Uuid;

use crate::EVENTS;
use crate::app::App;
use crate::domain::operation::Operation;
use crate::store::account_events::ACCOUNT_EVENTS;

/// More operations than these are told of by the place up to which all of them are stored: headers must not grow with them.
const TOLD_ONE_BY_ONE: usize = 32;

/// An operation, and how far it has come; None of one that is not stored.
pub fn mark(operation: &Operation) -> Option<(Uuid, i64)> {
    operation.head.map(|head| (operation.id, head.version))
}

/// An answer that speaks of operations.
pub fn of_operations<T>(answer: T, marks: impl IntoIterator<Item = (Uuid, i64)>) -> Response<T> {
    let mut response = Response::new(answer);
    freshness::tell(response.metadata_mut(), EVENTS.topic, marks);
    response
}

/// An answer that speaks of perhaps many operations.
pub async fn of_many_operations<T>(app: &App, answer: T, marks: Vec<(Uuid, i64)>) -> Response<T> {
    if marks.len() <= TOLD_ONE_BY_ONE {
        return of_operations(answer, marks);
    }
    let ids: Vec<Uuid> = marks.into_iter().map(|(id, _)| id).collect();
    let mut response = Response::new(answer);
    // They are stored, whether or not it can be looked up where.
    match EVENTS.place_of(&app.database, &ids).await {
        Ok(place) => freshness::tell_place(response.metadata_mut(), EVENTS.topic, &place.to_string()),
        Err(error) => tracing::warn!(%error, "it cannot be looked up where a batch is stored: its answer has no freshness token"),
    }
    response
}

/// An answer that speaks of an account that has come so far at least.
pub fn of_account<T>(answer: T, account_id: Uuid, version: i64) -> Response<T> {
    let mut response = Response::new(answer);
    freshness::tell(response.metadata_mut(), ACCOUNT_EVENTS.topic, [(account_id, version)]);
    response
}
