//! What can go wrong in a use case, and what of it a caller may read.

use std::time::Duration;

use lastro_mesh::codec::Violation;
use lastro_mesh::status::{INTERNAL, Problem, UNAVAILABLE};
use lastro_proto::permissions::Permission;
use lastro_proto::reasons;

use crate::domain::submission;

/// Why a use case refused, in the order in which rules are checked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something on the way already says what the caller reads.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// The request itself.
    #[error(transparent)]
    Submission(#[from] submission::Error),
    /// Deposits need a permission of their own.
    #[error("the permission write:deposits is missing")]
    MayNotDeposit,
    /// No such account, or somebody else's.
    #[error("there is no such account")]
    AccountNotFound,
    /// No such transaction, or somebody else's.
    #[error("there is no such transaction")]
    TransactionNotFound,
    /// The user may not own an account.
    #[error("the user may not own an account")]
    OwnerNotAllowed,
    /// An account of the user has money, or an operation that is not settled yet.
    #[error("an account of the user has money, or a transaction of it is not settled yet")]
    UserHasMoney,
    /// The key was used for another request.
    #[error("the idempotency key was used for another request; use a new key, or send the same request")]
    IdempotencyKeyReused,
    /// The database is busy or away; the outcome is unknown.
    #[error("the ledger is busy or away; ask again with the same idempotency key")]
    LedgerUnavailable,
    /// The database refuses the operation itself.
    #[error("the ledger refused the operation")]
    LedgerBroken,
    /// Customers could not be asked.
    #[error("{0}")]
    Customers(Box<tonic::Status>),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] lastro_database::Error),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Problem(problem) => problem,
            Error::Submission(broken @ (submission::Error::Hold | submission::Error::External)) => {
                let said = broken.to_string();
                let described = if broken.field() == "hold" { "is not offered yet" } else { "EXTERNAL is not offered yet" };
                Self { fields: vec![Violation::new(broken.field(), described)], ..Self::new(&reasons::NOT_OFFERED, said) }
            }
            Error::Submission(broken) => Self::field(broken.field(), text),
            Error::MayNotDeposit => Self::permission(Permission::WriteDeposits.name(), text),
            Error::AccountNotFound => Self::new(&reasons::ACCOUNT_NOT_FOUND, text),
            Error::TransactionNotFound => Self::new(&reasons::TRANSACTION_NOT_FOUND, text),
            Error::OwnerNotAllowed => Self::new(&reasons::OWNER_NOT_ALLOWED, text),
            Error::UserHasMoney => Self::new(&reasons::USER_HAS_MONEY, text),
            Error::IdempotencyKeyReused => Self::new(&reasons::IDEMPOTENCY_KEY_REUSED, text),
            Error::LedgerUnavailable => Self::new(&UNAVAILABLE, text).retry_after(Duration::from_secs(1)),
            Error::LedgerBroken => Self::new(&INTERNAL, "internal error"),
            Error::Customers(status) => {
                tracing::warn!(error = %status.message(), code = ?status.code(), "customers could not be asked");
                Self::new(&UNAVAILABLE, "the owner cannot be confirmed right now").because_of("customers")
            }
            // The callers are many, and the service is well.
            Error::Database(error) if error.kind == lastro_database::Kind::Crowded => Self::crowded("too many reads at once"),
            Error::Database(error) if error.is_transient() => {
                tracing::warn!(%error, "the database is busy or away");
                Self::new(&UNAVAILABLE, "the database is busy or away")
            }
            Error::Database(error) => {
                tracing::error!(%error, "the database refused");
                Self::new(&INTERNAL, "internal error")
            }
        }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        Problem::from(error).into()
    }
}
