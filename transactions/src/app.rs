//! The use cases of transactions: one file each.

pub mod batch_create_transactions;
pub mod close_account;
pub mod close_accounts;
pub mod confirm_account;
pub mod create_account;
pub mod create_transaction;
pub mod get_account;
pub mod get_operation;
pub mod get_payment;
pub mod get_transaction;
pub mod ingest_event;
pub mod list_accounts;
pub mod list_transaction_events;
pub mod list_transactions;
pub mod process_payment;
pub mod provider_calls;
pub mod refund_payment;
pub mod resolve_hold;
pub mod reverse_transaction;
pub mod saga_payments;
mod submit;
pub mod update_account;
pub mod watch_transaction;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lastro_database::Database;
use lastro_database::batch_loader::BatchLoader;
use lastro_events::Topic;
use lastro_events::bus::Bus;
use lastro_events::changes::{Change, Changes, Versions};
use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::{Revocations, User as Caller};
use lastro_mesh::outbound::Outbound;
use lastro_mesh::page::Page;
use lastro_mesh::status::Problem;
use lastro_mesh::turns::Turns;
use lastro_money::Currency;
use lastro_proto::internal::customers::v1::identity_service_client::IdentityServiceClient;
use lastro_proto::permissions::Permission;
use quick_cache::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::domain::account::Account;
use crate::domain::operation::Operation;
use crate::pipeline::Pipeline;
use crate::provider::{HttpProvider, Provider};
use crate::settings::PaymentProvider;
use crate::store::accounts::AccountWithBalance;
use crate::{Error, Settings, store};

/// Accounts that are kept in memory; what never changes about one takes some 200 bytes.
const ACCOUNTS_CACHED: usize = 200_000;

/// Calls that wait for an outcome at once. Each takes some KB for up to half a minute.
const WAITING_MAX: usize = 10_000;

/// Legs of what is asked for with many at once, batches and transactions of several legs, from their checks until they are stored: of one user, and of
/// all. What comes then waits for its turn, so that there is room for those who ask for one leg, and one user's leave room for those of others.
const MANY_LEGS_PER_USER: u32 = 2048;
const MANY_LEGS_MAX: u32 = 3 * MANY_LEGS_PER_USER;

/// Payments and refunds by card that one user has under way at once: what comes then waits for its turn.
const PROVIDER_CALLS_PER_USER: usize = 32;
/// Of all users, those whose callers wait: each takes a connection.
const PROVIDER_CALLS_MAX: usize = 512;
/// Reports of one provider that are taken at once.
const REPORTS_PER_PROVIDER: usize = 16;

/// Long pages that one user reads at once; what comes then waits for its turn.
const LONG_PAGES_PER_USER: usize = 2;
/// Streams that one user opens at once, and how long it waits for its turn.
const OPENS_PER_USER: usize = 4;
const OPEN_WAIT: Duration = Duration::from_secs(2);
/// Pages of more items are long.
const SHORT_PAGE: u32 = 100;
/// What reading one takes at most, of its deadline.
const LIST_MARGIN: Duration = Duration::from_millis(500);

/// What every use case works with.
pub struct App {
    pub(crate) database: Database,
    pub(crate) bus: Bus,
    /// What customers publishes.
    pub(crate) users: Topic,
    pub(crate) customers: IdentityServiceClient<Outbound>,
    pub(crate) revoked: Revocations,
    pub(crate) pipeline: Pipeline,
    pub(crate) settings: Settings,
    /// Who charges cards; None where cards are not taken.
    pub(crate) provider: Option<Provider>,
    /// Places for calls that wait for an outcome.
    pub(crate) waiting: Semaphore,
    /// The turns of each user at long pages, which cost more than anything else that one may ask for.
    lists: Turns<Uuid>,
    /// The turns of each user at opening a stream.
    opens: Turns<Uuid>,
    /// The places of legs of what has many, of each user and of all.
    legs_by_user: Turns<Uuid>,
    legs: Semaphore,
    /// The turns of each user at the payment provider, which takes seconds where it is slow.
    provider_turns: Turns<Uuid>,
    /// Places of those who ask it at once for whoever called.
    pub(crate) provider_places: Arc<Semaphore>,
    /// The turns of each provider at reporting: so many may come between a look at what was reported and the next report.
    report_turns: Turns<Uuid>,
    /// Reads of single accounts and operations, which share statements.
    pub(crate) account_loader: BatchLoader<AccountWithBalance>,
    pub(crate) operation_loader: BatchLoader<Operation>,
    accounts: Cache<Uuid, Arc<Account>>,
    /// Currencies whose clearing account is known to exist.
    cleared: Mutex<HashSet<Currency>>,
}

impl App {
    /// On a migrated database.
    pub async fn start(
        database: Database,
        bus: Bus,
        users: Topic,
        customers: Outbound,
        revoked: Revocations,
        settings: Settings,
    ) -> Result<Self, Error> {
        revoked.insert(store::users::revoked(database.reader(), clock::now_s()).await?);
        let provider = provider(&settings.payment_provider, database.is_postgres())?;
        Ok(Self {
            provider,
            pipeline: Pipeline::new(database.clone(), bus.clone()),
            customers: IdentityServiceClient::new(customers),
            account_loader: store::accounts::loader(&database),
            operation_loader: store::operations::loader(&database),
            accounts: Cache::new(ACCOUNTS_CACHED),
            cleared: Mutex::default(),
            database,
            bus,
            users,
            revoked,
            settings,
            waiting: Semaphore::new(WAITING_MAX),
            lists: Turns::new(LONG_PAGES_PER_USER),
            opens: Turns::new(OPENS_PER_USER),
            legs_by_user: Turns::new(MANY_LEGS_PER_USER as usize),
            legs: Semaphore::new(MANY_LEGS_MAX as usize),
            provider_turns: Turns::new(PROVIDER_CALLS_PER_USER),
            provider_places: Arc::new(Semaphore::new(PROVIDER_CALLS_MAX)),
            report_turns: Turns::new(REPORTS_PER_PROVIDER),
        })
    }

    /// How whoever waits for an operation learns that it has changed.
    pub(crate) fn changes(&self) -> &Arc<Changes> {
        self.pipeline.changes()
    }

    /// A turn of a user at a page that costs much, which is a long one or a filtered one, held while it is read.
    pub(crate) async fn list_turn(&self, call: &Call, user_id: Uuid, page: Page, is_filtered: bool) -> Result<Option<OwnedSemaphorePermit>, Problem> {
        self.long_read_turn(call, user_id, page.size > SHORT_PAGE || is_filtered).await
    }

    /// A turn of a user at reading what is long, held while it is read.
    pub(crate) async fn long_read_turn(&self, call: &Call, user_id: Uuid, is_long: bool) -> Result<Option<OwnedSemaphorePermit>, Problem> {
        if !is_long {
            return Ok(None);
        }
        let by = call.deadline.checked_sub(LIST_MARGIN).unwrap_or(call.deadline);
        let busy = || Problem::crowded("too many long or filtered pages of this user are being read; ask for fewer at once");
        self.lists.take(user_id, by).await.ok_or_else(busy).map(Some)
    }

    /// A turn of a user at opening a stream, which reads the transaction and its events.
    pub(crate) async fn open_turn(&self, user_id: Uuid) -> Result<OwnedSemaphorePermit, Problem> {
        let busy = || Problem::crowded("too many streams of this user are being opened; open fewer at once");
        self.opens.take(user_id, Instant::now() + OPEN_WAIT).await.ok_or_else(busy)
    }

    /// A turn of a user at so many legs, held from their checks until they are stored; a single one needs none. More than a user has places for take all of
    /// these, and never those of others.
    pub(crate) async fn legs_turn(&self, user_id: Uuid, legs: usize, by: Instant) -> Result<Option<LegsTurn<'_>>, Problem> {
        if legs <= 1 {
            return Ok(None);
        }
        let busy = || Problem::crowded("too many legs and batches wait to be stored; send fewer at once, and this again with the same keys");
        let legs = u32::try_from(legs).unwrap_or(u32::MAX).min(MANY_LEGS_PER_USER);
        let of_user = self.legs_by_user.take_many(user_id, legs, by).await.ok_or_else(busy)?;
        let of_all = timeout_at(by, self.legs.acquire_many(legs)).await.ok().and_then(Result::ok).ok_or_else(busy)?;
        Ok(Some(LegsTurn { _of_user: of_user, _of_all: of_all }))
    }

    /// A turn of a user at the payment provider, taken before anything is stored and held until the provider has answered. Whoever waits for it is no load, and
    /// gives its slot back.
    pub(crate) async fn provider_turn(&self, call: &Call, user_id: Uuid, by: Instant) -> Result<OwnedSemaphorePermit, Problem> {
        let busy = || Problem::crowded("too many payments by card of this user are under way; send fewer at once, and this one again");
        if let Some(turn) = self.provider_turns.take(user_id, Instant::now()).await {
            return Ok(turn);
        }
        let _waiting = self.waiting.try_acquire().map_err(|_| busy())?;
        call.slot.release();
        self.provider_turns.take(user_id, by).await.ok_or_else(busy)
    }

    /// A turn of a provider at reporting.
    pub(crate) async fn report_turn(&self, provider_id: Uuid, by: Instant) -> Result<OwnedSemaphorePermit, Problem> {
        let busy = || Problem::crowded("too many reports of this provider are being stored; send fewer at once, and this one again");
        self.report_turns.take(provider_id, by).await.ok_or_else(busy)
    }

    /// What never changes about an account; a call costs no SELECT for one that was asked for before.
    async fn account(&self, id: Uuid) -> Result<Option<Arc<Account>>, Error> {
        if let Some(account) = self.accounts.get(&id) {
            return Ok(Some(account));
        }
        let Some(found) = self.account_loader.load(id).await? else { return Ok(None) };
        let account = Arc::new(found.account);
        self.accounts.insert(id, account.clone());
        Ok(Some(account))
    }

    fn is_cleared(&self, currency: Currency) -> bool {
        self.cleared.lock().unwrap_or_else(PoisonError::into_inner).contains(&currency)
    }

    fn note_cleared(&self, currency: Currency) {
        self.cleared.lock().unwrap_or_else(PoisonError::into_inner).insert(currency);
    }
}

/// Of operations.
impl Versions for App {
    async fn versions(&self, ids: &[Uuid]) -> Result<Vec<Change>, lastro_database::Error> {
        store::operations::versions(self.database.reader(), ids).await
    }
}

/// Who charges cards.
fn provider(setting: &PaymentProvider, is_postgres: bool) -> Result<Option<Provider>, Error> {
    match setting {
        PaymentProvider::Nobody => Ok(None),
        PaymentProvider::ByDatabase if is_postgres => Ok(None),
        PaymentProvider::ByDatabase => Ok(Some(Provider::sandbox())),
        PaymentProvider::Sandbox => {
            tracing::warn!("the payment provider is the sandbox: cards are approved by their tokens, and no money moves");
            Ok(Some(Provider::sandbox()))
        }
        PaymentProvider::Http { name, url, secret } => {
            if url.is_in_the_clear() {
                tracing::warn!("the payment provider is asked over http://: what is sent to it, and its secret, can be read on the way");
            }
            let provider = HttpProvider::new(url, secret.clone());
            Ok(Some(Provider::http(name, provider.map_err(lastro_database::Error::corrupt)?)))
        }
    }
}

/// The places of some legs, until they are stored.
pub(crate) struct LegsTurn<'a> {
    _of_user: OwnedSemaphorePermit,
    _of_all: SemaphorePermit<'a>,
}

/// Lifts the rule that one sees only one's own.
fn sees_all(caller: &Caller) -> bool {
    caller.may(Permission::ReadAll)
}
