//! What can go wrong in a use case, and what of it a caller may read.

use lastro_mesh::status::{INTERNAL, Problem, UNAVAILABLE};
use lastro_proto::permissions::Permission;
use lastro_proto::reasons;

/// Why a use case refused, in the order in which rules are checked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something on the way already says what the caller reads.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// Only an administrator may.
    #[error("only an administrator may change {0}")]
    AdministratorsOnly(&'static str),
    /// No such user, or somebody else's.
    #[error("there is no such user")]
    UserNotFound,
    /// Another user has the address.
    #[error("the email address is taken")]
    EmailTaken,
    /// The address was registered with this key, by another request.
    #[error("the idempotency key was used for another request; use a new key, or send the same request")]
    IdempotencyKeyReused,
    /// An account of the user has money, or a transaction that is not settled yet.
    #[error("an account of the user has money, or a transaction of it is not settled yet; move the money first")]
    UserHasMoney,
    /// Transactions could not be asked.
    #[error("{0}")]
    Transactions(Box<tonic::Status>),
    /// The last administrator would be gone.
    #[error("this is the last administrator")]
    LastAdministrator,
    /// Too many failed logins.
    #[error("too many failed logins; try again later")]
    LoginThrottled {
        /// Seconds until the next attempt.
        retry_after_s: u64,
    },
    /// Unknown user, wrong password or disabled user.
    #[error("email or password is wrong")]
    InvalidCredentials,
    /// Unknown, expired or used refresh token, or its session is over.
    #[error("the refresh token is not valid, or no longer; log in again")]
    InvalidRefreshToken,
    /// The database failed.
    #[error(transparent)]
    Database(#[from] lastro_database::Error),
    /// A cryptographic operation failed.
    #[error("{0}")]
    Crypto(String),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Problem(problem) => problem,
            Error::AdministratorsOnly(_) => Self::permission(Permission::WriteUsers.name(), text),
            Error::UserNotFound => Self::new(&reasons::USER_NOT_FOUND, text),
            Error::EmailTaken => Self::new(&reasons::EMAIL_TAKEN, text),
            Error::IdempotencyKeyReused => Self::new(&reasons::IDEMPOTENCY_KEY_REUSED, text),
            Error::UserHasMoney => Self::new(&reasons::USER_HAS_MONEY, text),
            Error::Transactions(status) => {
                tracing::warn!(error = %status.message(), code = ?status.code(), "transactions could not be asked");
                Self::new(&UNAVAILABLE, "the user's accounts cannot be closed right now").because_of("transactions")
            }
            Error::LastAdministrator => Self::new(&reasons::LAST_ADMINISTRATOR, text),
            Error::LoginThrottled { retry_after_s } => {
                Self::new(&reasons::LOGIN_THROTTLED, text).retry_after(std::time::Duration::from_secs(retry_after_s))
            }
            Error::InvalidCredentials => Self::new(&reasons::INVALID_CREDENTIALS, text),
            Error::InvalidRefreshToken => Self::new(&reasons::INVALID_REFRESH_TOKEN, text),
            Error::Database(error) => lastro_service::database_problem(&error),
            Error::Crypto(error) => {
                tracing::error!(%error, "cryptography failed");
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
