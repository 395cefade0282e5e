//! What a saga asks of stock: each step with its undo. An undo of what was never made leaves a tombstone, and whoever has lost its lease is refused.

use std::time::Duration;

use lastro_database::group_commit::Lock;
use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::status::Problem;
use tokio::time::Instant;
use uuid::Uuid;

use super::reserve_stock::{Wanted, reserve};
use super::{App, ITEMS_PER_BUYER, stored};
use crate::Error;
use crate::batches::{NewReservation, NewResolution, Refused};
use crate::domain::reservation::{State, Verb, reservation_id};
use crate::store::reservations::Reservation;
use crate::store::sagas::{self, SagaEpoch};

/// Which reservation of which saga, and with which epoch.
pub struct SagaStep {
    pub saga: SagaEpoch,
    pub step: String,
}

/// So long a buyer's order waits for its turn.
const TURN_WAIT: Duration = Duration::from_secs(2);

/// Keeps pieces. Refused where an undo was faster, or has been made since.
pub async fn saga_reserve(app: &App, call: &Call, buyer_id: Uuid, wanted: Wanted) -> Result<Reservation, Error> {
    let busy = || Problem::crowded("too many items of this buyer are being reserved");
    let items = u32::try_from(wanted.items.len()).unwrap_or(ITEMS_PER_BUYER).min(ITEMS_PER_BUYER);
    let _turn = app.reserving.take_many(buyer_id, items, call.deadline.min(Instant::now() + TURN_WAIT)).await.ok_or_else(busy)?;
    let saga = wanted.fence;
    if let Some(saga) = saga.filter(|_| app.batches.may_be_reserved(reservation_id(wanted.namespace, &wanted.name)))
        && find(app, wanted.namespace, &wanted.name).await?.is_some()
    {
        // A repetition is answered with what is stored, without a batch that would judge the epoch.
        fence(app, saga).await?;
    }
    let made = reserve(app, call, wanted).await?;
    // Somebody else has made it meanwhile: whoever comes with a lower epoch from now on is refused all the same.
    if let (true, Some(saga)) = (made.replayed, saga) {
        fence(app, saga).await?;
    }
    match made.reservation.state {
        // What has run out is kept for nobody any more: nothing is to be paid for it.
        State::Released | State::Returned | State::Expired => Err(Error::SagaCancelled),
        State::Reserved | State::Confirmed => Ok(made.reservation),
    }
}

/// Confirms, releases or returns what the step keeps. To release or return what is not there leaves a tombstone.
pub async fn saga_resolve(app: &App, call: &Call, of: SagaStep, verb: Verb) -> Result<Reservation, Error> {
    let reservation = match find(app, of.saga.id, &of.step).await? {
        Some(reservation) => reservation,
        None if verb == Verb::Confirm => {
            fence(app, of.saga).await?;
            return Err(Error::ReservationNotFound);
        }
        None => {
            let tombstone = NewReservation {
                id: reservation_id(of.saga.id, &of.step),
                namespace: of.saga.id,
                name: of.step,
                call_id: clock::new_id(),
                request_hash: None,
                items: Vec::new(),
                ttl_us: 0,
                fence: Some(of.saga),
                correlation_id: call.correlation_id.to_string(),
            };
            // Where the do was faster after all, that is what is undone.
            stored(call, app.batches.reserve(tombstone)).await?.reservation
        }
    };
    let new = NewResolution { fence: Some(of.saga), ..NewResolution::of(&reservation, verb, call.correlation_id.to_string()) };
    Ok(stored(call, app.batches.resolve(new)).await?.reservation)
}

async fn find(app: &App, saga_id: Uuid, step: &str) -> Result<Option<Reservation>, Error> {
    Ok(app.reservation_loader.load(reservation_id(saga_id, step)).await?)
}

/// Raises the saga's epoch, and refuses one that is lower.
async fn fence(app: &App, saga: SagaEpoch) -> Result<(), Error> {
    let highest = sagas::raise(app.database.writer(), &[saga], Lock::Wait).await?.pop().map_or(0, |found| found.epoch);
    if highest > saga.epoch { Err(Refused::StaleEpoch.into()) } else { Ok(()) }
}
