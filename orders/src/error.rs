//! What can go wrong in a use case, and what of it a caller may read.

use std::time::Duration;

use lastro_mesh::codec::Violation;
use lastro_mesh::status::{INTERNAL, Problem, UNAVAILABLE};
use lastro_proto::reasons;

use crate::batches::Refused;
use crate::domain::order::Conflict;

/// Why a use case refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something on the way already says what the caller reads.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// No such product.
    #[error("there is no such product")]
    ProductNotFound {
        /// The field that names it.
        field: String,
    },
    /// It is not sold now.
    #[error("the product is not sold at this moment")]
    ProductInactive {
        /// The field that names it.
        field: String,
    },
    /// No such account, or somebody else's.
    #[error("there is no such account")]
    AccountNotFound,
    /// No such order, or somebody else's.
    #[error("there is no such order")]
    OrderNotFound,
    /// The key was used for another request.
    #[error("the idempotency key was used for another request; use a new key, or send the same request")]
    IdempotencyKeyReused,
    /// The batch refused.
    #[error("{0:?}")]
    Refused(Refused),
    /// Another service could not be asked.
    #[error("{service}: {status}")]
    Away {
        /// Which one.
        service: &'static str,
        /// What it said, or the mesh.
        status: Box<tonic::Status>,
    },
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
            Refused::Crowded => Self::crowded("too many orders wait to be stored; ask again with the same key"),
            // Only sagas have leases, and nobody reads what they are told.
            Refused::Unavailable | Refused::LeaseLost => {
                Self::new(&UNAVAILABLE, "orders is busy or away; ask again with the same key").retry_after(Duration::from_secs(1))
            }
            Refused::Broken => Self::new(&INTERNAL, "internal error"),
            Refused::KeyReused => Error::IdempotencyKeyReused.into(),
            Refused::Conflict(conflict) => Self::new(&reasons::ORDER_STATUS_CONFLICT, conflict_text(conflict)),
            Refused::SagaFinished => Self::new(&reasons::SAGA_FINISHED, "the saga has ended: nothing of it is left to be done, or to be undone"),
        }
    }
}

fn conflict_text(Conflict { status, is_being_undone }: Conflict) -> String {
    if is_being_undone {
        return "the order is being cancelled".to_owned();
    }
    format!(
        "the order is {}: a COMPLETED one may be SHIPPED, one that is SHIPPED may be DELIVERED, and one that is PENDING or COMPLETED may be cancelled",
        status.name()
    )
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        let named = |reason, field| Self { fields: vec![Violation::new(field, text.clone())], ..Self::new(reason, text.clone()) };
        match error {
            Error::Problem(problem) => problem,
            Error::ProductNotFound { field } => named(&reasons::PRODUCT_NOT_FOUND, field),
            Error::ProductInactive { field } => named(&reasons::PRODUCT_INACTIVE, field),
            Error::AccountNotFound => named(&reasons::ACCOUNT_NOT_FOUND, "payment.account_id".to_owned()),
            Error::OrderNotFound => Self::new(&reasons::ORDER_NOT_FOUND, text),
            Error::IdempotencyKeyReused => Self::new(&reasons::IDEMPOTENCY_KEY_REUSED, text),
            Error::Refused(refused) => refused.into(),
            Error::Away { service, status } => {
                tracing::warn!(error = %status.message(), code = ?status.code(), service, "a service that an order needs could not be asked");
                Self::new(&UNAVAILABLE, format!("{service} cannot be asked right now; ask again with the same key")).because_of(service)
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
