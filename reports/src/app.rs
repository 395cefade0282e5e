//! The use cases of reports, one file each, and what they all work with.

pub mod current;
pub mod freshness;
pub mod get_order_analytics;
pub mod get_sales;
pub mod get_statement;
pub mod get_transaction_report;
pub mod list_daily_balances;
pub mod list_orders;

use std::sync::Arc;
use std::time::Duration;

use lastro_database::{Database, Error as DatabaseError};
use lastro_events::bus::Bus;
use lastro_events::changes::{Change, Changes, Versions};
use lastro_mesh::clock;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::quota::Quota;
use lastro_mesh::status::Problem;
use lastro_proto::permissions::Permission;
use lastro_service::ReadTurns;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::Error;
use crate::app::current::CurrentEdition;
use crate::app::freshness::{ReadUpTo, SeesBy, wait_a_moment, waiting};
use crate::cache::{self, DaysCache};
use crate::consume::Readers;
use crate::domain::calendar::Day;
use crate::store::accounts::{self, Account};
use crate::store::{edition, entries, operations, orders};

/// How many days an answer covers where its caller does not say.
const DAYS_DEFAULT: i64 = 30;
/// Another edition of the tables is noticed within so long.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What every use case works with.
pub struct App {
    pub database: Database,
    /// The edition of the tables.
    pub edition: CurrentEdition,
    /// The aggregates that somebody waits for, and how far each has come.
    pub seen: Arc<Changes>,
    /// The days of accounts that were asked for lately.
    pub days_cache: Arc<DaysCache>,
    read_up_to: ReadUpTo,
    waiting: Arc<Quota<Uuid>>,
    /// Reads of a caller that no cache answers: one who asks for much at once leaves those fast who ask for little.
    reads: ReadTurns<Uuid>,
}

impl App {
    pub fn new(database: Database, bus: &Bus, edition: CurrentEdition) -> Self {
        let days_cache = cache::open(&database, &edition, bus);
        let read_up_to = ReadUpTo::new(&database);
        let reads = ReadTurns::new(&database, "reads of yours");
        Self { database, edition, seen: Changes::new(bus, "reports"), days_cache, read_up_to, waiting: waiting(), reads }
    }

    /// Whoever reads here, to be told of what events change.
    pub fn readers(&self) -> Readers {
        Readers::Here { seen: self.seen.clone(), days_cache: self.days_cache.clone() }
    }

    /// Looks from time to time whether another edition of the tables has taken their place, until told to stop.
    pub async fn keep_looking_for_another_edition(&self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(LOOK_EVERY) => {}
            }
            if let Err(error) = self.look_for_another_edition().await {
                tracing::debug!(%error, "which edition of the tables these are cannot be asked now");
            }
        }
    }

    async fn look_for_another_edition(&self) -> Result<(), DatabaseError> {
        let found = edition::get(self.database.reader()).await?;
        if self.edition.is_another(&found) {
            // What was applied while it was made was applied elsewhere: nobody has told those who wait for it.
            self.seen.look(&self.versions()).await?;
            self.days_cache.forget_all();
            tracing::info!(time_zone = found.calendar.name(), "reports are of another edition from now on");
            self.edition.set(found);
        }
        Ok(())
    }

    /// How far each aggregate has come, as the database has it.
    pub fn versions(&self) -> SeenVersions<'_> {
        SeenVersions(&self.database)
    }

    /// An account that the caller may see. A read with a freshness token waits for it: the event that it was opened may come later than the first posting to it.
    /// Refuses an id that is no UUID, an account that is not there or is somebody else's, and where the time is over.
    async fn account(&self, caller: &Caller, account_id: &str, sees_by: Option<&SeesBy>) -> Result<Account, Error> {
        let id = Uuid::parse_str(account_id).map_err(|_| Problem::field("account_id", "must be a UUID"))?;
        let mut account = accounts::get(self.database.reader(), id).await?;
        while account.is_none() && sees_by.is_some() && !entries::versions_of(self.database.reader(), &[id]).await?.is_empty() {
            wait_a_moment(sees_by).await?;
            account = accounts::get(self.database.reader(), id).await?;
        }
        account.filter(|account| may_see(caller, account)).ok_or(Error::AccountNotFound)
    }

    /// The days that are asked for: as given, up to today, or the last 30.
    fn days(&self, from: Option<&str>, to: Option<&str>) -> Result<(Day, Day), Problem> {
        let to = match to {
            Some(to) => date("to", to)?,
            None => self.edition.get().calendar.day_of(clock::now_us()),
        };
        let from = match from {
            Some(from) => date("from", from)?,
            None => to.plus(1 - DAYS_DEFAULT),
        };
        if from > to { Err(Problem::field("from", "must not be later than `to`")) } else { Ok((from, to)) }
    }
}

/// Its owner, and administrators.
fn may_see(caller: &Caller, account: &Account) -> bool {
    account.owner_id == caller.id || sees_all(caller)
}

fn sees_all(caller: &Caller) -> bool {
    caller.may(Permission::ReadAll)
}

fn date(field: &str, text: &str) -> Result<Day, Problem> {
    Day::parse(text).ok_or_else(|| Problem::field(field, "must be a date that there is, such as 2026-11-25"))
}

/// Of transactions, orders and accounts, whose ids are never the same.
pub struct SeenVersions<'a>(&'a Database);

impl Versions for SeenVersions<'_> {
    async fn versions(&self, ids: &[Uuid]) -> Result<Vec<Change>, DatabaseError> {
        let mut versions = operations::versions(self.0.reader(), ids).await?;
        versions.extend(accounts::versions(self.0.reader(), ids).await?);
        versions.extend(orders::versions(self.0.reader(), ids).await?);
        Ok(versions)
    }
}
