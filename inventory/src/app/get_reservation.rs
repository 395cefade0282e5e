//! One reservation, as it stands.

use super::App;
use crate::Error;
use crate::domain::reservation::{PUBLIC, reservation_id};
use crate::store::reservations::{self, Reservation};

/// By the name that its caller gave it.
pub async fn get_reservation(app: &App, name: &str) -> Result<Reservation, Error> {
    let found = reservations::by_ids(app.database.reader(), &[reservation_id(PUBLIC, name)]).await?.pop();
    found.ok_or(Error::ReservationNotFound)
}
