//! Who calls: principals, what a method asks of them, and the verification of access tokens by every service itself.

pub mod policy;
pub mod revocations;
pub mod token;

use std::sync::Arc;

use uuid::Uuid;

pub use policy::{Caller, Policy};
pub use revocations::{Revocation, Revocations};
pub use token::{Claims, KeySource, PublicKey, TokenVerifier};

/// What a method asks of its caller; from the proto annotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Public,
    /// A user whose token carries this permission.
    Permission(&'static str),
    /// Another service of the mesh.
    Service,
}

/// Who calls: a user by its token, or a service by its certificate or by being in the same process. Never by a header.
#[derive(Debug, Clone)]
pub enum Principal {
    /// A user, perhaps through a service.
    User(Arc<User>),
    /// A service in its own name.
    Service(Arc<str>),
}

impl Principal {
    /// The user, if it is one.
    pub fn user(&self) -> Option<&User> {
        match self {
            Self::User(user) => Some(user),
            Self::Service(_) => None,
        }
    }
}

/// A user as its verified token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Claim `sub`.
    pub id: Uuid,
    /// Claim `sid`.
    pub session_id: Uuid,
    /// Claim `exp`, Unix seconds.
    pub expires_s: i64,
    /// Claim `permissions`.
    pub permissions: Vec<String>,
    /// Claim `ver`.
    pub token_version: i64,
}

impl User {
    /// Whether the token carries a permission.
    pub fn may(&self, permission: impl AsRef<str>) -> bool {
        self.permissions.iter().any(|held| held == permission.as_ref())
    }
}

/// Marks a request that came from a service in the same process. Only the in-process channel sets it; extensions never cross a socket.
#[derive(Debug, Clone, Copy)]
pub struct LocalPeer(pub &'static str);
