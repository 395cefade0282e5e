//! A batch on PostgreSQL, in two round trips: BEGIN with the locks, then everything that it writes with its COMMIT (docs/adr/0009). Arrays
//! are parameters, and what is only ever appended goes by binary COPY.

use std::sync::LazyLock;

use lastro_database::Error;
use lastro_database::pipelined::{Pipeline, Pool, Pooled, Row, Statement};
use lastro_events::Event;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    BalanceChange, Claim, ClaimedOperation, ClaimedOperations, ClaimedRow, DEAD_LETTER, Lock, OperationChange, Writes, select_claimed, select_open,
};
use crate::domain::ledger::{Balance, Balances, Posting};
use crate::store::operations::{self, Operation, metadata_to_text};

const SKIP_LOCKED: &str =
    "SELECT account_id, posted, held, version, system, closed FROM balances WHERE account_id = ANY($1) ORDER BY account_id FOR UPDATE SKIP LOCKED";
const WAIT_LOCKED: &str =
    "SELECT account_id, posted, held, version, system, closed FROM balances WHERE account_id = ANY($1) ORDER BY account_id FOR UPDATE";
static COPY_OPERATIONS: LazyLock<String> = LazyLock::new(|| format!("COPY operations ({}) FROM STDIN (FORMAT binary)", *operations::COLUMNS));
/// What is changed is what was locked, as it was then: else the server raises an error, which names both numbers, and skips the COMMIT.
const UPDATE_OPERATIONS: &str = "WITH changed AS (UPDATE operations o SET state = u.state, reason = u.reason, update_time_us = u.update_time_us, \
                                 version = u.version, hash = u.hash, attempts = u.attempts \
                                 FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::bytea[], $7::bigint[], \
                                 $8::bigint[], $9::bigint[]) \
                                 AS u (id, state, reason, update_time_us, version, hash, attempts, from_version, from_state) \
                                 WHERE o.id = u.id AND o.version = u.from_version AND o.state = u.from_state RETURNING 1) \
                                 SELECT CASE WHEN count(*) = cardinality($1) THEN 1 \
                                 ELSE (count(*) || ' operations were changed, and meant were ' || cardinality($1))::int END FROM changed";
const COPY_EVENTS: &str = "COPY operation_events (id, aggregate_id, version, kind, payload, digest, correlation_id, causation_id, recorded_us, hash) \
                           FROM STDIN (FORMAT binary)";
const COPY_POSTINGS: &str = "COPY postings (account_id, account_version, operation_id, amount, balance) FROM STDIN (FORMAT binary)";
/// As UPDATE_OPERATIONS.
const UPDATE_BALANCES: &str = "WITH changed AS (UPDATE balances b SET posted = u.posted, held = u.held, version = u.version \
                               FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[]) \
                               AS u (account_id, posted, held, version, from_version) \
                               WHERE b.account_id = u.account_id AND b.version = u.from_version RETURNING 1) \
                               SELECT CASE WHEN count(*) = cardinality($1) THEN 1 \
                               ELSE (count(*) || ' balances were changed, and meant were ' || cardinality($1))::int END FROM changed";

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
        let (posted, held, version) = (row.get(1)?, row.get(2)?, row.get(3)?);
        Ok((row.get(0)?, Balance { posted, held, version, system: row.get(4)?, closed: row.get(5)? }))
    };
    rows.into_iter().map(read).collect()
}

pub async fn claim(tx: &mut Tx, claim: Claim) -> Result<ClaimedOperations, Error> {
    let sql = select_open(claim, " FOR UPDATE OF o SKIP LOCKED");
    let rows = tx.run(&sql, &[&claim.after, &claim.failed_before_us, &claim.failed_after_us()]).await?;
    Ok(ClaimedOperations::of(rows.iter().map(claimed_row).collect::<Result<_, _>>()?))
}

pub async fn operation(tx: &mut Tx, id: Uuid) -> Result<Option<ClaimedOperation>, Error> {
    let rows = tx.run(&select_claimed("WHERE o.id = $1 FOR UPDATE OF o"), &[&id]).await?;
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
    let [copy_events, copy_postings] = [tx.prepare(COPY_EVENTS).await?, tx.prepare(COPY_POSTINGS).await?];
    let [update_balances, dead_letter] = [tx.prepare(UPDATE_BALANCES).await?, tx.prepare(DEAD_LETTER).await?];
    let commit = tx.prepare("COMMIT").await?;

    let begun = std::mem::replace(&mut tx.begun, true);
    let mut pipeline = tx.connection()?.pipeline();
    if !begun {
        pipeline.execute(&begin, &[]);
    }
    if !writes.inserted.is_empty() {
        write_operations(&mut pipeline, &copy_operations, &writes.inserted);
    }
    if !writes.updated.is_empty() {
        write_updated(&mut pipeline, &update_operations, &writes.updated);
    }
    if !writes.balances.is_empty() {
        write_balances(&mut pipeline, &update_balances, &writes.balances);
    }
    if !writes.events.is_empty() {
        write_events(&mut pipeline, &copy_events, &writes.events);
    }
    if !writes.postings.is_empty() {
        write_postings(&mut pipeline, &copy_postings, &writes.postings);
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

fn write_operations(pipeline: &mut Pipeline<'_>, copy: &Statement, operations: &[&Operation]) {
    pipeline.copy(copy, operations::COLUMN_NAMES.len() as i16, |rows| {
        for one in operations {
            rows.start();
            rows.field(one.id.as_bytes());
            rows.field(one.owner_id.as_bytes());
            rows.field(one.external_id.as_bytes());
            rows.field(&one.request_hash);
            rows.field(&(one.kind as i64).to_be_bytes());
            rows.field(&(one.state as i64).to_be_bytes());
            rows.field(one.reason.as_bytes());
            rows.field(one.currency.code().as_bytes());
            rows.field(&one.amount.to_be_bytes());
            rows.optional(one.source.as_ref().map(|id| id.as_bytes().as_slice()));
            rows.optional(one.destination.as_ref().map(|id| id.as_bytes().as_slice()));
            rows.optional(one.source_owner.as_ref().map(|id| id.as_bytes().as_slice()));
            rows.optional(one.destination_owner.as_ref().map(|id| id.as_bytes().as_slice()));
            rows.field(one.description.as_bytes());
            rows.field(metadata_to_text(&one.metadata).as_bytes());
            for number in [one.effective_time_us, one.create_time_us, one.update_time_us, one.version] {
                rows.field(&number.to_be_bytes());
            }
            rows.field(&one.hash);
            rows.field(&one.attempts.to_be_bytes());
        }
    });
}

fn write_updated(pipeline: &mut Pipeline<'_>, update: &Statement, changes: &[OperationChange<'_>]) {
    pipeline.check(
        update,
        &[
            &column(changes, |one| one.operation.id),
            &column(changes, |one| one.operation.state as i64),
            &column(changes, |one| one.operation.reason.as_str()),
            &column(changes, |one| one.operation.update_time_us),
            &column(changes, |one| one.operation.version),
            &column(changes, |one| one.operation.hash.as_slice()),
            &column(changes, |one| one.operation.attempts),
            &column(changes, |one| one.from_version),
            &column(changes, |one| one.from_state as i64),
        ],
    );
}

fn write_balances(pipeline: &mut Pipeline<'_>, update: &Statement, changes: &[BalanceChange]) {
    pipeline.check(
        update,
        &[
            &column(changes, |one| one.account_id),
            &column(changes, |one| one.after.posted),
            &column(changes, |one| one.after.held),
            &column(changes, |one| one.after.version),
            &column(changes, |one| one.from_version),
        ],
    );
}

fn column<'a, T, V>(rows: &'a [T], value: impl Fn(&'a T) -> V) -> Vec<V> {
    rows.iter().map(value).collect()
}

fn write_events(pipeline: &mut Pipeline<'_>, copy: &Statement, events: &[Event]) {
    pipeline.copy(copy, 10, |rows| {
        for event in events {
            rows.start();
            rows.field(event.id.as_bytes());
            rows.field(event.aggregate_id.as_bytes());
            rows.field(&event.version.to_be_bytes());
            rows.field(event.kind.as_bytes());
            rows.field(&event.payload);
            rows.field(&event.digest);
            rows.field(event.correlation_id.as_bytes());
            rows.optional(event.causation_id.as_ref().map(|id| id.as_bytes().as_slice()));
            rows.field(&event.recorded_us.to_be_bytes());
            rows.field(&event.hash);
        }
    });
}

fn write_postings(pipeline: &mut Pipeline<'_>, copy: &Statement, postings: &[(Uuid, Posting)]) {
    pipeline.copy(copy, 5, |rows| {
        for (operation_id, posting) in postings {
            rows.start();
            rows.field(posting.account_id.as_bytes());
            rows.field(&posting.account_version.to_be_bytes());
            rows.field(operation_id.as_bytes());
            rows.field(&posting.amount.to_be_bytes());
            rows.field(&posting.balance.to_be_bytes());
        }
    });
}
