//! The use cases of customers: one file each, one database transaction each.

pub mod admin;
pub mod change_password;
pub mod confirm_owner;
pub mod create_user;
pub mod delete_user;
pub mod get_jwks;
pub mod get_user;
pub mod list_revocations;
pub mod list_users;
pub mod login;
pub mod logout;
mod password;
pub mod refresh;
mod revocation;
pub mod rotate_keys;
mod tokens;
pub mod update_user;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use lastro_database::{Database, Transaction};
use lastro_events::NewEvent;
use lastro_events::bus::Bus;
use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::{PublicKey, RevokedSessions, User as Caller};
use lastro_proto::customers::v1::{UserEvent, user_event};
use moka::sync::Cache;
use prost::Message as _;
use uuid::Uuid;

use crate::{EVENTS, Error, Settings, store};

/// What every use case works with.
pub struct App {
    pub(crate) database: Database,
    pub(crate) bus: Bus,
    pub(crate) settings: Settings,
    pub(crate) revoked: RevokedSessions,
    passwords: password::Passwords,
    signer: tokens::Signer,
    /// Failed logins by address in the last minute.
    failures_by_address: Cache<IpAddr, Arc<AtomicU32>>,
}

impl App {
    /// On a migrated database.
    pub async fn start(database: Database, bus: Bus, settings: Settings) -> Result<Self, Error> {
        let signer = tokens::Signer::load(&database).await?;
        let app = Self {
            passwords: password::Passwords::new()?,
            signer,
            revoked: RevokedSessions::default(),
            failures_by_address: Cache::builder().max_capacity(100_000).time_to_live(Duration::from_secs(60)).build(),
            database,
            bus,
            settings,
        };
        app.learn_revocations(0).await?;
        Ok(app)
    }

    /// The keys that verify tokens.
    pub async fn public_keys(&self) -> Result<Vec<PublicKey>, Error> {
        let keys = store::keys::list(self.database.reader(), clock::now_us()).await?;
        Ok(keys.into_iter().map(|key| PublicKey { kid: key.kid, x: key.public_key }).collect())
    }

    /// Learns which key signs now.
    pub async fn learn_keys(&self) -> Result<(), Error> {
        self.signer.refresh(&self.database).await
    }

    /// Takes what is revoked since an instant from the database, where other replicas write as well.
    pub async fn learn_revocations(&self, since_us: i64) -> Result<(), Error> {
        let revoked = store::sessions::revoked_since(self.database.reader(), since_us, clock::now_s()).await?;
        self.revoked.insert(revoked.into_iter().map(|session| (session.id, session.forget_after_s)));
        Ok(())
    }
}

/// Appends an event to a user's stream; the caller holds the user, or has just made it.
async fn tell(tx: &Transaction, call: &Call, user_id: Uuid, kind: &'static str, event: user_event::Event) -> Result<(), Error> {
    let event = NewEvent {
        id: Uuid::now_v7(),
        kind,
        payload: UserEvent { event: Some(event) }.encode_to_vec(),
        correlation_id: call.correlation_id.to_string(),
        causation_id: None,
        recorded_us: clock::now_us(),
    };
    EVENTS.append(tx, user_id, event).await?;
    Ok(())
}

/// The user that a caller may see or change: its own, or any when it has the permission that lifts the rule.
fn reachable(caller: &Caller, id: &str, lifted_by: &str) -> Result<Uuid, Error> {
    let id = Uuid::parse_str(id).map_err(|_| Error::UserNotFound)?;
    if id == caller.id || caller.may(lifted_by) { Ok(id) } else { Err(Error::UserNotFound) }
}

/// An address as it is stored and compared.
fn normalized_email(email: &str) -> String {
    email.trim().to_lowercase()
}
