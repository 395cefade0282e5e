//! A batch on PostgreSQL: arrays as parameters, one statement a table. Not COPY, although that costs the server less: the driver leaves
//! Nagle's algorithm on, and each COPY then waits 40 ms for an acknowledgement (docs/adr/0003).

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

#[allow(clippy::disallowed_methods, reason = "arrays as parameters need the driver's own transaction")]
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
    insert_events(tx, &writes.events).await?;
    if !writes.postings.is_empty() {
        insert_postings(tx, &writes.postings).await?;
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

async fn insert_events(tx: &mut Tx, events: &[Event]) -> Result<(), Error> {
    const SQL: &str = "INSERT INTO operation_events (id, aggregate_id, version, kind, payload, digest, correlation_id, causation_id, recorded_us, hash) \
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::bytea[], $6::bytea[], $7::text[], $8::uuid[], $9::bigint[], $10::bytea[])";
    sqlx::query(SQL)
        .bind(column(events, |one| one.id))
        .bind(column(events, |one| one.aggregate_id))
        .bind(column(events, |one| one.version))
        .bind(column(events, |one| one.kind.as_str()))
        .bind(column(events, |one| one.payload.as_slice()))
        .bind(column(events, |one| one.digest.as_slice()))
        .bind(column(events, |one| one.correlation_id.as_str()))
        .bind(column(events, |one| one.causation_id))
        .bind(column(events, |one| one.recorded_us))
        .bind(column(events, |one| one.hash.as_slice()))
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn insert_postings(tx: &mut Tx, postings: &[(Uuid, Posting)]) -> Result<(), Error> {
    const SQL: &str = "INSERT INTO postings (account_id, account_version, operation_id, amount, balance) \
         SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::bigint[], $5::bigint[])";
    sqlx::query(SQL)
        .bind(column(postings, |(_, posting)| posting.account_id))
        .bind(column(postings, |(_, posting)| posting.account_version))
        .bind(column(postings, |(operation_id, _)| *operation_id))
        .bind(column(postings, |(_, posting)| posting.amount))
        .bind(column(postings, |(_, posting)| posting.balance))
        .execute(&mut **tx)
        .await?;
    Ok(())
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
