//! The use cases of transactions: one file each.

pub mod close_accounts;
pub mod create_account;
pub mod create_transaction;
pub mod get_account;
pub mod get_transaction;
pub mod list_accounts;
pub mod list_transaction_events;
pub mod list_transactions;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use lastro_database::Database;
use lastro_events::EventStore;
use lastro_events::bus::Bus;
use lastro_mesh::clock;
use lastro_mesh::identity::{Revocations, User as Caller};
use lastro_mesh::outbound::Outbound;
use lastro_money::Currency;
use lastro_proto::internal::customers::v1::identity_service_client::IdentityServiceClient;
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::domain::account::Account;
use crate::pipeline::Pipeline;
use crate::{Error, Settings, store};

/// Accounts that are kept in memory; what never changes about one takes some 200 bytes.
const ACCOUNTS_CACHED: usize = 200_000;

/// Calls that wait for an outcome at once. Each takes some KB for up to half a minute.
const WAITING_MAX: usize = 10_000;

/// What every use case works with.
pub struct App {
    pub(crate) database: Database,
    pub(crate) bus: Bus,
    /// What customers publishes.
    pub(crate) users: EventStore,
    pub(crate) customers: IdentityServiceClient<Outbound>,
    pub(crate) revoked: Revocations,
    pub(crate) pipeline: Pipeline,
    pub(crate) settings: Settings,
    /// Places for calls that wait for an outcome.
    pub(crate) waiting: Semaphore,
    accounts: Cache<Uuid, Arc<Account>>,
    /// Currencies whose clearing account is known to exist.
    cleared: Mutex<HashSet<Currency>>,
}

impl App {
    /// On a migrated database.
    pub async fn start(
        database: Database,
        bus: Bus,
        users: EventStore,
        customers: Outbound,
        revoked: Revocations,
        settings: Settings,
    ) -> Result<Self, Error> {
        revoked.insert(store::users::revoked(database.reader(), clock::now_s()).await?);
        Ok(Self {
            pipeline: Pipeline::start(database.clone(), bus.clone()),
            customers: IdentityServiceClient::new(customers),
            accounts: Cache::new(ACCOUNTS_CACHED),
            cleared: Mutex::default(),
            database,
            bus,
            users,
            revoked,
            settings,
            waiting: Semaphore::new(WAITING_MAX),
        })
    }

    /// What never changes about an account; a call costs no SELECT for one that was asked for before.
    async fn account(&self, id: Uuid) -> Result<Option<Arc<Account>>, Error> {
        if let Some(account) = self.accounts.get(&id) {
            return Ok(Some(account));
        }
        let Some(found) = store::accounts::get(self.database.reader(), id).await? else { return Ok(None) };
        let account = Arc::new(found.account);
        self.accounts.insert(id, account.clone());
        Ok(Some(account))
    }

    /// Whether an account is the caller's, or the caller sees all. System accounts are nobody's.
    async fn sees_account(&self, caller: &Caller, id: Option<Uuid>) -> Result<bool, Error> {
        let Some(id) = id else { return Ok(false) };
        Ok(self.account(id).await?.is_some_and(|account| account.owner_id == caller.id))
    }

    fn is_cleared(&self, currency: Currency) -> bool {
        self.cleared.lock().unwrap_or_else(PoisonError::into_inner).contains(&currency)
    }

    fn note_cleared(&self, currency: Currency) {
        self.cleared.lock().unwrap_or_else(PoisonError::into_inner).insert(currency);
    }
}

/// Lifts the rule that one sees only one's own.
fn sees_all(caller: &Caller) -> bool {
    caller.may("read:all")
}
