//! What a caller is told where the database failed: the same in every service.

use lastro_database::{Error, Kind};
use lastro_mesh::status::{INTERNAL, Problem, UNAVAILABLE};

/// The text of the error goes to the log, and nowhere else.
pub fn database_problem(error: &Error) -> Problem {
    if error.kind == Kind::Crowded {
        // The callers are many, and the service is well.
        return Problem::crowded("too many reads at once");
    }
    if error.is_transient() {
        tracing::warn!(%error, "the database is busy or away");
        return Problem::new(&UNAVAILABLE, "the database is busy or away");
    }
    tracing::error!(%error, "the database refused");
    Problem::new(&INTERNAL, "internal error")
}
