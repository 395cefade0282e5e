//! What can go wrong in a use case, and what of it a caller may read.

use std::time::Duration;

use lastro_mesh::codec::Violation;
use lastro_mesh::status::{INTERNAL, Problem, UNAVAILABLE};
use lastro_proto::reasons;

use crate::batches::{Refused, Short};
use crate::domain::reservation::State;

/// Why a use case refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something on the way already says what the caller reads.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// No such product.
    #[error("there is no such product")]
    ProductNotFound {
        /// Which field of the request names it, where that is not the id of the call.
        field: Option<String>,
    },
    /// No such account, or one that is closed.
    #[error("there is no such account, or it is closed")]
    AccountNotFound,
    /// No such reservation.
    #[error("there is no such reservation")]
    ReservationNotFound,
    /// An undo was made, before or after.
    #[error("the saga has undone this step")]
    SagaCancelled,
    /// Somebody changed what this change was confirmed with.
    #[error("somebody else has changed the product at this moment; read it again, and change what is still to be changed")]
    ChangedMeanwhile,
    /// The key was used for another request.
    #[error("the idempotency key was used for another request; use a new key, or send the same request")]
    IdempotencyKeyReused,
    /// The batch refused.
    #[error("{0:?}")]
    Refused(Refused),
    /// Transactions could not be asked.
    #[error("{0}")]
    Transactions(Box<tonic::Status>),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] lastro_database::Error),
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Crowded => Self::crowded("too many changes of stock wait to be stored; ask again with the same key"),
            Refused::Unavailable => {
                Self::new(&UNAVAILABLE, "inventory is busy or away; ask again with the same key").retry_after(Duration::from_secs(1))
            }
            Refused::Broken => Self::new(&INTERNAL, "internal error"),
            Refused::KeyReused => Error::IdempotencyKeyReused.into(),
            Refused::OutOfStock(short) => out_of_stock(&short),
            Refused::Overflow => Self::new(&reasons::STOCK_OVERFLOW, "a store counts at most 2147483647 pieces of a product"),
            Refused::VersionConflict { version } => {
                let text = format!("the stock has version {version} now; read it again, and decide again");
                let fields = vec![Violation::new("expected_version", text.clone())];
                Self { fields, ..Self::new(&reasons::VERSION_CONFLICT, text) }.retry_after(Duration::from_secs(1))
            }
            Refused::TooManyStores => Self::new(&reasons::TOO_MANY_STORES, "a product is in 100 stores at most"),
            Refused::Ended(State::Confirmed) => {
                Self::new(&reasons::RESERVATION_CONFIRMED, "the reservation was confirmed: what it kept has left its stores")
            }
            Refused::Ended(State::Expired) => {
                Self::new(&reasons::RESERVATION_EXPIRED, "the reservation has expired, and what it kept was given back")
            }
            Refused::Ended(State::Released | State::Returned | State::Reserved) => {
                Self::new(&reasons::RESERVATION_RELEASED, "the reservation was released, and what it kept was given back")
            }
            Refused::Cancelled => Error::SagaCancelled.into(),
            Refused::StaleEpoch => Self::new(&reasons::STALE_EPOCH, "somebody has called with a higher epoch of this saga"),
        }
    }
}

/// Every item that there is too little of is named.
fn out_of_stock(short: &[Short]) -> Problem {
    let text = |one: &Short| format!("only {} of the product {} are available", one.available, one.product_id);
    let fields: Vec<Violation> = short.iter().map(|one| Violation::new(format!("items[{}].quantity", one.index), text(one))).collect();
    let detail = short.iter().map(text).collect::<Vec<_>>().join("; ");
    let products = short.iter().map(|one| one.product_id.to_string()).collect::<Vec<_>>().join(",");
    Problem { fields, ..Problem::new(&reasons::OUT_OF_STOCK, detail) }.with("productIds", products)
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Problem(problem) => problem,
            Error::Refused(refused) => refused.into(),
            Error::ProductNotFound { field } => {
                let fields = field.map(|field| Violation::new(field, text.clone())).into_iter().collect();
                Self { fields, ..Self::new(&reasons::PRODUCT_NOT_FOUND, text) }
            }
            Error::AccountNotFound => {
                Self { fields: vec![Violation::new("merchant_account_id", text.clone())], ..Self::new(&reasons::ACCOUNT_NOT_FOUND, text) }
            }
            Error::ReservationNotFound => Self::new(&reasons::RESERVATION_NOT_FOUND, text),
            Error::SagaCancelled => Self::new(&reasons::SAGA_CANCELLED, text),
            Error::ChangedMeanwhile => Self::crowded(text),
            Error::IdempotencyKeyReused => Self::new(&reasons::IDEMPOTENCY_KEY_REUSED, text),
            Error::Transactions(status) => {
                tracing::warn!(error = %status.message(), code = ?status.code(), "transactions could not be asked");
                Self::new(&UNAVAILABLE, "the merchant's account cannot be confirmed right now").because_of("transactions")
            }
            Error::Database(error) => lastro_service::database_problem(&error),
        }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        Problem::from(error).into()
    }
}
