//! The table `operations`, outside of settlement.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use lastro_database::batch_loader::BatchLoader;
use lastro_database::rows::all_of_ids;
use lastro_database::{Database, Error, Transaction, all, execute, one, select_all};
use lastro_mesh::page::{BYTES_MAX, Page};
use lastro_money::{Amount, Currency, Minor};
use sea_orm::sea_query::{Alias, Expr, ExprTrait as _, JoinType, Order, Query, SelectStatement, SimpleExpr, UnionType};
use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use uuid::Uuid;

use super::legs;
use crate::domain::account::SYSTEM_OWNER;
use crate::domain::operation::{Head, Hold, Movement, Operation, OperationLeg, Party, Settlement, State, Type, is_terminal};
use crate::domain::rejection::Reason;

/// The numbers of kinds in the table.
pub(super) const fn type_number(kind: Type) -> i64 {
    match kind {
        Type::Deposit => 1,
        Type::Withdrawal => 2,
        Type::Transfer => 3,
        Type::Payment => 4,
        Type::Refund => 5,
        Type::Reversal => 6,
    }
}

const TYPES: [Type; 6] = [Type::Deposit, Type::Withdrawal, Type::Transfer, Type::Payment, Type::Refund, Type::Reversal];

/// The numbers of states in the table. 1 and 2 are what workers have to settle: an index has them alone.
pub(super) const fn state_number(state: State) -> i64 {
    match state {
        State::Pending => 1,
        State::Retrying => 2,
        State::Authorized => 3,
        State::Completed => 4,
        State::Rejected => 5,
        State::Voided => 6,
        State::Expired => 7,
        State::Waiting => 8,
    }
}

const STATES: [State; 8] =
    [State::Pending, State::Retrying, State::Authorized, State::Completed, State::Rejected, State::Voided, State::Expired, State::Waiting];

/// A reason in the table, where none is an empty text.
pub(super) fn reason_text(operation: &Operation) -> &str {
    operation.reason.as_ref().map_or("", Reason::name)
}

/// A row of it; both databases read it.
#[derive(FromQueryResult, sqlx::FromRow)]
pub(super) struct Row {
    id: Uuid,
    owner_id: Uuid,
    external_id: String,
    request_hash: Vec<u8>,
    kind: i64,
    state: i64,
    reason: String,
    currency_code: String,
    amount: i64,
    source_account_id: Option<Uuid>,
    destination_account_id: Option<Uuid>,
    source_owner_id: Option<Uuid>,
    destination_owner_id: Option<Uuid>,
    description: String,
    metadata: String,
    effective_time_us: i64,
    create_time_us: i64,
    update_time_us: i64,
    version: i64,
    hash: Vec<u8>,
    attempts: i64,
    legs: Option<Vec<u8>>,
    hold_expire_us: Option<i64>,
    captured_amount: Option<i64>,
    rejected_leg: Option<i64>,
    original_id: Option<Uuid>,
    reversal_id: Option<Uuid>,
    balances_after: Option<Vec<u8>>,
    external: bool,
    refunded: Option<Vec<u8>>,
}

/// In this order everywhere: what is read by place, written by place, and copied.
pub(super) const COLUMN_NAMES: [&str; 30] = [
    "id",
    "owner_id",
    "external_id",
    "request_hash",
    "kind",
    "state",
    "reason",
    "currency_code",
    "amount",
    "source_account_id",
    "destination_account_id",
    "source_owner_id",
    "destination_owner_id",
    "description",
    "metadata",
    "effective_time_us",
    "create_time_us",
    "update_time_us",
    "version",
    "hash",
    "attempts",
    "legs",
    "hold_expire_us",
    "captured_amount",
    "rejected_leg",
    "original_id",
    "reversal_id",
    "balances_after",
    "external",
    "refunded",
];

pub(super) static COLUMNS: LazyLock<String> = LazyLock::new(|| COLUMN_NAMES.join(", "));

impl Row {
    pub(super) fn id(&self) -> Uuid {
        self.id
    }

    /// Of a row with [`COLUMNS`].
    pub(super) fn from_postgres(row: &lastro_database::pipelined::Row) -> Result<Self, Error> {
        Ok(Self {
            id: row.get(0)?,
            owner_id: row.get(1)?,
            external_id: row.get(2)?,
            request_hash: row.get(3)?,
            kind: row.get(4)?,
            state: row.get(5)?,
            reason: row.get(6)?,
            currency_code: row.get(7)?,
            amount: row.get(8)?,
            source_account_id: row.get(9)?,
            destination_account_id: row.get(10)?,
            source_owner_id: row.get(11)?,
            destination_owner_id: row.get(12)?,
            description: row.get(13)?,
            metadata: row.get(14)?,
            effective_time_us: row.get(15)?,
            create_time_us: row.get(16)?,
            update_time_us: row.get(17)?,
            version: row.get(18)?,
            hash: row.get(19)?,
            attempts: row.get(20)?,
            legs: row.get(21)?,
            hold_expire_us: row.get(22)?,
            captured_amount: row.get(23)?,
            rejected_leg: row.get(24)?,
            original_id: row.get(25)?,
            reversal_id: row.get(26)?,
            balances_after: row.get(27)?,
            external: row.get(28)?,
            refunded: row.get(29)?,
        })
    }

    pub(super) fn read(self) -> Result<Operation, Error> {
        let hash = |bytes: Vec<u8>| bytes.try_into().map_err(|_| Error::corrupt("a hash that has not 32 bytes"));
        let kind = TYPES.into_iter().find(|kind| type_number(*kind) == self.kind).ok_or_else(|| Error::corrupt("a kind that is none"))?;
        let state = STATES.into_iter().find(|state| state_number(*state) == self.state).ok_or_else(|| Error::corrupt("a state that is none"))?;
        let reason = match self.reason.as_str() {
            "" => None,
            name => Some(Reason::from_name(name)),
        };
        let rejected_leg = self.rejected_leg.map(usize::try_from).transpose().map_err(Error::corrupt)?;
        let movement = match &self.legs {
            Some(legs) => Movement::Legs(legs::from_bytes(legs)?),
            None => Movement::Single(self.single()?),
        };
        Ok(Operation {
            id: self.id,
            owner_id: self.owner_id,
            request_hash: hash(self.request_hash)?,
            kind,
            state,
            reason,
            rejected_leg,
            movement,
            hold: self.hold_expire_us.map(|expire_time_us| Hold { expire_time_us, captured: self.captured_amount.map(Minor::new) }),
            original_id: self.original_id,
            reversal_id: self.reversal_id,
            balances_after: self.balances_after.as_deref().map(legs::minors_from_bytes).transpose()?,
            settlement: if self.external { Settlement::External } else { Settlement::Internal },
            refunded: self.refunded.as_deref().map(legs::minors_from_bytes).transpose()?,
            external_id: self.external_id,
            description: self.description,
            metadata: metadata_from_text(&self.metadata)?,
            effective_time_us: self.effective_time_us,
            // Where nothing was given, it is the time of acceptance until it is posted, and nobody asks any more then.
            has_effective_time: self.effective_time_us != self.create_time_us,
            create_time_us: self.create_time_us,
            update_time_us: self.update_time_us,
            head: Some(Head { version: self.version, hash: hash(self.hash)? }),
            attempts: self.attempts,
        })
    }

    fn single(&self) -> Result<OperationLeg, Error> {
        let currency = Currency::from_code(&self.currency_code).ok_or_else(|| Error::corrupt("a currency that is none"))?;
        // Of an account whose owner an older version did not note, nobody is the owner.
        let party = |account_id, owner_id: Option<Uuid>| Party { account_id, owner_id: owner_id.unwrap_or(SYSTEM_OWNER) };
        Ok(OperationLeg {
            source: self.source_account_id.map(|id| party(id, self.source_owner_id)),
            destination: self.destination_account_id.map(|id| party(id, self.destination_owner_id.or(self.source_owner_id))),
            amount: Amount::new(Minor::new(self.amount), currency),
            description: String::new(),
        })
    }
}

/// The columns in which a list looks for an operation's accounts and owners.
pub(super) struct Sides {
    pub source: Option<Uuid>,
    pub destination: Option<Uuid>,
    pub source_owner: Option<Uuid>,
    /// None where it is the source's owner, so that who owns both finds the operation once.
    pub destination_owner: Option<Uuid>,
}

/// Those of an operation. One of several legs has its accounts, and their other owners, in `operation_parties`.
pub(super) fn sides(operation: &Operation) -> Sides {
    let parties = |leg: &OperationLeg| (leg.source, leg.destination);
    match &operation.movement {
        Movement::Single(leg) => {
            let (source, destination) = parties(leg);
            let source_owner = source.map(|party| party.owner_id);
            Sides {
                source: source.map(|party| party.account_id),
                destination: destination.map(|party| party.account_id),
                source_owner,
                destination_owner: destination.map(|party| party.owner_id).filter(|owner| source_owner != Some(*owner)),
            }
        }
        Movement::Legs(_) => {
            let first = operation.movement.parties().next();
            Sides { source: None, destination: None, source_owner: first.map(|party| party.owner_id), destination_owner: None }
        }
    }
}

/// The amount that stands in the row: of several legs that of the first, which nobody reads.
pub(super) fn row_amount(operation: &Operation) -> Option<Amount> {
    operation.movement.legs().first().map(|leg| leg.amount)
}

/// Several legs, as they are stored.
pub(super) fn legs_bytes(operation: &Operation) -> Option<Vec<u8>> {
    match &operation.movement {
        Movement::Single(_) => None,
        Movement::Legs(legs) => Some(legs::to_bytes(legs)),
    }
}

/// What was captured of a hold of a single leg.
pub(super) fn captured(operation: &Operation) -> Option<i64> {
    operation.hold?.captured.map(Minor::get)
}

/// At most 100 legs.
pub(super) fn rejected_leg(operation: &Operation) -> Option<i64> {
    operation.rejected_leg.and_then(|leg| i64::try_from(leg).ok())
}

/// The posted balances after it, as they are stored.
pub(super) fn balances_after(operation: &Operation) -> Option<Vec<u8>> {
    operation.balances_after.as_deref().map(legs::minors_to_bytes)
}

/// What was refunded of a payment, as it is stored.
pub(super) fn refunded(operation: &Operation) -> Option<Vec<u8>> {
    operation.refunded.as_deref().map(legs::minors_to_bytes)
}

/// Whether a provider settles it.
pub(super) fn is_external(operation: &Operation) -> bool {
    operation.settlement == Settlement::External
}

/// A row of `operation_parties`.
pub(super) struct PartyRow {
    pub party_id: Uuid,
    pub operation_id: Uuid,
    /// It was not at its end when it was stored.
    pub stored_open: bool,
}

/// Those of an operation that is to be stored: of several legs every account, and every owner but the one whom its row names.
pub(super) fn party_rows(operation: &Operation) -> Vec<PartyRow> {
    if operation.movement.single().is_some() {
        return Vec::new();
    }
    let named = sides(operation).source_owner;
    let mut parties: Vec<Uuid> = operation.movement.parties().flat_map(|party| [party.account_id, party.owner_id]).collect();
    parties.sort_unstable();
    parties.dedup();
    parties.retain(|party| Some(*party) != named);
    let stored_open = !is_terminal(operation.state);
    parties.into_iter().map(|party_id| PartyRow { party_id, operation_id: operation.id, stored_open }).collect()
}

/// Metadata as it is stored: a JSON object, or nothing.
pub fn metadata_to_text(metadata: &BTreeMap<String, String>) -> String {
    if metadata.is_empty() {
        return String::new();
    }
    let object: serde_json::Map<String, serde_json::Value> = metadata.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
    serde_json::Value::Object(object).to_string()
}

/// Metadata as it was stored.
pub fn metadata_from_text(text: &str) -> Result<BTreeMap<String, String>, Error> {
    if text.is_empty() { Ok(BTreeMap::new()) } else { serde_json::from_str(text).map_err(Error::corrupt) }
}

/// Operations by their ids, as they are now.
pub fn loader(database: &Database) -> BatchLoader<Operation> {
    static BY_IDS: LazyLock<String> = LazyLock::new(|| format!("SELECT {} FROM operations WHERE id = ANY($1)", *COLUMNS));
    let database = database.clone();
    BatchLoader::new(move |ids| {
        let database = database.clone();
        Box::pin(async move {
            let rows = match database.read_by_ids(&BY_IDS, &ids).await {
                Some(rows) => rows?.iter().map(Row::from_postgres).collect::<Result<Vec<_>, _>>()?,
                None => all_of_ids(database.reader(), &format!("SELECT {} FROM operations WHERE id {{ids}}", *COLUMNS), &ids, []).await?,
            };
            Ok(rows.into_iter().map(|row| (row.id, row.read())).collect())
        })
    })
}

/// One operation.
pub async fn get(on: &impl ConnectionTrait, id: Uuid) -> Result<Option<Operation>, Error> {
    one::<Row>(on, &format!("SELECT {} FROM operations WHERE id = $1", *COLUMNS), [id.into()]).await?.map(Row::read).transpose()
}

/// Whether an operation has an event.
pub async fn has_event(on: &impl ConnectionTrait, operation_id: Uuid, event_id: Uuid) -> Result<bool, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        id: Uuid,
    }
    let sql = "SELECT id FROM operation_events WHERE aggregate_id = $1 AND id = $2";
    Ok(one::<Found>(on, sql, [operation_id.into(), event_id.into()]).await?.is_some_and(|found| found.id == event_id))
}

/// How far these operations have come: the versions of their last events.
pub async fn versions(on: &impl ConnectionTrait, ids: &[Uuid]) -> Result<Vec<(Uuid, i64)>, Error> {
    #[derive(FromQueryResult)]
    struct Version {
        id: Uuid,
        version: i64,
    }
    let rows: Vec<Version> = all_of_ids(on, "SELECT id, version FROM operations WHERE id {ids}", ids, []).await?;
    Ok(rows.into_iter().map(|row| (row.id, row.version)).collect())
}

/// The operations with these keys, (owner, external id) each, as many of them as exist.
pub async fn by_keys(on: &impl ConnectionTrait, keys: &[(Uuid, &str)]) -> Result<Vec<Operation>, Error> {
    /// Keys to a statement, each size being one prepared statement.
    const AT_ONCE: [usize; 3] = [64, 8, 1];
    let (mut found, mut rest) = (Vec::new(), keys);
    while let Some(size) = AT_ONCE.into_iter().find(|size| *size <= rest.len()) {
        let (now, later) = rest.split_at(size);
        rest = later;
        // Each term is one look into the index; a planner without statistics might read the whole table for a join.
        let terms: Vec<String> = (0..size).map(|n| format!("(owner_id = ${} AND external_id = ${})", 2 * n + 1, 2 * n + 2)).collect();
        let values = now.iter().flat_map(|(owner_id, external_id)| [Value::from(*owner_id), Value::from(*external_id)]);
        let rows: Vec<Row> = all(on, &format!("SELECT {} FROM operations WHERE {}", *COLUMNS, terms.join(" OR ")), values).await?;
        for row in rows {
            found.push(row.read()?);
        }
    }
    Ok(found)
}

/// The refunds of a payment, oldest first.
pub async fn refunds_of(on: &impl ConnectionTrait, payment_id: Uuid) -> Result<Vec<Operation>, Error> {
    let sql = format!("SELECT {} FROM operations WHERE kind IN (4, 5) AND kind = 5 AND original_id = $1 ORDER BY id", *COLUMNS);
    let rows: Vec<Row> = all(on, &sql, [payment_id.into()]).await?;
    rows.into_iter().map(Row::read).collect()
}

/// How many refunds of a payment there are.
pub async fn count_refunds(on: &impl ConnectionTrait, payment_id: Uuid) -> Result<i64, Error> {
    #[derive(FromQueryResult)]
    struct Count {
        count: i64,
    }
    let sql = "SELECT count(*) AS count FROM operations WHERE kind IN (4, 5) AND kind = 5 AND original_id = $1";
    Ok(one::<Count>(on, sql, [payment_id.into()]).await?.map_or(0, |found| found.count))
}

/// Payments with a key, of all payers: those that concern a user, or all; at most two, which tells one from several.
pub async fn payments_by_key(on: &impl ConnectionTrait, key: &str, concerning: Option<Uuid>) -> Result<Vec<Operation>, Error> {
    // Its accounts and their owners stand in the row, or in `operation_parties`, as `sides` has it.
    let concerns = "(source_owner_id = $2 OR destination_owner_id = $2 OR EXISTS \
                    (SELECT 1 FROM operation_parties p WHERE p.operation_id = operations.id AND p.party_id = $2))";
    let condition = if concerning.is_some() { format!(" AND {concerns}") } else { String::new() };
    let sql = format!(
        "SELECT {} FROM operations WHERE kind IN (4, 5) AND kind = 4 AND original_id IS NULL AND external_id = $1{condition} ORDER BY id LIMIT 2",
        *COLUMNS
    );
    let values = [Some(Value::from(key)), concerning.map(Value::from)].into_iter().flatten();
    let rows: Vec<Row> = all(on, &sql, values).await?;
    rows.into_iter().map(Row::read).collect()
}

/// Whether an operation that is not settled yet names one of some accounts, on either side. Few are open at any time. `accounts` is a query of ids, in
/// which `$1` is `of`.
async fn any_open(tx: &Transaction, accounts: &str, of: Uuid) -> Result<bool, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        id: Uuid,
    }
    // Each arm is a look into an index by account of what is not completed: others' holds are not read.
    let open = "o.state <> 4 AND o.state IN (1, 2, 3, 8)";
    let arms = [
        format!("SELECT o.id FROM operations o WHERE o.source_account_id IN ({accounts}) AND {open}"),
        format!("SELECT o.id FROM operations o WHERE o.destination_account_id IN ({accounts}) AND {open}"),
        format!(
            "SELECT o.id FROM operation_parties p JOIN operations o ON o.id = p.operation_id \
             WHERE p.stored_open AND p.party_id IN ({accounts}) AND {open}"
        ),
    ];
    let found: Option<Found> = one(tx, &format!("{} LIMIT 1", arms.join(" UNION ALL ")), [of.into()]).await?;
    Ok(found.is_some_and(|found| !found.id.is_nil()))
}

/// Whether an operation that is not settled yet names an account of a user.
pub async fn any_open_of_owner(tx: &Transaction, owner_id: Uuid) -> Result<bool, Error> {
    any_open(tx, "SELECT id FROM accounts WHERE owner_id = $1", owner_id).await
}

/// Whether a deposit that a user has submitted waits for what this user, a provider, reports.
pub async fn any_waiting_for(tx: &Transaction, provider_id: Uuid) -> Result<bool, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        owner_id: Uuid,
    }
    let sql = "SELECT owner_id FROM operations WHERE state IN (3, 8) AND hold_expire_us IS NULL AND owner_id = $1 AND state = 8 AND kind = 1 LIMIT 1";
    Ok(one::<Found>(tx, sql, [provider_id.into()]).await?.is_some_and(|found| found.owner_id == provider_id))
}

/// Whether an operation that is not settled yet names an account.
pub async fn any_open_of_account(tx: &Transaction, account_id: Uuid) -> Result<bool, Error> {
    any_open(tx, "SELECT id FROM accounts WHERE id = $1", account_id).await
}

/// The holds on some accounts that have run out and are not released yet, those that ran out first before the others: at most 1,000.
pub async fn expired_on(on: &impl ConnectionTrait, accounts: &[Uuid], now_us: i64) -> Result<Vec<Operation>, Error> {
    let mut expired = Vec::new();
    for of in ["source_account_id {ids}", "id IN (SELECT operation_id FROM operation_parties WHERE stored_open AND party_id {ids})"] {
        let sql = format!(
            "SELECT {} FROM operations WHERE state IN (3, 8) AND state = 3 AND hold_expire_us <= $2 AND {of} ORDER BY hold_expire_us LIMIT 500",
            *COLUMNS
        );
        let rows: Vec<Row> = all_of_ids(on, &sql, accounts, [now_us.into()]).await?;
        for row in rows {
            expired.push(row.read()?);
        }
    }
    Ok(expired)
}

/// Whose operations a list has.
#[derive(Debug, Clone, Copy)]
pub enum Of {
    /// Those of all.
    Everybody,
    /// Those that debit or credit an account of a user.
    Owner(Uuid),
    /// Those that debit or credit an account.
    Account(Uuid),
}

/// Which of them a list has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// In one of these states; empty: in any.
    pub states: Vec<State>,
    /// Of this kind.
    pub kind: Option<Type>,
    /// Accepted then or later, Unix microseconds.
    pub from_us: Option<i64>,
    /// Accepted before.
    pub to_us: Option<i64>,
    pub metadata: Option<MetadataFilter>,
}

/// Submitted by somebody with this in its metadata, which nobody else sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataFilter {
    pub submitter_id: Uuid,
    pub key: String,
    /// None: any.
    pub value: Option<String>,
}

impl MetadataFilter {
    fn has(&self, operation: &Operation) -> bool {
        let value = operation.metadata.get(&self.key).filter(|_| operation.owner_id == self.submitter_id);
        value.is_some_and(|value| self.value.as_ref().is_none_or(|asked| asked == value))
    }
}

/// An id begins with the time at which it was made. It may differ from the time that is stored as that of acceptance by as much as the clock was set back
/// meanwhile, since ids never go back.
const ID_SLACK_US: i64 = 60_000_000;

impl Filter {
    /// Whether it leaves anything out.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether an operation fits.
    pub fn has(&self, operation: &Operation) -> bool {
        (self.states.is_empty() || self.states.contains(&operation.state))
            && self.kind.is_none_or(|kind| kind == operation.kind)
            && self.from_us.is_none_or(|from| from <= operation.create_time_us)
            && self.to_us.is_none_or(|to| operation.create_time_us < to)
            && self.metadata.as_ref().is_none_or(|metadata| metadata.has(operation))
    }

    /// The ids between which everything lies that fits, the first one included: ids begin with the time at which they were made.
    fn ids(&self) -> (Uuid, Uuid) {
        let from = self.from_us.map_or(Uuid::nil(), |from| first_id_at(from.saturating_sub(ID_SLACK_US)));
        (from, self.to_us.map_or(Uuid::max(), |to| first_id_at(to.saturating_add(ID_SLACK_US))))
    }

    /// The conditions of the partial indexes that have everything that fits, written as there, so that a planner sees that it is the same. What else the
    /// filter says is looked at in each row: a statement for each combination would stay prepared in every session.
    fn rare(&self) -> impl Iterator<Item = &'static str> {
        let undone = (!self.states.is_empty() && !self.states.contains(&State::Completed)).then_some("state <> 4");
        let unusual = self.kind.is_some_and(|kind| kind != Type::Transfer).then_some("kind <> 3");
        undone.into_iter().chain(unusual)
    }
}

/// The least UUIDv7 of a time (RFC 9562: it begins with 48 bits of Unix milliseconds).
fn first_id_at(us: i64) -> Uuid {
    let ms = us.div_euclid(1000).clamp(0, (1 << 48) - 1).unsigned_abs();
    Uuid::from_u128(u128::from(ms) << 80)
}

/// Rows to a statement: of what is far larger than the page may be, so many are read in vain at most. The first statement of a page, and each further.
const ROWS_AT_FIRST: u64 = 64;
const ROWS_AT_ONCE: u64 = 256;
/// Rows that one page looks at: who filters out nearly everything gets short pages, and goes on by their tokens.
const SCANNED_MAX: usize = 2_000;

/// A page, before it is cut.
pub struct Listed {
    pub operations: Vec<Operation>,
    /// Where the next page goes on although this one is not full: so far was looked.
    pub scanned_to: Option<Uuid>,
}

/// The operations of a page, newest first: up to its limit, or until the page is full by bytes. One look into one index a side, read from its end, so
/// that a page costs the same however long the history is and however many accounts its owner has. A filter looks at [`SCANNED_MAX`] rows at most.
pub async fn list(database: &Database, of: Of, filter: &Filter, page: Page) -> Result<Listed, Error> {
    let (from, to) = filter.ids();
    let (mut found, mut bytes, mut scanned, mut before) = (Vec::new(), 0, 0, page.before.map_or(to, |before| Ord::min(before, to)));
    while page.limit() > found.len() as u64 && bytes <= BYTES_MAX {
        if scanned >= SCANNED_MAX && !filter.is_empty() {
            return Ok(Listed { operations: found, scanned_to: Some(before) });
        }
        let limit = match (filter.is_empty(), scanned) {
            (true, _) => Ord::min(ROWS_AT_FIRST, page.limit() - found.len() as u64),
            (false, 0) => ROWS_AT_FIRST,
            (false, _) => ROWS_AT_ONCE,
        };
        let select = newest(of, filter, (from, before), limit);
        let rows = match database.read_by_index(&select).await {
            Some(rows) => rows?.iter().map(Row::from_postgres).collect::<Result<Vec<_>, _>>()?,
            None => select_all(database.reader(), &select).await?,
        };
        let is_last = (rows.len() as u64) < limit;
        scanned += rows.len();
        for row in rows {
            let operation = row.read()?;
            before = operation.id;
            if filter.has(&operation) {
                bytes += operation.answer_bytes();
                found.push(operation);
            }
        }
        if is_last {
            break;
        }
    }
    Ok(Listed { operations: found, scanned_to: None })
}

/// The newest rows of a range of ids, the first one included, that a filter's indexes have.
fn newest(of: Of, filter: &Filter, (from, before): (Uuid, Uuid), limit: u64) -> SelectStatement {
    let one_side = |is_its: Option<SimpleExpr>| {
        let mut side = Query::select();
        let id = || Expr::col(Alias::new("id"));
        side.columns(COLUMN_NAMES.map(Alias::new)).from(Alias::new("operations")).cond_where(id().lt(before)).and_where(id().gte(from));
        if let Some(is_its) = is_its {
            side.and_where(is_its);
        }
        for rare in filter.rare() {
            side.and_where(Expr::cust(rare));
        }
        side.order_by(Alias::new("id"), Order::Desc).limit(limit).take()
    };
    let (columns, id) = match of {
        Of::Everybody => return one_side(None),
        Of::Owner(id) => (["source_owner_id", "destination_owner_id"], id),
        Of::Account(id) => (["source_account_id", "destination_account_id"], id),
    };
    // No operation is in two of the three: an owner of both sides is the source's, an account is never both, and of several legs the row names no account,
    // and one owner, who is no party again.
    let [debits, credits] = columns.map(|column| {
        let side = one_side(Some(Expr::col(Alias::new(column)).eq(id)));
        Query::select().columns(COLUMN_NAMES.map(Alias::new)).from_subquery(side, Alias::new(column)).take()
    });
    let mut all = debits;
    all.union(UnionType::All, credits)
        .union(UnionType::All, of_several_legs(id, (from, before), limit))
        .order_by(Alias::new("id"), Order::Desc)
        .limit(limit)
        .take()
}

/// The newest operations of several legs that have a party, whatever else a filter asks for: each row is one look into each of two indexes.
fn of_several_legs(party_id: Uuid, (from, before): (Uuid, Uuid), limit: u64) -> SelectStatement {
    let party = |name: &str| Expr::col((Alias::new("p"), Alias::new(name)));
    let mut newest = Query::select();
    newest
        .columns(COLUMN_NAMES.map(|name| (Alias::new("o"), Alias::new(name))))
        .from_as(Alias::new("operation_parties"), Alias::new("p"))
        .join_as(JoinType::InnerJoin, Alias::new("operations"), Alias::new("o"), party("operation_id").equals((Alias::new("o"), Alias::new("id"))))
        .and_where(party("party_id").eq(party_id))
        .and_where(party("operation_id").lt(before))
        .and_where(party("operation_id").gte(from))
        .order_by((Alias::new("p"), Alias::new("operation_id")), Order::Desc)
        .limit(limit);
    Query::select().columns(COLUMN_NAMES.map(Alias::new)).from_subquery(newest, Alias::new("several_legs")).take()
}

/// Notes the owners of operations that a replica of an older version stored, which knew no such columns; of at most 500, and how many they were.
/// What has no owner in this store is left as it is.
pub async fn fill_in_owners(tx: &Transaction) -> Result<u64, Error> {
    execute(tx, FILL_IN_OWNERS, []).await
}

const FILL_IN_OWNERS: &str = "UPDATE operations SET \
    source_owner_id = (SELECT a.owner_id FROM accounts a WHERE a.id = source_account_id), \
    destination_owner_id = (SELECT b.owner_id FROM accounts b WHERE b.id = destination_account_id \
                            AND b.owner_id IS DISTINCT FROM (SELECT a.owner_id FROM accounts a WHERE a.id = source_account_id)) \
    WHERE id IN (SELECT id FROM operations o WHERE o.source_owner_id IS NULL AND o.destination_owner_id IS NULL \
                 AND EXISTS (SELECT 1 FROM accounts a WHERE a.id IN (o.source_account_id, o.destination_account_id) AND a.owner_id IS NOT NULL) \
                 LIMIT 500)";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::operation::is_to_be_settled;

    #[test]
    fn the_first_id_of_a_time_is_before_those_that_are_made_then() {
        let now_us = 1_700_000_000_123_456;
        let made = |us: i64| Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, us.unsigned_abs() / 1_000_000, (us % 1_000_000) as u32 * 1000));
        assert!(first_id_at(now_us) <= made(now_us) && made(now_us) < first_id_at(now_us + 1000));
        assert_eq!((first_id_at(-1), first_id_at(i64::MAX).as_u128() >> 80), (Uuid::nil(), (1 << 48) - 1));
    }

    #[test]
    fn every_kind_and_state_has_a_number_of_its_own_and_workers_claim_what_is_to_be_settled() {
        assert_eq!(TYPES.map(type_number), [1, 2, 3, 4, 5, 6]);
        let mut numbers = STATES.map(state_number);
        assert!(STATES.iter().all(|state| is_to_be_settled(*state) == [1, 2].contains(&state_number(*state))));
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
