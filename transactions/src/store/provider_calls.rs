//! The table `provider_calls`: what a payment provider is to be asked for, until its answer is in the ledger. A card's token stays here no longer than that.

use lastro_database::rows::all_of_ids;
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
    pub card_token: Option<CardToken>,
    /// When somebody else takes it over from whoever stored it.
    pub next_attempt_us: i64,
    pub correlation_id: String,
}

/// A call that is to be made.
#[derive(Debug, Clone)]
pub struct Call {
    pub operation_id: Uuid,
    pub kind: CallKind,
    pub card_token: Option<CardToken>,
    /// The provider may have been asked: it is asked what it did before anything is asked of it again.
    pub is_unknown: bool,
    pub attempts: i64,
    pub correlation_id: String,
}

pub(super) const INSERT: &str = "INSERT INTO provider_calls (operation_id, kind, card_token, is_unknown, attempts, next_attempt_us, last_error, correlation_id) \
                                 VALUES ($1, $2, $3, false, 0, $4, '', $5)";

/// Nothing is asked any more: of this kind, since a charge may meanwhile have become one that is to be given back.
pub(super) const END: &str = "DELETE FROM provider_calls WHERE operation_id = $1 AND kind = $2";

/// A charge that is to be given back.
pub(super) const TURN: &str = "UPDATE provider_calls SET kind = 3, card_token = NULL, is_unknown = false, attempts = 0, next_attempt_us = 0 \
                               WHERE operation_id = $1 AND kind = 1";

#[derive(FromQueryResult)]
struct Row {
    operation_id: Uuid,
    kind: i64,
    card_token: Option<String>,
    is_unknown: bool,
    attempts: i64,
    correlation_id: String,
}

const COLUMNS: &str = "operation_id, kind, card_token, is_unknown, attempts, correlation_id";

impl Row {
    fn read(self) -> Result<Call, Error> {
        let kind = KINDS.into_iter().find(|kind| kind_number(*kind) == self.kind).ok_or_else(|| Error::corrupt("a call of a kind that is none"))?;
        let Self { operation_id, card_token, is_unknown, attempts, correlation_id, .. } = self;
        Ok(Call { operation_id, kind, card_token: card_token.map(CardToken::new), is_unknown, attempts, correlation_id })
    }
}

/// One call.
pub async fn get(on: &impl ConnectionTrait, operation_id: Uuid) -> Result<Option<Call>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM provider_calls WHERE operation_id = $1");
    one::<Row>(on, &sql, [operation_id.into()]).await?.map(Row::read).transpose()
}

/// Of these operations, those whose outcome nobody knows, or whose charge is to be given back and was not yet.
pub async fn unknown_of(on: &impl ConnectionTrait, operations: &[Uuid]) -> Result<Vec<Uuid>, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        operation_id: Uuid,
    }
    let found: Vec<Found> = all_of_ids(
        on,
        "SELECT operation_id FROM provider_calls WHERE operation_id {ids} AND (is_unknown = $2 OR kind = 3)",
        operations,
        [true.into()],
    )
    .await?;
    Ok(found.into_iter().map(|one| one.operation_id).collect())
}

/// Takes calls that are due, at most so many. Nobody else does until the lease ends. Whoever had them may have asked the provider: their outcome is unknown
/// from now on.
pub async fn claim(database: &Database, now_us: i64, lease_until_us: i64, limit: u32) -> Result<Vec<Call>, Error> {
    let lock = if database.is_postgres() { " FOR UPDATE SKIP LOCKED" } else { "" };
    let sql = format!(
        "UPDATE provider_calls SET next_attempt_us = $2, is_unknown = true WHERE operation_id IN \
         (SELECT operation_id FROM provider_calls WHERE next_attempt_us <= $1 OR next_attempt_us > $1 + {PAUSE_AT_MOST_US} \
          ORDER BY next_attempt_us LIMIT {limit}{lock}) RETURNING {COLUMNS}"
    );
    let rows: Vec<Row> = all(database.writer(), &sql, [now_us.into(), lease_until_us.into()]).await?;
    let readable = |row: Row| {
        let operation_id = row.operation_id;
        // One that a newer version wrote does not keep the others.
        row.read().inspect_err(|error| tracing::error!(%error, operation = %operation_id, "a call to the payment provider does not read")).ok()
    };
    Ok(rows.into_iter().filter_map(readable).collect())
}

/// No attempt is put off for longer: one that lies further ahead was put off before the clock was set back.
const PAUSE_AT_MOST_US: i64 = 75_000_000;

/// What came of an attempt that brought no answer.
pub struct Postponed<'a> {
    pub operation_id: Uuid,
    pub kind: CallKind,
    pub is_unknown: bool,
    pub next_attempt_us: i64,
    pub error: &'a str,
}

/// The next attempt is made then.
pub async fn postpone(on: &impl ConnectionTrait, what: Postponed<'_>) -> Result<(), Error> {
    let sql = "UPDATE provider_calls SET attempts = attempts + 1, is_unknown = $2, next_attempt_us = $3, last_error = $4 \
               WHERE operation_id = $1 AND kind = $5";
    let values: [Value; 5] =
        [what.operation_id.into(), what.is_unknown.into(), what.next_attempt_us.into(), what.error.into(), kind_number(what.kind).into()];
    execute(on, sql, values).await.map(|_| ())
}

/// How many wait for an answer that nobody knows.
pub async fn count_unknown(on: &impl ConnectionTrait) -> Result<i64, Error> {
    #[derive(FromQueryResult)]
    struct Count {
        count: i64,
    }
    Ok(one::<Count>(on, "SELECT count(*) AS count FROM provider_calls WHERE is_unknown = $1", [true.into()]).await?.map_or(0, |found| found.count))
}
