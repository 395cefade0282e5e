//! One transaction.

use lastro_mesh::identity::User as Caller;
use uuid::Uuid;

use super::{App, sees_all};
use crate::Error;
use crate::domain::operation::Operation;
use crate::store::operations;

/// For its submitter, the owners of its accounts and administrators.
pub async fn get_transaction(app: &App, caller: &Caller, id: &str) -> Result<Operation, Error> {
    let id = Uuid::parse_str(id).map_err(|_| Error::TransactionNotFound)?;
    let operation = app.operation_loader.load(id).await?.ok_or(Error::TransactionNotFound)?;
    let visible = operation.owner_id == caller.id || sees_all(caller) || operation.concerns(caller.id);
    if visible { Ok(operation) } else { Err(Error::TransactionNotFound) }
}

/// The caller's own transaction with this idempotency key: so a lost answer is looked up.
pub async fn get_transaction_by_key(app: &App, caller: &Caller, external_id: &str) -> Result<Operation, Error> {
    operations::by_keys(app.database.reader(), &[(caller.id, external_id)]).await?.pop().ok_or(Error::TransactionNotFound)
}
