//! A batch on PostgreSQL, in two round trips: BEGIN with the locks, then everything that it writes with its COMMIT (docs/adr/0009). Arrays
//! are parameters, and what is only ever appended goes by binary COPY.

use std::sync::LazyLock;

use lastro_database::Error;
use lastro_database::pipelined::{Column, Field, Pipeline, Pool, Pooled, Row, Statement, Written, copy_statement};
use lastro_events::Event;
use lastro_money::Minor;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    Among, BalanceChange, Claim, ClaimedOperation, ClaimedOperations, ClaimedRow, DEAD_LETTER, ExpiredHolds, Lock, OperationChange, ReversalChange,
    Writes, select_claimed, select_open,
};
use crate::domain::ledger::{Balance, Balances, Posting};
use crate::domain::operation::Operation;
use crate::domain::payment::CardToken;
use crate::store::operations::{self, PartyRow, balances_after, captured, legs_bytes, metadata_to_text, party_rows, rejected_leg, row_amount, sides};
use crate::store::provider_events::{self, WaitingReport};
use crate::store::sagas::{self, Saga, SagaEpoch};
use crate::store::{legs, provider_calls};

const SKIP_LOCKED: &str = "SELECT account_id, posted, held, version, system, closed, frozen, credit_limit, recorded_us FROM balances \
                           WHERE account_id = ANY($1) ORDER BY account_id FOR UPDATE SKIP LOCKED";
const WAIT_LOCKED: &str = "SELECT account_id, posted, held, version, system, closed, frozen, credit_limit, recorded_us FROM balances \
                           WHERE account_id = ANY($1) ORDER BY account_id FOR UPDATE";
static COPY_OPERATIONS: LazyLock<String> = LazyLock::new(|| copy_statement("operations", OPERATION));
static COPY_EVENTS: LazyLock<String> = LazyLock::new(|| copy_statement("operation_events", EVENT));
static COPY_POSTINGS: LazyLock<String> = LazyLock::new(|| copy_statement("postings", POSTING));
static COPY_PARTIES: LazyLock<String> = LazyLock::new(|| copy_statement("operation_parties", PARTY));
static INSERT_CALL: LazyLock<String> = LazyLock::new(|| provider_calls::insert(true));

const OPERATION: &[Column<Operation>] = &[
    Column { name: "id", write: |one, field| field.bytes(one.id.as_bytes()) },
    Column { name: "owner_id", write: |one, field| field.bytes(one.owner_id.as_bytes()) },
    Column { name: "external_id", write: |one, field| field.bytes(one.external_id.as_bytes()) },
    Column { name: "request_hash", write: |one, field| field.bytes(&one.request_hash) },
    Column { name: "kind", write: |one, field| field.bigint(operations::type_number(one.kind)) },
    Column { name: "state", write: |one, field| field.bigint(operations::state_number(one.state)) },
    Column { name: "reason", write: |one, field| field.bytes(operations::reason_text(one).as_bytes()) },
    // What moves nothing is not stored: the table refuses NULL.
    Column {
        name: "currency_code",
        write: |one, field| field.optional(row_amount(one).map(|amount| amount.currency()).as_ref().map(|currency| currency.code().as_bytes())),
    },
    Column { name: "amount", write: |one, field| optional_bigint(field, row_amount(one).map(|amount| amount.minor().get())) },
    Column { name: "source_account_id", write: |one, field| field.optional(bytes_of(sides(one).source.as_ref())) },
    Column { name: "destination_account_id", write: |one, field| field.optional(bytes_of(sides(one).destination.as_ref())) },
    Column { name: "source_owner_id", write: |one, field| field.optional(bytes_of(sides(one).source_owner.as_ref())) },
    Column { name: "destination_owner_id", write: |one, field| field.optional(bytes_of(sides(one).destination_owner.as_ref())) },
    Column { name: "description", write: |one, field| field.bytes(one.description.as_bytes()) },
    Column { name: "metadata", write: |one, field| field.bytes(metadata_to_text(&one.metadata).as_bytes()) },
    Column { name: "effective_time_us", write: |one, field| field.bigint(one.effective_time_us) },
    Column { name: "create_time_us", write: |one, field| field.bigint(one.create_time_us) },
    Column { name: "update_time_us", write: |one, field| field.bigint(one.update_time_us) },
    // What has no event is not stored: the table refuses NULL.
    Column { name: "version", write: |one, field| field.optional(one.head.map(|head| head.version.to_be_bytes()).as_ref().map(<[u8; 8]>::as_slice)) },
    Column { name: "hash", write: |one, field| field.optional(one.head.as_ref().map(|head| head.hash.as_slice())) },
    Column { name: "attempts", write: |one, field| field.bigint(one.attempts) },
    Column { name: "legs", write: |one, field| field.optional(legs_bytes(one).as_deref()) },
    Column { name: "hold_expire_us", write: |one, field| optional_bigint(field, one.hold.map(|hold| hold.expire_time_us)) },
    Column { name: "captured_amount", write: |one, field| optional_bigint(field, captured(one)) },
    Column { name: "rejected_leg", write: |one, field| optional_bigint(field, rejected_leg(one)) },
    Column { name: "original_id", write: |one, field| field.optional(bytes_of(one.original_id.as_ref())) },
    Column { name: "reversal_id", write: |one, field| field.optional(bytes_of(one.reversal_id.as_ref())) },
    Column { name: "balances_after", write: |one, field| field.optional(balances_after(one).as_deref()) },
    Column { name: "external", write: |one, field| field.bytes(&[u8::from(operations::is_external(one))]) },
    Column { name: "refunded", write: |one, field| field.optional(operations::refunded(one).as_deref()) },
];

const EVENT: &[Column<Event>] = &[
    Column { name: "id", write: |event, field| field.bytes(event.id.as_bytes()) },
    Column { name: "aggregate_id", write: |event, field| field.bytes(event.aggregate_id.as_bytes()) },
    Column { name: "version", write: |event, field| field.bigint(event.version) },
    Column { name: "kind", write: |event, field| field.bytes(event.kind.as_bytes()) },
    Column { name: "payload", write: |event, field| field.bytes(&event.payload) },
    Column { name: "digest", write: |event, field| field.bytes(&event.digest) },
    Column { name: "correlation_id", write: |event, field| field.bytes(event.correlation_id.as_bytes()) },
    Column { name: "causation_id", write: |event, field| field.optional(bytes_of(event.causation_id.as_ref())) },
    Column { name: "recorded_us", write: |event, field| field.bigint(event.recorded_us) },
    Column { name: "hash", write: |event, field| field.bytes(&event.hash) },
];

/// With the operation that each belongs to.
const POSTING: &[Column<(Uuid, Posting)>] = &[
    Column { name: "account_id", write: |(_, posting), field| field.bytes(posting.account_id.as_bytes()) },
    Column { name: "account_version", write: |(_, posting), field| field.bigint(posting.account_version) },
    Column { name: "operation_id", write: |(operation_id, _), field| field.bytes(operation_id.as_bytes()) },
    Column { name: "amount", write: |(_, posting), field| field.bigint(posting.amount.get()) },
    Column { name: "balance", write: |(_, posting), field| field.bigint(posting.balance.get()) },
    Column { name: "recorded_us", write: |(_, posting), field| field.bigint(posting.recorded_us) },
];

/// A party of an operation of several legs, and the operation.
const PARTY: &[Column<PartyRow>] = &[
    Column { name: "party_id", write: |one, field| field.bytes(one.party_id.as_bytes()) },
    Column { name: "operation_id", write: |one, field| field.bytes(one.operation_id.as_bytes()) },
    Column { name: "stored_open", write: |one, field| field.bytes(&[u8::from(one.stored_open)]) },
];

fn optional_bigint(field: Field<'_>, value: Option<i64>) -> Written {
    match value {
        Some(value) => field.bigint(value),
        None => field.optional(None),
    }
}

fn bytes_of(id: Option<&Uuid>) -> Option<&[u8]> {
    id.map(|id| id.as_bytes().as_slice())
}

/// What is changed is what was locked, as it was then: else the server raises an error, which names both numbers, and skips the COMMIT.
const UPDATE_OPERATIONS: &str = "WITH changed AS (UPDATE operations o SET state = u.state, reason = u.reason, update_time_us = u.update_time_us, \
                                 version = u.version, hash = u.hash, attempts = u.attempts, rejected_leg = u.rejected_leg, \
                                 captured_amount = u.captured_amount, balances_after = u.balances_after, effective_time_us = u.effective_time_us \
                                 FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::bytea[], $7::bigint[], \
                                 $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bytea[], $13::bigint[]) \
                                 AS u (id, state, reason, update_time_us, version, hash, attempts, from_version, from_state, rejected_leg, \
                                 captured_amount, balances_after, effective_time_us) \
                                 WHERE o.id = u.id AND o.version = u.from_version AND o.state = u.from_state RETURNING 1) \
                                 SELECT CASE WHEN count(*) = cardinality($1) THEN 1 \
                                 ELSE (count(*) || ' operations were changed, and meant were ' || cardinality($1))::int END FROM changed";
/// As UPDATE_OPERATIONS.
const UPDATE_BALANCES: &str = "WITH changed AS (UPDATE balances b SET posted = u.posted, held = u.held, version = u.version, recorded_us = u.recorded_us, \
                               floor = least(-b.credit_limit, u.posted - u.held) \
                               FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[]) \
                               AS u (account_id, posted, held, version, from_version, from_held, recorded_us) \
                               WHERE b.account_id = u.account_id AND b.version = u.from_version AND b.held = u.from_held RETURNING 1) \
                               SELECT CASE WHEN count(*) = cardinality($1) THEN 1 \
                               ELSE (count(*) || ' balances were changed, and meant were ' || cardinality($1))::int END FROM changed";

/// As UPDATE_OPERATIONS.
const UPDATE_REVERSALS: &str = "WITH changed AS (UPDATE operations o SET reversal_id = u.to_id \
                                FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS u (id, from_id, to_id) \
                                WHERE o.id = u.id AND o.reversal_id IS NOT DISTINCT FROM u.from_id RETURNING 1) \
                                SELECT CASE WHEN count(*) = cardinality($1) THEN 1 \
                                ELSE (count(*) || ' originals were changed, and meant were ' || cardinality($1))::int END FROM changed";

/// As UPDATE_OPERATIONS.
const UPDATE_REFUND: &str = "WITH changed AS (UPDATE operations SET refunded = $3 WHERE id = $1 AND refunded IS NOT DISTINCT FROM $2 RETURNING 1) \
                             SELECT CASE WHEN count(*) = 1 THEN 1 ELSE (count(*) || ' payments were changed, and meant was 1')::int END FROM changed";

/// As UPDATE_OPERATIONS.
const UPDATE_REPORT: &str = "WITH changed AS (UPDATE provider_events SET outcome = $2, operation_id = $3 WHERE id = $1 AND outcome = 0 RETURNING 1) \
                             SELECT CASE WHEN count(*) = 1 THEN 1 ELSE (count(*) || ' reports were changed, and meant was 1')::int END FROM changed";

/// A transaction. Dropped before its end, it takes its connection along, and the server undoes it.
pub struct Tx {
    connection: Option<Pooled>,
    begun: bool,
}

impl Drop for Tx {
    fn drop(&mut self) {
        if let Some(mut connection) = self.connection.take()
            && !connection.is_idle()
        {
            drop(Pooled::take(connection));
        }
    }
}

impl Tx {
    /// BEGIN goes out with the first statement.
    pub async fn begin(pool: &Pool) -> Result<Self, Error> {
        Ok(Self { connection: Some(pool.get().await?), begun: false })
    }

    pub async fn rollback(mut self) -> Result<(), Error> {
        if self.begun { self.run("ROLLBACK", &[]).await.map(|_| ()) } else { Ok(()) }
    }

    fn connection(&mut self) -> Result<&mut Pooled, Error> {
        self.connection.as_mut().ok_or_else(|| Error::corrupt("a transaction that has ended"))
    }

    async fn prepare(&mut self, sql: &str) -> Result<Statement, Error> {
        self.connection()?.prepare(sql).await
    }

    /// One statement, with BEGIN before it if it is the first.
    async fn run(&mut self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        let (begin, statement) = (self.prepare("BEGIN").await?, self.prepare(sql).await?);
        let begun = std::mem::replace(&mut self.begun, true);
        let mut pipeline = self.connection()?.pipeline();
        if !begun {
            pipeline.execute(&begin, &[]);
        }
        pipeline.execute(&statement, parameters);
        pipeline.send().await
    }
}

pub async fn lock(tx: &mut Tx, accounts: &[Uuid], lock: Lock) -> Result<Balances, Error> {
    let sql = match lock {
        Lock::Skip => SKIP_LOCKED,
        Lock::Wait => WAIT_LOCKED,
    };
    let rows = tx.run(sql, &[&accounts]).await?;
    let read = |row: Row| {
        let balance = Balance {
            posted: Minor::new(row.get(1)?),
            held: Minor::new(row.get(2)?),
            version: row.get(3)?,
            system: row.get(4)?,
            closed: row.get(5)?,
            frozen: row.get(6)?,
            credit_limit: Minor::new(row.get(7)?),
            recorded_us: row.get(8)?,
        };
        Ok((row.get(0)?, balance))
    };
    rows.into_iter().map(read).collect()
}

pub async fn raise_sagas(tx: &mut Tx, asked: &[SagaEpoch], lock: Lock) -> Result<Vec<Saga>, Error> {
    let rows = tx.run(sagas::raise_many(lock), &[&column(asked, |one| one.id), &column(asked, |one| one.epoch)]).await?;
    rows.iter().map(|row| Ok(Saga { id: row.get(0)?, epoch: row.get(1)?, cancelled: row.get(2)? })).collect()
}

pub async fn claim(tx: &mut Tx, claim: Claim) -> Result<ClaimedOperations, Error> {
    let sql = select_open(claim, " FOR UPDATE OF o SKIP LOCKED");
    let rows = tx.run(&sql, &[&claim.after, &claim.failed_before_us, &claim.failed_after_us()]).await?;
    Ok(ClaimedOperations::of(rows.iter().map(claimed_row).collect::<Result<_, _>>()?))
}

pub async fn lock_operations(tx: &mut Tx, ids: &[Uuid], lock: Lock) -> Result<Vec<ClaimedOperation>, Error> {
    let skip = match lock {
        Lock::Skip => " SKIP LOCKED",
        Lock::Wait => "",
    };
    let sql = select_claimed(&format!("WHERE o.id = ANY($1) ORDER BY o.id FOR UPDATE OF o{skip}"));
    let mut rows = tx.run(&sql, &[&ids]).await?;
    // A row that was changed while it was waited for is read as it is now, but its event as it was: there is none of its version. Now nobody changes it.
    if lock == Lock::Wait {
        rows = tx.run(&sql, &[&ids]).await?;
    }
    rows.iter().map(|row| claimed_row(row)?.read()).collect()
}

pub async fn lock_expired(tx: &mut Tx, which: ExpiredHolds<'_>) -> Result<ClaimedOperations, Error> {
    let sql = select_claimed(&format!("{} FOR UPDATE OF o SKIP LOCKED", condition(which)));
    let rows = run_expired(tx, &sql, which).await?;
    Ok(ClaimedOperations::of(rows.iter().map(claimed_row).collect::<Result<_, _>>()?))
}

pub async fn any_expired(tx: &mut Tx, which: ExpiredHolds<'_>) -> Result<bool, Error> {
    let sql = format!("SELECT o.id FROM operations o {}", condition(which));
    Ok(!run_expired(tx, &sql, which).await?.is_empty())
}

fn condition(which: ExpiredHolds<'_>) -> String {
    which.condition("= ANY($3)", "= ANY($2)")
}

async fn run_expired(tx: &mut Tx, sql: &str, which: ExpiredHolds<'_>) -> Result<Vec<Row>, Error> {
    let ids = which.ids();
    match which.among {
        Among::All => tx.run(sql, &[&which.now_us, &which.except]).await,
        Among::OnAccounts(_) | Among::These(_) => tx.run(sql, &[&which.now_us, &which.except, &ids]).await,
    }
}

pub async fn waiting_reports(tx: &mut Tx, (provider_id, external_id): (Uuid, &str)) -> Result<Vec<WaitingReport>, Error> {
    let rows = tx.run(provider_events::WAITING, &[&provider_id, &external_id]).await?;
    rows.iter().map(|row| WaitingReport::read(row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)).collect()
}

pub async fn operation(tx: &mut Tx, id: Uuid) -> Result<Option<ClaimedOperation>, Error> {
    let sql = select_claimed("WHERE o.id = $1 FOR UPDATE OF o");
    // As in `lock_operations`.
    tx.run(&sql, &[&id]).await?;
    let rows = tx.run(&sql, &[&id]).await?;
    rows.first().map(|row| claimed_row(row)?.read()).transpose()
}

fn claimed_row(row: &Row) -> Result<ClaimedRow, Error> {
    let after = operations::COLUMN_NAMES.len();
    Ok(ClaimedRow { operation: operations::Row::from_postgres(row)?, correlation_id: row.get(after)?, last_event_id: row.get(after + 1)? })
}

/// All at once. The server skips what follows the first error, COMMIT included; a key that exists is one, and costs nothing as long as
/// none does: no look before each row, as ON CONFLICT takes.
pub async fn commit(mut tx: Tx, writes: &Writes<'_>) -> Result<(), Error> {
    let [begin, copy_operations, update_operations] =
        [tx.prepare("BEGIN").await?, tx.prepare(&COPY_OPERATIONS).await?, tx.prepare(UPDATE_OPERATIONS).await?];
    let [copy_events, copy_postings] = [tx.prepare(&COPY_EVENTS).await?, tx.prepare(&COPY_POSTINGS).await?];
    let [update_balances, dead_letter] = [tx.prepare(UPDATE_BALANCES).await?, tx.prepare(DEAD_LETTER).await?];
    let [copy_parties, update_reversals] = [tx.prepare(&COPY_PARTIES).await?, tx.prepare(UPDATE_REVERSALS).await?];
    let [update_report, update_refund] = [tx.prepare(UPDATE_REPORT).await?, tx.prepare(UPDATE_REFUND).await?];
    let [insert_call, end_call] = [tx.prepare(&INSERT_CALL).await?, tx.prepare(provider_calls::END).await?];
    let give_back_call = tx.prepare(provider_calls::GIVE_BACK).await?;
    let commit = tx.prepare("COMMIT").await?;
    let parties: Vec<PartyRow> = writes.inserted.iter().flat_map(|operation| party_rows(operation)).collect();

    let begun = std::mem::replace(&mut tx.begun, true);
    let mut pipeline = tx.connection()?.pipeline();
    if !begun {
        pipeline.execute(&begin, &[]);
    }
    if !writes.inserted.is_empty() {
        pipeline.copy(&copy_operations, OPERATION, writes.inserted.iter().copied());
    }
    if !writes.updated.is_empty() {
        write_updated(&mut pipeline, &update_operations, &writes.updated);
    }
    if !writes.balances.is_empty() {
        write_balances(&mut pipeline, &update_balances, &writes.balances);
    }
    if !writes.events.is_empty() {
        pipeline.copy(&copy_events, EVENT, &writes.events);
    }
    if !writes.postings.is_empty() {
        pipeline.copy(&copy_postings, POSTING, &writes.postings);
    }
    if !parties.is_empty() {
        pipeline.copy(&copy_parties, PARTY, &parties);
    }
    if !writes.reversals.is_empty() {
        write_reversals(&mut pipeline, &update_reversals, &writes.reversals);
    }
    for one in &writes.refunds {
        let [from, to] = [&one.from, &one.to].map(|refunded| refunded.as_deref().map(legs::minors_to_bytes));
        pipeline.check(&update_refund, &[&one.payment_id, &from, &to]);
    }
    for one in &writes.calls {
        let kind = provider_calls::kind_number(one.kind);
        pipeline.execute(
            &insert_call,
            &[
                &one.operation_id,
                &kind,
                &one.key,
                &&*one.provider,
                &one.owner_id,
                &one.card_token.as_ref().map(CardToken::reveal),
                &one.correlation_id,
            ],
        );
    }
    for (operation_id, kind, end) in &writes.ended_calls {
        pipeline.execute(&end_call, &[operation_id, &provider_calls::kind_number(*kind), &provider_calls::end_number(*end)]);
    }
    for (operation_id, key) in &writes.give_back_calls {
        pipeline.execute(&give_back_call, &[operation_id, key]);
    }
    for one in &writes.reports {
        pipeline.check(&update_report, &[&one.event_id, &provider_events::outcome_number(one.outcome), &one.operation_id]);
    }
    for one in &writes.dead_letters {
        pipeline.execute(&dead_letter, &[&one.operation_id, &one.error, &one.attempts, &one.create_time_us]);
    }
    pipeline.execute(&commit, &[]);
    let committed = pipeline.send().await;
    if committed.is_err() && tx.connection()?.has_failed() {
        // Keeps the connection. What went wrong is in `committed`.
        let _ = tx.rollback().await;
    }
    committed.map(|_| ())
}

fn write_updated(pipeline: &mut Pipeline<'_>, update: &Statement, changes: &[OperationChange<'_>]) {
    pipeline.check(
        update,
        &[
            &column(changes, |one| one.operation.id),
            &column(changes, |one| operations::state_number(one.operation.state)),
            &column(changes, |one| operations::reason_text(one.operation)),
            &column(changes, |one| one.operation.update_time_us),
            &column(changes, |one| one.operation.head.map(|head| head.version)),
            &column(changes, |one| one.operation.head.as_ref().map(|head| head.hash.as_slice())),
            &column(changes, |one| one.operation.attempts),
            &column(changes, |one| one.from.map(|head| head.version)),
            &column(changes, |one| operations::state_number(one.from_state)),
            &column(changes, |one| rejected_leg(one.operation)),
            &column(changes, |one| captured(one.operation)),
            &column(changes, |one| balances_after(one.operation)),
            &column(changes, |one| one.operation.effective_time_us),
        ],
    );
}

fn write_balances(pipeline: &mut Pipeline<'_>, update: &Statement, changes: &[BalanceChange]) {
    pipeline.check(
        update,
        &[
            &column(changes, |one| one.account_id),
            &column(changes, |one| one.after.posted.get()),
            &column(changes, |one| one.after.held.get()),
            &column(changes, |one| one.after.version),
            &column(changes, |one| one.from_version),
            &column(changes, |one| one.from_held.get()),
            &column(changes, |one| one.after.recorded_us),
        ],
    );
}

fn write_reversals(pipeline: &mut Pipeline<'_>, update: &Statement, changes: &[ReversalChange]) {
    pipeline.check(update, &[&column(changes, |one| one.original_id), &column(changes, |one| one.from), &column(changes, |one| one.to)]);
}

fn column<'a, T, V>(rows: &'a [T], value: impl Fn(&'a T) -> V) -> Vec<V> {
    rows.iter().map(value).collect()
}
