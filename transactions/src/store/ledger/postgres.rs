//! A batch on PostgreSQL: arrays as parameters, binary COPY for what is only ever appended.

use std::collections::HashMap;

use lastro_database::Error;
use lastro_events::Event;
use sqlx::postgres::PgPool;
use sqlx::{Postgres, Row as _, Transaction};
use uuid::Uuid;

use super::{Claim, Lock, Writes, Written};
use crate::domain::ledger::{Balance, Posting};
use crate::store::operations::{self, Operation, metadata_to_text};

type Tx = Transaction<'static, Postgres>;

#[allow(clippy::disallowed_methods, reason = "COPY needs the driver's own transaction")]
pub async fn begin(pool: &PgPool) -> Result<Tx, Error> {
    Ok(pool.begin().await?)
}

pub async fn lock(tx: &mut Tx, accounts: &[Uuid], lock: Lock) -> Result<HashMap<Uuid, Balance>, Error> {
    const SKIP: &str = "SELECT account_id, posted, held, version, system, closed FROM balances WHERE account_id = ANY($1) ORDER BY account_id FOR UPDATE SKIP LOCKED";
    const WAIT: &str =
        "SELECT account_id, posted, held, version, system, closed FROM balances WHERE account_id = ANY($1) ORDER BY account_id FOR UPDATE";
    let sql = match lock {
        Lock::Skip => SKIP,
        Lock::Wait => WAIT,
    };
    let rows = sqlx::query(sql).bind(accounts).fetch_all(&mut **tx).await?;
    let read = |row: sqlx::postgres::PgRow| -> Result<(Uuid, Balance), sqlx::Error> {
        Ok((
            row.try_get(0)?,
            Balance { posted: row.try_get(1)?, held: row.try_get(2)?, version: row.try_get(3)?, system: row.try_get(4)?, closed: row.try_get(5)? },
        ))
    };
    Ok(rows.into_iter().map(read).collect::<Result<_, _>>()?)
}

pub async fn write(tx: &mut Tx, writes: &Writes<'_>) -> Result<Written, Error> {
    if !writes.inserted.is_empty() && insert_operations(tx, &writes.inserted).await? < writes.inserted.len() as u64 {
        return Ok(Written::KeyExists);
    }
    if !writes.updated.is_empty() {
        update_operations(tx, &writes.updated).await?;
    }
    copy_events(tx, &writes.events).await?;
    if !writes.postings.is_empty() {
        copy_postings(tx, &writes.postings).await?;
        update_balances(tx, &writes.balances).await?;
    }
    Ok(Written::All)
}

async fn insert_operations(tx: &mut Tx, operations: &[&Operation]) -> Result<u64, Error> {
    const SQL: &str = "INSERT INTO operations (id, owner_id, external_id, request_hash, kind, state, reason, currency_code, amount, source_account_id, \
         destination_account_id, description, metadata, effective_time_us, create_time_us, update_time_us, version, hash, attempts) \
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::bytea[], $5::bigint[], $6::bigint[], $7::text[], $8::text[], $9::bigint[], $10::uuid[], \
         $11::uuid[], $12::text[], $13::text[], $14::bigint[], $15::bigint[], $16::bigint[], $17::bigint[], $18::bytea[], $19::bigint[]) \
         ON CONFLICT (owner_id, external_id) DO NOTHING";
    let inserted = sqlx::query(SQL)
        .bind(column(operations, |one| one.id))
        .bind(column(operations, |one| one.owner_id))
        .bind(column(operations, |one| one.external_id.as_str()))
        .bind(column(operations, |one| one.request_hash.as_slice()))
        .bind(column(operations, |one| one.kind as i64))
        .bind(column(operations, |one| one.state as i64))
        .bind(column(operations, |one| one.reason.as_str()))
        .bind(column(operations, |one| one.currency.code()))
        .bind(column(operations, |one| one.amount))
        .bind(column(operations, |one| one.source))
        .bind(column(operations, |one| one.destination))
        .bind(column(operations, |one| one.description.as_str()))
        .bind(column(operations, |one| metadata_to_text(&one.metadata)))
        .bind(column(operations, |one| one.effective_time_us))
        .bind(column(operations, |one| one.create_time_us))
        .bind(column(operations, |one| one.update_time_us))
        .bind(column(operations, |one| one.version))
        .bind(column(operations, |one| one.hash.as_slice()))
        .bind(column(operations, |one| one.attempts))
        .execute(&mut **tx)
        .await?;
    Ok(inserted.rows_affected())
}

async fn update_operations(tx: &mut Tx, operations: &[&Operation]) -> Result<(), Error> {
    const SQL: &str = "UPDATE operations o SET state = u.state, reason = u.reason, update_time_us = u.update_time_us, version = u.version, hash = u.hash, \
         attempts = u.attempts FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::bytea[], $7::bigint[]) \
         AS u (id, state, reason, update_time_us, version, hash, attempts) WHERE o.id = u.id";
    sqlx::query(SQL)
        .bind(column(operations, |one| one.id))
        .bind(column(operations, |one| one.state as i64))
        .bind(column(operations, |one| one.reason.as_str()))
        .bind(column(operations, |one| one.update_time_us))
        .bind(column(operations, |one| one.version))
        .bind(column(operations, |one| one.hash.as_slice()))
        .bind(column(operations, |one| one.attempts))
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn update_balances(tx: &mut Tx, balances: &[(Uuid, Balance)]) -> Result<(), Error> {
    const SQL: &str = "UPDATE balances b SET posted = u.posted, held = u.held, version = u.version \
         FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[]) AS u (account_id, posted, held, version) WHERE b.account_id = u.account_id";
    sqlx::query(SQL)
        .bind(column(balances, |(id, _)| *id))
        .bind(column(balances, |(_, balance)| balance.posted))
        .bind(column(balances, |(_, balance)| balance.held))
        .bind(column(balances, |(_, balance)| balance.version))
        .execute(&mut **tx)
        .await?;
    Ok(())
}

fn column<'a, T, V>(rows: &'a [T], value: impl Fn(&'a T) -> V) -> Vec<V> {
    rows.iter().map(value).collect()
}

async fn copy_events(tx: &mut Tx, events: &[Event]) -> Result<(), Error> {
    let mut rows = CopyRows::new(10, events.len() * 400);
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
    let sql = "COPY operation_events (id, aggregate_id, version, kind, payload, digest, correlation_id, causation_id, recorded_us, hash) FROM STDIN (FORMAT binary)";
    rows.send(tx, sql).await
}

async fn copy_postings(tx: &mut Tx, postings: &[(Uuid, Posting)]) -> Result<(), Error> {
    let mut rows = CopyRows::new(5, postings.len() * 80);
    for (operation_id, posting) in postings {
        rows.start();
        rows.field(posting.account_id.as_bytes());
        rows.field(&posting.account_version.to_be_bytes());
        rows.field(operation_id.as_bytes());
        rows.field(&posting.amount.to_be_bytes());
        rows.field(&posting.balance.to_be_bytes());
    }
    rows.send(tx, "COPY postings (account_id, account_version, operation_id, amount, balance) FROM STDIN (FORMAT binary)").await
}

/// Rows in the binary format of COPY: <https://www.postgresql.org/docs/15/sql-copy.html>, "Binary Format".
struct CopyRows {
    bytes: Vec<u8>,
    columns: i16,
}

impl CopyRows {
    fn new(columns: i16, size: usize) -> Self {
        let mut bytes = Vec::with_capacity(size + 32);
        bytes.extend_from_slice(b"PGCOPY\n\xff\r\n\0");
        // No flags, no header extension.
        bytes.extend_from_slice(&[0; 8]);
        Self { bytes, columns }
    }

    fn start(&mut self) {
        self.bytes.extend_from_slice(&self.columns.to_be_bytes());
    }

    fn field(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(&(value.len() as i32).to_be_bytes());
        self.bytes.extend_from_slice(value);
    }

    fn optional(&mut self, value: Option<&[u8]>) {
        match value {
            Some(value) => self.field(value),
            None => self.bytes.extend_from_slice(&(-1_i32).to_be_bytes()),
        }
    }

    async fn send(mut self, tx: &mut Tx, sql: &str) -> Result<(), Error> {
        self.bytes.extend_from_slice(&(-1_i16).to_be_bytes());
        let mut copy = tx.copy_in_raw(sql).await?;
        copy.send(self.bytes).await?;
        copy.finish().await?;
        Ok(())
    }
}

pub async fn claim(tx: &mut Tx, claim: Claim) -> Result<Vec<Operation>, Error> {
    let sql = format!(
        "SELECT {} FROM operations o WHERE state IN (1, 2) AND id > $1 AND (attempts = 0 OR update_time_us < $2) \
         AND NOT EXISTS (SELECT 1 FROM dead_letters d WHERE d.operation_id = o.id) ORDER BY id LIMIT {} FOR UPDATE SKIP LOCKED",
        operations::COLUMNS,
        claim.limit
    );
    let rows: Vec<operations::Row> =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(claim.after).bind(claim.failed_before_us).fetch_all(&mut **tx).await?;
    rows.into_iter().map(operations::Row::read).collect()
}
