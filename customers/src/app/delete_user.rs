//! Anonymises a user: its id and its ledger stay, everything that says who it was goes.

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::User as Caller;
use lastro_proto::customers::v1::{UserDeleted, user_event::Event};

use super::update_user::keep_an_administrator;
use super::{App, reachable, revocation, tell};
use crate::Error;
use crate::store::users::{self, User};

/// The caller's own, or any for who may write users.
pub async fn delete_user(app: &App, call: &Call, caller: &Caller, id: &str) -> Result<(), Error> {
    let id = reachable(caller, id, "write:users")?;
    let tx = app.database.begin().await?;
    let before = users::lock(&tx, id).await?.ok_or(Error::UserNotFound)?;
    let user = User {
        name: String::new(),
        email: None,
        password_hash: String::new(),
        roles: 0,
        disabled: true,
        deleted: true,
        update_time_us: clock::now_us(),
        ..before.clone()
    };
    keep_an_administrator(&tx, &before, &user).await?;
    users::update(&tx, &user).await?;
    tell(&tx, call, id, "USER_DELETED", Event::UserDeleted(UserDeleted {})).await?;
    let revoked = revocation::revoke(&tx, call, id, None).await?;
    app.commit(tx, revoked).await
}
