//! The use cases of customers: one file each, one database transaction each.

pub mod admin;
mod attempts;
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
mod registrations;
mod revocation;
pub mod rotate_keys;
mod tokens;
pub mod update_user;

use lastro_database::batch_loader::BatchLoader;
use lastro_database::{Database, Transaction};
use lastro_events::NewEvent;
use lastro_events::bus::Bus;
use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::{PublicKey, Revocations, User as Caller};
use lastro_mesh::outbound::Outbound;
use lastro_proto::customers::events::v1::{UserEvent, user_event};
use lastro_proto::internal::transactions::v1::owners_service_client::OwnersServiceClient;
use lastro_proto::permissions::Permission;
use prost::Message as _;
use tokio::sync::Mutex;
use uuid::Uuid;

use self::list_revocations::list_revocations;
use crate::store::users::{self, User};
use crate::{EVENTS, Error, Settings, store};

/// What every use case works with.
pub struct App {
    pub(crate) database: Database,
    pub(crate) bus: Bus,
    pub(crate) settings: Settings,
    pub(crate) revoked: Revocations,
    /// Reads of single users, which share statements.
    pub(crate) user_loader: BatchLoader<User>,
    transactions: OwnersServiceClient<Outbound>,
    attempts: attempts::Attempts,
    passwords: password::Passwords,
    pub(crate) registrations: registrations::Registrations,
    signer: tokens::Signer,
    /// How far this replica has learned what is revoked.
    learned: Mutex<String>,
}

impl App {
    /// On a migrated database, with the way to transactions. `revoked` has every token that is dead before anybody is answered.
    pub async fn start(database: Database, bus: Bus, transactions: Outbound, revoked: Revocations, settings: Settings) -> Result<Self, Error> {
        let signer = tokens::Signer::load(&database).await?;
        let app = Self {
            passwords: password::Passwords::new()?,
            registrations: registrations::Registrations::new(settings.registrations_per_minute, settings.registrations_burst),
            user_loader: users::loader(&database),
            signer,
            revoked,
            transactions: OwnersServiceClient::new(transactions),
            attempts: attempts::Attempts::new(database.clone(), &settings),
            learned: Mutex::default(),
            database,
            bus,
            settings,
        };
        app.learn_revocations().await?;
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

    /// Learns from the database, where other replicas write as well, what was revoked since it last did, all of it.
    pub async fn learn_revocations(&self) -> Result<(), Error> {
        let mut cursor = self.learned.lock().await;
        loop {
            let page = list_revocations(self, &cursor).await?;
            self.revoked.insert(page.revocations);
            *cursor = page.cursor;
            if !page.more {
                return Ok(());
            }
        }
    }
}

/// Appends an event to a user's stream. The caller has locked the user's row, or has just inserted it.
async fn tell(tx: &Transaction, call: &Call, user_id: Uuid, kind: &'static str, event: user_event::Event) -> Result<(), Error> {
    let event = NewEvent {
        id: clock::new_id(),
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
fn reachable(caller: &Caller, id: &str, lifted_by: Permission) -> Result<Uuid, Error> {
    let id = Uuid::parse_str(id).map_err(|_| Error::UserNotFound)?;
    if id == caller.id || caller.may(lifted_by) { Ok(id) } else { Err(Error::UserNotFound) }
}

/// An address as it is stored and compared.
fn normalized_email(email: &str) -> String {
    email.trim().to_lowercase()
}
