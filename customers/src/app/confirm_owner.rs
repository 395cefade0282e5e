//! Whether a user may own an account.

use uuid::Uuid;

use super::App;
use crate::Error;

/// Not when it does not exist, was deleted, or is disabled.
pub async fn confirm_owner(app: &App, user_id: &str) -> Result<bool, Error> {
    let Ok(id) = Uuid::parse_str(user_id) else { return Ok(false) };
    Ok(app.user_loader.load(id).await?.is_some_and(|user| !user.disabled))
}
