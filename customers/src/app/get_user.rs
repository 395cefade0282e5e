//! One user.

use lastro_mesh::identity::User as Caller;
use lastro_proto::permissions::Permission;

use super::{App, reachable};
use crate::Error;
use crate::store::users::User;

/// The caller's own, or any for who may read users.
pub async fn get_user(app: &App, caller: &Caller, id: &str) -> Result<User, Error> {
    let id = reachable(caller, id, Permission::ReadUsers)?;
    app.user_loader.load(id).await?.ok_or(Error::UserNotFound)
}
