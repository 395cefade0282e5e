//! Ends the caller's session.

use lastro_mesh::call::Call;
use lastro_mesh::identity::User as Caller;

use super::{App, revocation};
use crate::Error;
use crate::store::users;

/// The session of the token that the call came with.
pub async fn logout(app: &App, call: &Call, caller: &Caller) -> Result<(), Error> {
    let tx = app.database.begin().await?;
    if users::lock(&tx, caller.id).await?.is_none() {
        return Ok(());
    }
    let ended = revocation::revoke_session(&tx, call, caller.id, caller.session_id).await?;
    app.commit(tx, ended).await
}
