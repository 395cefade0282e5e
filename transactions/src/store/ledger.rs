//! What a settling batch reads and writes, in one transaction and in set-based statements. The two databases differ here: PostgreSQL
//! takes arrays and binary COPY, SQLite rows of VALUES; the statements stand side by side in `postgres` and `sqlite`.

mod postgres;
mod sqlite;

pub use lastro_database::group_commit::Lock;
use lastro_database::{Database, Error};
use lastro_events::Event;
use lastro_money::Minor;
use uuid::Uuid;

use super::provider_calls::{CallEnd, CallKind, NewCall};
use super::provider_events::WaitingReport;
use super::sagas::{Saga, SagaEpoch};
use crate::domain::ledger::{Balance, Balances, Posting};
use crate::domain::operation::{Head, Operation, Refunded, State};
use crate::domain::report::ReportOutcome;

/// The transaction of a batch.
pub enum Ledger {
    Postgres(postgres::Tx),
    Sqlite(sqlite::Tx),
}

/// Both databases read it.
const DEAD_LETTER: &str =
    "INSERT INTO dead_letters (operation_id, error, attempts, create_time_us) VALUES ($1, $2, $3, $4) ON CONFLICT (operation_id) DO NOTHING";

/// Which waiting operations to take.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// At most so many.
    pub limit: u32,
    /// Only operations after this one.
    pub after: Uuid,
    /// One that failed is left alone until its last attempt is older than this. One whose last attempt lies ahead of the clock by more than
    /// [`CLOCK_SKEW_US`] is not: the clock was set back, and it would wait until the clock has come so far again.
    pub failed_before_us: i64,
}

/// Clocks of replicas differ by less.
const CLOCK_SKEW_US: i64 = 5_000_000;

impl Claim {
    fn failed_after_us(&self) -> i64 {
        self.failed_before_us.saturating_add(CLOCK_SKEW_US)
    }
}

/// An operation that was claimed, and where its last event came from.
#[derive(Debug)]
pub struct ClaimedOperation {
    pub operation: Operation,
    /// Of the call that submitted it.
    pub correlation_id: String,
    /// Its last event: what is done next is done because of it.
    pub last_event_id: Option<Uuid>,
}

/// Operations that were claimed.
#[derive(Debug, Default)]
pub struct ClaimedOperations {
    pub read: Vec<ClaimedOperation>,
    /// Those whose rows do not read, and why: a defect, or a hand in the table.
    pub unreadable: Vec<(Uuid, Error)>,
}

struct ClaimedRow {
    operation: super::operations::Row,
    correlation_id: Option<String>,
    last_event_id: Option<Uuid>,
}

impl ClaimedRow {
    fn read(self) -> Result<ClaimedOperation, Error> {
        let (correlation_id, last_event_id) = (self.correlation_id.unwrap_or_default(), self.last_event_id);
        Ok(ClaimedOperation { operation: self.operation.read()?, correlation_id, last_event_id })
    }
}

impl ClaimedOperations {
    fn of(rows: Vec<ClaimedRow>) -> Self {
        let mut claimed = Self::default();
        for row in rows {
            let id = row.operation.id();
            match row.read() {
                Ok(operation) => claimed.read.push(operation),
                Err(error) => claimed.unreadable.push((id, error)),
            }
        }
        claimed
    }
}

/// Selects rows of operations, each with where its last event came from.
fn select_claimed(rest: &str) -> String {
    let columns: Vec<String> = super::operations::COLUMN_NAMES.iter().map(|name| format!("o.{name}")).collect();
    format!(
        "SELECT {}, e.correlation_id AS last_correlation_id, e.id AS last_event_id FROM operations o LEFT JOIN operation_events e ON e.aggregate_id = o.id AND e.version = o.version {rest}",
        columns.join(", ")
    )
}

fn select_open(claim: Claim, lock: &str) -> String {
    // What is to be settled; what waits for somebody is not.
    select_claimed(&format!(
        "WHERE o.state IN (1, 2) AND o.id > $1 AND (o.attempts = 0 OR o.update_time_us < $2 OR o.update_time_us > $3) \
         AND NOT EXISTS (SELECT 1 FROM dead_letters d WHERE d.operation_id = o.id) ORDER BY o.id LIMIT {}{lock}",
        claim.limit
    ))
}

/// Everything that a batch writes.
#[derive(Debug, Default)]
pub struct Writes<'a> {
    /// New operations, sorted by (owner, external id).
    pub inserted: Vec<&'a Operation>,
    /// Operations that were stored before, in their new state.
    pub updated: Vec<OperationChange<'a>>,
    pub events: Vec<Event>,
    /// With the operation that each belongs to.
    pub postings: Vec<(Uuid, Posting)>,
    /// Accounts whose balance changed.
    pub balances: Vec<BalanceChange>,
    /// Originals whose reversal was accepted, or rejected later.
    pub reversals: Vec<ReversalChange>,
    pub dead_letters: Vec<DeadLetter>,
    /// What became of what providers have reported.
    pub reports: Vec<ReportChange>,
    /// Payments of which more is refunded, or less.
    pub refunds: Vec<RefundChange>,
    /// What a payment provider is to be asked for.
    pub calls: Vec<NewCall>,
    /// What it is not to be asked for any more.
    pub ended_calls: Vec<(Uuid, CallKind, CallEnd)>,
    /// Charges that the provider has made and the ledger cannot take: the provider is to give them back.
    /// With the keys of that.
    pub give_back_calls: Vec<(Uuid, Uuid)>,
}

/// What is refunded of each leg of a payment, and what was when it was locked. Where something else is, nothing is written at all.
#[derive(Debug, Clone)]
pub struct RefundChange {
    pub payment_id: Uuid,
    pub from: Option<Refunded>,
    pub to: Option<Refunded>,
}

/// What became of something that a provider has reported, and waited until now.
#[derive(Debug, Clone, Copy)]
pub struct ReportChange {
    pub event_id: Uuid,
    pub operation_id: Uuid,
    pub outcome: ReportOutcome,
}

/// An operation in its new state, and where it stood when it was locked. Where it does not stand there, nothing is written at all.
#[derive(Debug, Clone, Copy)]
pub struct OperationChange<'a> {
    pub operation: &'a Operation,
    pub from: Option<Head>,
    pub from_state: State,
}

/// A balance as it is to be, and its version and what was held when it was locked. Where it has others, nothing is written at all.
#[derive(Debug, Clone, Copy)]
pub struct BalanceChange {
    pub account_id: Uuid,
    pub from_version: i64,
    pub from_held: Minor,
    pub after: Balance,
}

/// What reverses an operation, and what did when it was locked. Where another one does, nothing is written at all.
#[derive(Debug, Clone, Copy)]
pub struct ReversalChange {
    pub original_id: Uuid,
    pub from: Option<Uuid>,
    pub to: Option<Uuid>,
}

/// Which holds to take that have run out.
#[derive(Debug, Clone, Copy)]
pub struct ExpiredHolds<'a> {
    /// Whose expiry is not later.
    pub now_us: i64,
    /// At most so many.
    pub limit: u32,
    pub among: Among<'a>,
    /// Left out: those that could not be released lately.
    pub except: &'a [Uuid],
}

/// Among which holds to look.
#[derive(Debug, Clone, Copy)]
pub enum Among<'a> {
    All,
    /// Those on these accounts.
    OnAccounts(&'a [Uuid]),
    /// These, by their ids.
    These(&'a [Uuid]),
}

impl ExpiredHolds<'_> {
    /// With the time as `$1`; `are_listed` and `are_excepted` are the conditions that an id is in the list of ids, and in that of exceptions. The accounts of
    /// a hold of several legs are in `operation_parties`.
    fn condition(&self, are_listed: &str, are_excepted: &str) -> String {
        let among = match self.among {
            Among::All => String::new(),
            Among::These(_) => format!(" AND o.id {are_listed}"),
            Among::OnAccounts(_) => format!(
                " AND (o.source_account_id {are_listed} OR o.legs IS NOT NULL AND EXISTS \
                 (SELECT 1 FROM operation_parties p WHERE p.operation_id = o.id AND p.party_id {are_listed} AND p.stored_open))"
            ),
        };
        // The first condition is that of the index.
        format!(
            "WHERE o.state IN (3, 8) AND o.state = 3 AND o.hold_expire_us <= $1{among} AND NOT (o.id {are_excepted}) ORDER BY o.hold_expire_us LIMIT {}",
            self.limit
        )
    }

    fn ids(&self) -> &[Uuid] {
        match self.among {
            Among::All => &[],
            Among::OnAccounts(ids) | Among::These(ids) => ids,
        }
    }
}

/// An operation that is given up until an operator retries it.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    pub operation_id: Uuid,
    /// What the last attempt ended with.
    pub error: String,
    pub attempts: i64,
    pub create_time_us: i64,
}

impl Ledger {
    /// Begins.
    pub async fn begin(database: &Database) -> Result<Self, Error> {
        match (database.pipelined(), database.sqlite()) {
            (Some(pool), _) => Ok(Self::Postgres(postgres::Tx::begin(pool).await?)),
            (None, Some(pool)) => Ok(Self::Sqlite(sqlite::Tx::begin(pool).await?)),
            (None, None) => Err(Error::corrupt("neither of the two databases")),
        }
    }

    /// Locks accounts in the order of their ids, which must be sorted; what they have. Those that are missing were not locked.
    pub async fn lock(&mut self, accounts: &[Uuid], lock: Lock) -> Result<Balances, Error> {
        match self {
            Self::Postgres(tx) => postgres::lock(tx, accounts, lock).await,
            Self::Sqlite(tx) => sqlite::lock(tx, accounts).await,
        }
    }

    /// Raises the epochs of sagas, which must be sorted by id and each be there once; as they are then. They stay locked until the end. Those that are missing
    /// were not locked.
    pub async fn raise_sagas(&mut self, sagas: &[SagaEpoch], lock: Lock) -> Result<Vec<Saga>, Error> {
        if sagas.is_empty() {
            return Ok(Vec::new());
        }
        match self {
            Self::Postgres(tx) => postgres::raise_sagas(tx, sagas, lock).await,
            Self::Sqlite(tx) => sqlite::raise_sagas(tx, sagas).await,
        }
    }

    /// Locks operations in the order of their ids, which must be sorted. Those that are missing were not locked.
    pub async fn lock_operations(&mut self, ids: &[Uuid], lock: Lock) -> Result<Vec<ClaimedOperation>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        match self {
            Self::Postgres(tx) => postgres::lock_operations(tx, ids, lock).await,
            Self::Sqlite(tx) => sqlite::lock_operations(tx, ids).await,
        }
    }

    /// Locks holds that have run out and that nobody else has, those that ran out first before the others.
    pub async fn lock_expired(&mut self, which: ExpiredHolds<'_>) -> Result<ClaimedOperations, Error> {
        match self {
            Self::Postgres(tx) => postgres::lock_expired(tx, which).await,
            Self::Sqlite(tx) => sqlite::lock_expired(tx, which).await,
        }
    }

    /// Whether there are holds that have run out and are not released, whoever has them.
    pub async fn any_expired(&mut self, which: ExpiredHolds<'_>) -> Result<bool, Error> {
        match self {
            Self::Postgres(tx) => postgres::any_expired(tx, which).await,
            Self::Sqlite(tx) => sqlite::any_expired(tx, which).await,
        }
    }

    /// Takes operations that wait to be settled and that nobody else has, oldest first; dead letters are left alone.
    pub async fn claim(&mut self, claim: Claim) -> Result<ClaimedOperations, Error> {
        match self {
            Self::Postgres(tx) => postgres::claim(tx, claim).await,
            Self::Sqlite(tx) => sqlite::claim(tx, claim).await,
        }
    }

    /// What the provider has reported of its transaction with this key, and waits to be applied, in the order in which it came.
    pub async fn waiting_reports(&mut self, key: (Uuid, &str)) -> Result<Vec<WaitingReport>, Error> {
        match self {
            Self::Postgres(tx) => postgres::waiting_reports(tx, key).await,
            Self::Sqlite(tx) => sqlite::waiting_reports(tx, key).await,
        }
    }

    /// Locks one operation; None when there is none. Waits for whoever has it, up to the lock timeout.
    pub async fn operation(&mut self, id: Uuid) -> Result<Option<ClaimedOperation>, Error> {
        match self {
            Self::Postgres(tx) => postgres::operation(tx, id).await,
            Self::Sqlite(tx) => sqlite::operation(tx, id).await,
        }
    }

    /// Writes everything and commits; the operations first, since they tell whether a key exists: an error of kind `Unique`. After an
    /// error of kind `Unavailable` nobody knows whether it was committed; after any other it was not.
    pub async fn commit(self, writes: &Writes<'_>) -> Result<(), Error> {
        match self {
            Self::Postgres(tx) => postgres::commit(tx, writes).await,
            Self::Sqlite(tx) => sqlite::commit(tx, writes).await,
        }
    }

    /// Undoes everything.
    pub async fn rollback(self) -> Result<(), Error> {
        match self {
            Self::Postgres(tx) => tx.rollback().await,
            Self::Sqlite(tx) => tx.rollback().await,
        }
    }
}
