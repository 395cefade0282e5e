//! The table `provider_calls`: what a payment provider is to be asked for, and was. A card's token stays here no longer than until its answer is in the
//! ledger.

use std::sync::Arc;

use lastro_database::rows::{all_of_ids, execute_of_ids};
use lastro_database::{Database, Error, all, execute, one};
use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use uuid::Uuid;

use crate::domain::payment::CardToken;

/// What it is to be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallKind {
    /// To charge a card for a payment.
    Charge,
    /// To pay a refund back.
    Refund,
    /// To pay a charge back that the ledger could not take.
    GiveBack,
}

const KINDS: [CallKind; 3] = [CallKind::Charge, CallKind::Refund, CallKind::GiveBack];

/// The number of a kind in the table.
pub(super) const fn kind_number(kind: CallKind) -> i64 {
    match kind {
        CallKind::Charge => 1,
        CallKind::Refund => 2,
        CallKind::GiveBack => 3,
    }
}

/// A call that is stored with the operation that it is about.
#[derive(Debug, Clone)]
pub struct NewCall {
    pub operation_id: Uuid,
    pub kind: CallKind,
    /// By which the provider knows it.
    pub key: Uuid,
    /// The name of the provider: nobody else is asked.
    pub provider: Arc<str>,
    /// Whose operation it is.
    pub owner_id: Uuid,
    pub card_token: Option<CardToken>,
    pub correlation_id: String,
}

/// A call that is to be made.
#[derive(Debug, Clone)]
pub struct Call {
    pub operation_id: Uuid,
    pub kind: CallKind,
    pub key: Uuid,
    pub card_token: Option<CardToken>,
    /// The provider may have been asked: it is asked what it did before anything is asked of it again.
    pub is_unknown: bool,
    pub attempts: i64,
    pub correlation_id: String,
}

/// How a call has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallEnd {
    /// The provider has done as asked.
    Done,
    /// It has not, and will not.
    Declined,
    /// It is not asked any more: the operation has ended without it.
    NotAsked,
}

/// The number of an end in the table; 0 is a call that has not ended.
pub(super) const fn end_number(end: CallEnd) -> i64 {
    match end {
        CallEnd::Done => 1,
        CallEnd::Declined => 2,
        CallEnd::NotAsked => 3,
    }
}

/// The clock that says when a call is due, Unix microseconds: on PostgreSQL the server's, which all replicas share.
const fn now(is_postgres: bool) -> &'static str {
    if is_postgres { "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint" } else { "CAST(unixepoch('subsec') * 1000000 AS INTEGER)" }
}

/// Stores a call. Whoever stored it asks the provider itself; should it be killed before it has the answer, another replica asks after 10 s.
pub(super) fn insert(is_postgres: bool) -> String {
    format!(
        "INSERT INTO provider_calls (operation_id, kind, key, provider, owner_id, card_token, next_attempt_us, correlation_id) \
         VALUES ($1, $2, $3, $4, $5, $6, {} + 10000000, $7)",
        now(is_postgres)
    )
}

/// It is not asked for any more.
pub(super) const END: &str =
    "UPDATE provider_calls SET state = $3, card_token = NULL, is_unknown = false WHERE operation_id = $1 AND kind = $2 AND state = 0";

/// What a charge brought is to be given back, once, by whom it was charged.
pub(super) const GIVE_BACK: &str = "INSERT INTO provider_calls (operation_id, kind, key, provider, owner_id, next_attempt_us, correlation_id) \
                                    SELECT operation_id, 3, $2, provider, owner_id, 0, correlation_id FROM provider_calls WHERE operation_id = $1 AND kind = 1 \
                                    ON CONFLICT (operation_id, kind) DO NOTHING";

#[derive(FromQueryResult)]
struct Row {
    operation_id: Uuid,
    kind: i64,
    key: Uuid,
    card_token: Option<String>,
    is_unknown: bool,
    attempts: i64,
    correlation_id: String,
}

const COLUMNS: &str = "operation_id, kind, key, card_token, is_unknown, attempts, correlation_id";

impl Row {
    fn read(self) -> Result<Call, Error> {
        let kind = KINDS.into_iter().find(|kind| kind_number(*kind) == self.kind).ok_or_else(|| Error::corrupt("a call of a kind that is none"))?;
        let Self { operation_id, key, card_token, is_unknown, attempts, correlation_id, .. } = self;
        Ok(Call { operation_id, kind, key, card_token: card_token.map(CardToken::new), is_unknown, attempts, correlation_id })
    }
}

#[derive(FromQueryResult)]
struct Count {
    count: i64,
}

/// What is to be asked for an operation; at most one call at a time.
pub async fn open(on: &impl ConnectionTrait, operation_id: Uuid) -> Result<Option<Call>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM provider_calls WHERE operation_id = $1 AND state = 0");
    one::<Row>(on, &sql, [operation_id.into()]).await?.map(Row::read).transpose()
}

/// How a charge was asked for.
#[derive(FromQueryResult)]
pub struct Charge {
    /// The name of the provider; empty where that was not noted yet.
    pub provider: String,
    pub key: Uuid,
}

/// How a charge was asked for.
pub async fn charge(on: &impl ConnectionTrait, operation_id: Uuid) -> Result<Charge, Error> {
    let found: Option<Charge> =
        one(on, "SELECT provider, key FROM provider_calls WHERE operation_id = $1 AND kind = 1", [operation_id.into()]).await?;
    // Calls that had ended were once not kept; their keys were those of their operations.
    Ok(found.unwrap_or(Charge { provider: String::new(), key: operation_id }))
}

/// How many calls of one owner have not ended.
pub async fn count_open(on: &impl ConnectionTrait, owner_id: Uuid) -> Result<i64, Error> {
    let sql = "SELECT count(*) AS count FROM provider_calls WHERE owner_id = $1 AND state = 0";
    Ok(one::<Count>(on, sql, [owner_id.into()]).await?.map_or(0, |found| found.count))
}

/// Whether the provider is to be asked for something about an operation, or is being asked.
pub async fn is_open(on: &impl ConnectionTrait, operation_id: Uuid) -> Result<bool, Error> {
    let sql = "SELECT count(*) AS count FROM provider_calls WHERE operation_id = $1 AND state = 0";
    Ok(one::<Count>(on, sql, [operation_id.into()]).await?.is_some_and(|found| found.count > 0))
}

/// Of these operations, those whose outcome nobody knows, or whose charge is to be given back and was not yet.
pub async fn unknown_of(on: &impl ConnectionTrait, operations: &[Uuid]) -> Result<Vec<Uuid>, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        operation_id: Uuid,
    }
    let found: Vec<Found> = all_of_ids(
        on,
        "SELECT operation_id FROM provider_calls WHERE operation_id {ids} AND state = 0 AND (is_unknown = $2 OR kind = 3)",
        operations,
        [true.into()],
    )
    .await?;
    Ok(found.into_iter().map(|one| one.operation_id).collect())
}

/// Takes calls to this provider that are due, at most so many, by turns of their owners: one who has many does not keep the others. Nobody else takes them
/// until the lease ends. Whoever takes a call may ask the provider and be killed: from now on its outcome is unknown to everybody else.
pub async fn claim(database: &Database, provider: &str, limit: u32) -> Result<Vec<Call>, Error> {
    let (now, lock) = (now(database.is_postgres()), if database.is_postgres() { " FOR UPDATE SKIP LOCKED" } else { "" });
    let is_due = format!("state = 0 AND provider IN ($1, '') AND (next_attempt_us <= {now} OR next_attempt_us > {now} + {PAUSE_AT_MOST_US})");
    let by_turns = format!(
        "SELECT operation_id, kind FROM (SELECT operation_id, kind, next_attempt_us, \
         row_number() OVER (PARTITION BY owner_id ORDER BY next_attempt_us) AS turn FROM \
         (SELECT operation_id, kind, owner_id, next_attempt_us FROM provider_calls WHERE {is_due} ORDER BY next_attempt_us LIMIT {DUE_AT_ONCE}) AS due) \
         AS ranked ORDER BY turn, next_attempt_us LIMIT {limit}"
    );
    let due = format!("SELECT {COLUMNS} FROM provider_calls WHERE (operation_id, kind) IN ({by_turns}) AND {is_due}{lock}");
    // Almost always nothing is due, and nobody's turn to write is taken for that.
    if all::<Row>(database.reader(), &due.replace(lock, ""), [provider.into()]).await?.is_empty() {
        return Ok(Vec::new());
    }
    let tx = database.begin().await?;
    let rows: Vec<Row> = all(&tx, &due, [provider.into()]).await?;
    let ids: Vec<Uuid> = rows.iter().map(|row| row.operation_id).collect();
    let take = format!("UPDATE provider_calls SET next_attempt_us = {now} + {LEASE_US}, is_unknown = $2 WHERE operation_id {{ids}} AND state = 0");
    execute_of_ids(&tx, &take, &ids, [true.into()]).await?;
    tx.commit().await.map_err(Error::from)?;
    let readable = |row: Row| {
        let operation_id = row.operation_id;
        // Whoever stored it has not come back: it may have asked. Who has tried says whether it had.
        let is_unknown = row.is_unknown || row.attempts == 0;
        // One that a newer version wrote does not keep the others.
        let call = row.read().inspect_err(|error| tracing::error!(%error, operation = %operation_id, "a call to the payment provider does not read"));
        call.ok().map(|call| Call { is_unknown, ..call })
    };
    Ok(rows.into_iter().filter_map(readable).collect())
}

/// Whoever has taken a call has it for so long, and ends well before.
const LEASE_US: i64 = 15_000_000;
/// No attempt is put off for longer: one that lies further ahead was put off before the clock was set back.
const PAUSE_AT_MOST_US: i64 = 75_000_000;
/// Of calls that are due, so many that have waited longest are ranked by the turns of their owners. An owner has far fewer that have not ended.
const DUE_AT_ONCE: u32 = 2000;

/// What came of an attempt that brought no answer.
pub struct Postponed<'a> {
    pub operation_id: Uuid,
    pub kind: CallKind,
    pub is_unknown: bool,
    /// Until the next attempt.
    pub pause_us: i64,
    pub error: &'a str,
}

/// The next attempt is made after the pause.
pub async fn postpone(database: &Database, what: Postponed<'_>) -> Result<(), Error> {
    let now = now(database.is_postgres());
    let sql = format!(
        "UPDATE provider_calls SET attempts = attempts + 1, is_unknown = $2, next_attempt_us = {now} + $3, last_error = $4 \
         WHERE operation_id = $1 AND kind = $5 AND state = 0"
    );
    let values: [Value; 5] =
        [what.operation_id.into(), what.is_unknown.into(), what.pause_us.into(), what.error.into(), kind_number(what.kind).into()];
    execute(database.writer(), &sql, values).await.map(|_| ())
}

/// How many wait for an answer that nobody knows.
pub async fn count_unknown(on: &impl ConnectionTrait) -> Result<i64, Error> {
    let sql = "SELECT count(*) AS count FROM provider_calls WHERE state = 0 AND is_unknown = $1";
    Ok(one::<Count>(on, sql, [true.into()]).await?.map_or(0, |found| found.count))
}

/// How many are to be asked of providers other than this one.
pub async fn count_of_others(on: &impl ConnectionTrait, provider: &str) -> Result<i64, Error> {
    let sql = "SELECT count(*) AS count FROM provider_calls WHERE state = 0 AND provider NOT IN ($1, '')";
    Ok(one::<Count>(on, sql, [provider.into()]).await?.map_or(0, |found| found.count))
}
