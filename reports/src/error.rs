//! What can go wrong in a use case, and what of it a caller may read.

use std::time::Duration;

use lastro_mesh::status::Problem;
use lastro_proto::reasons;

/// Why a use case refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something on the way already says what the caller reads.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// No such account, or somebody else's.
    #[error("there is no such account")]
    AccountNotFound,
    /// No such user, or one whose orders the caller may not see.
    #[error("there is no such user")]
    UserNotFound,
    /// What the caller's token names has not been seen here in time.
    #[error("what you wrote has not been seen here in time; ask again, or without the header x-lastro-freshness")]
    NotFreshYet {
        /// The service that wrote it.
        writer: &'static str,
    },
    /// The database failed.
    #[error(transparent)]
    Database(#[from] lastro_database::Error),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Problem(problem) => problem,
            Error::AccountNotFound => Self::new(&reasons::ACCOUNT_NOT_FOUND, text),
            Error::UserNotFound => Self::new(&reasons::USER_NOT_FOUND, text),
            // What others tell is late: that is no failure of this service, and no breaker opens for it.
            Error::NotFreshYet { writer } => Self::new(&reasons::NOT_FRESH_YET, text).because_of(writer).retry_after(Duration::from_secs(1)),
            Error::Database(error) => lastro_service::database_problem(&error),
        }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        Problem::from(error).into()
    }
}
