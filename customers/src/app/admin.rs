//! The first administrator.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lastro_mesh::call::Call;
use lastro_proto::customers::v1::CreateUserRequest;
use lastro_proto::customers::v1::user::Role;

use super::App;
use super::create_user::create_with_roles;
use crate::Error;
use crate::domain::role::Roles;
use crate::store::users;

const EMAIL: &str = "admin@lastro.local";

/// Its credentials, known where it is made.
#[derive(Debug)]
pub struct Administrator {
    /// Its address.
    pub email: String,
    /// Random; change it.
    pub password: String,
}

impl Administrator {
    /// With a random password of 144 bits.
    pub fn generate() -> Self {
        Self { email: EMAIL.to_owned(), password: URL_SAFE_NO_PAD.encode(rand::random::<[u8; 18]>()) }
    }
}

/// Whether there is an administrator who may log in.
pub async fn has_administrator(app: &App) -> Result<bool, Error> {
    let admin_bit = Roles::only(Role::Admin).bits();
    Ok(users::any_with_role(app.database.reader(), admin_bit).await?)
}

/// Makes an administrator with these credentials. Nothing happens where another replica was first.
pub async fn create_administrator(app: &App, administrator: &Administrator) -> Result<(), Error> {
    let request = CreateUserRequest {
        name: "Administrator".to_owned(),
        email: administrator.email.clone(),
        password: administrator.password.clone(),
        external_id: String::new(),
    };
    match create_with_roles(app, &Call::start(Duration::from_secs(10)), request, &Roles::only(Role::Admin)).await {
        Ok(_) | Err(Error::EmailTaken) => Ok(()),
        Err(error) => Err(error),
    }
}
