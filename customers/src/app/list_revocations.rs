//! Sessions revoked since a cursor, for services that the bus may have failed.

use lastro_mesh::clock;
use lastro_proto::internal::customers::v1::{ListRevocationsResponse, Revocation};

use super::App;
use crate::Error;
use crate::store::sessions;

/// A cursor is the instant of the question, set back by more than a transaction can last (the database's timeouts bound it), so
/// that one that commits late is still found. What is told twice does no harm.
const OVERLAP_US: i64 = 15_000_000;

/// Since an earlier answer's cursor; 0 asks for all that still matter.
pub async fn list_revocations(app: &App, since_us: i64) -> Result<ListRevocationsResponse, Error> {
    let cursor = clock::now_us() - OVERLAP_US;
    let revoked = sessions::revoked_since(app.database.reader(), since_us, clock::now_s()).await?;
    let revocations = revoked.into_iter().map(|one| Revocation { session_id: one.id.to_string(), forget_after_s: one.forget_after_s }).collect();
    Ok(ListRevocationsResponse { revocations, cursor })
}
