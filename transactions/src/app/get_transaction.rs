//! One transaction.

use lastro_mesh::identity::User as Caller;
use uuid::Uuid;

use super::{App, sees_all};
use crate::Error;
use crate::domain::operation::Operation;

/// For its submitter, the owners of its accounts and administrators.
pub async fn get_transaction(app: &App, caller: &Caller, id: &str) -> Result<Operation, Error> {
    let id = Uuid::parse_str(id).map_err(|_| Error::TransactionNotFound)?;
    let operation = app.operation_loader.load(id).await?.ok_or(Error::TransactionNotFound)?;
    let visible = operation.owner_id == caller.id
        || sees_all(caller)
        || app.sees_account(caller, operation.source).await?
        || app.sees_account(caller, operation.destination).await?;
    if visible { Ok(operation) } else { Err(Error::TransactionNotFound) }
}
