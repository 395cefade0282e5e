//! What a provider has reported under one of its keys.

use lastro_mesh::identity::User as Caller;
use sea_orm::ConnectionTrait;

use super::App;
use crate::Error;
use crate::domain::operation::Operation;
use crate::store::operations;
use crate::store::provider_events::{self, ProviderEvent};

/// A key of a provider, with everything that is known of it.
pub struct ProviderOperation {
    pub external_id: String,
    /// The transaction with this key, if it is there.
    pub operation: Option<Operation>,
    pub events: Vec<ProviderEvent>,
}

/// For the provider alone, whose key it is.
pub async fn get_operation(app: &App, caller: &Caller, external_id: &str) -> Result<ProviderOperation, Error> {
    let found = read(app.database.reader(), caller, external_id).await?;
    if found.operation.is_none() && found.events.is_empty() { Err(Error::OperationNotFound) } else { Ok(found) }
}

/// As it stands.
pub async fn read(on: &impl ConnectionTrait, caller: &Caller, external_id: &str) -> Result<ProviderOperation, Error> {
    let key = (caller.id, external_id);
    let operation = operations::by_keys(on, &[key]).await?.pop();
    Ok(ProviderOperation { external_id: external_id.to_owned(), operation, events: provider_events::of_key(on, key).await? })
}
