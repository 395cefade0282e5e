//! Confirms a reservation, or releases it.

use lastro_mesh::call::Call;

use super::get_reservation::get_reservation;
use super::{App, stored};
use crate::Error;
use crate::batches::NewResolution;
use crate::domain::reservation::Verb;
use crate::store::reservations::Reservation;

/// As it stands then. One that has ended so already stays as it is.
pub async fn resolve_reservation(app: &App, call: &Call, name: &str, verb: Verb) -> Result<Reservation, Error> {
    let reservation = get_reservation(app, name).await?;
    let new = NewResolution::of(&reservation, verb, call.correlation_id.to_string());
    let made = stored(call, app.batches.resolve(new)).await?;
    app.cache.told(&made.reservation.products()).await;
    Ok(made.reservation)
}
