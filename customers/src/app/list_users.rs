//! All users, for administrators.

use lastro_mesh::page::Page;

use super::App;
use crate::Error;
use crate::store::users::{self, User};

/// A page, newest first, and the token of the next one.
pub async fn list_users(app: &App, page: Page) -> Result<(Vec<User>, String), Error> {
    let mut users = users::list(app.database.reader(), page).await?;
    let next = page.cut(&mut users, |user| user.id, answer_bytes);
    Ok((users, next))
}

/// How large a user is in an answer, about: never less than it is.
fn answer_bytes(user: &User) -> usize {
    200 + user.name.len() + user.email.as_deref().map_or(0, str::len)
}
