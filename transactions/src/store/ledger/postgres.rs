//! A batch on PostgreSQL: statements go out together and are answered together (pipelining), arrays are parameters, and what is only
//! ever appended goes by binary COPY. The driver is another one than elsewhere; docs/adr/0003 says why, with figures.

use std::collections::HashMap;

use bytes::Bytes;
use deadpool_postgres::{Client as Pooled, Object};
use futures_util::SinkExt as _;
use lastro_database::{Error, PipelinedPool};
use lastro_events::Event;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::{Claim, Lock, Writes, Written};
use crate::domain::ledger::{Balance, Posting};
use crate::store::operations::{self, Operation, metadata_to_text};

/// A transaction. Dropped before its end, it takes its connection along, and the server undoes it.
pub struct Tx {
    client: Option<Pooled>,
    begun: bool,
}

impl Drop for Tx {
    fn drop(&mut self) {
        drop(self.client.take().map(Object::take));
    }
}

impl Tx {
    pub async fn begin(pool: &PipelinedPool) -> Result<Self, Error> {
        // BEGIN goes out with the first statement.
        Ok(Self { client: Some(pool.get().await?), begun: false })
    }

    pub async fn commit(self) -> Result<(), Error> {
        self.end("COMMIT").await
    }

    pub async fn rollback(self) -> Result<(), Error> {
        self.end("ROLLBACK").await
    }

    async fn end(mut self, how: &str) -> Result<(), Error> {
        if self.begun {
            self.client()?.batch_execute(how).await?;
        }
        // Ended well: the connection may serve the next one.
        drop(self.client.take());
        Ok(())
    }

    fn client(&self) -> Result<&Pooled, Error> {
        self.client.as_ref().ok_or_else(|| Error::corrupt("a transaction that has ended"))
    }

    /// Sends BEGIN, unless it was sent. To be polled together with the first statement, and before it.
    async fn begin_now(&self) -> Result<(), Error> {
        if self.begun { Ok(()) } else { Ok(self.client()?.batch_execute("BEGIN").await?) }
    }

    async fn execute(&self, sql: &str, parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)]) -> Result<u64, Error> {
        let client = self.client()?;
        let statement = client.prepare_cached(sql).await?;
        Ok(client.execute(&statement, parameters).await?)
    }

    /// As the first statement of a transaction, in one round trip with BEGIN.
    async fn first_query(&mut self, sql: &str, parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        let client = self.client()?;
        let statement = client.prepare_cached(sql).await?;
        let (begun, rows) = tokio::join!(self.begin_now(), client.query(&statement, parameters));
        begun?;
        self.begun = true;
        Ok(rows?)
    }

    pub async fn dead_letter(&self, operation_id: Uuid, error: &str, attempts: i64, now_us: i64) -> Result<(), Error> {
        self.execute(super::DEAD_LETTER, &[&operation_id, &error, &attempts, &now_us]).await.map(|_| ())
    }
}

pub async fn lock(tx: &mut Tx, accounts: &[Uuid], lock: Lock) -> Result<HashMap<Uuid, Balance>, Error> {
    const SKIP: &str = "SELECT account_id, posted, held, version, system, closed FROM balances WHERE account_id = ANY($1) ORDER BY account_id FOR UPDATE SKIP LOCKED";
    const WAIT: &str =
        "SELECT account_id, posted, held, version, system, closed FROM balances WHERE account_id = ANY($1) ORDER BY account_id FOR UPDATE";
    let sql = match lock {
        Lock::Skip => SKIP,
        Lock::Wait => WAIT,
    };
    let rows = tx.first_query(sql, &[&accounts]).await?;
    let read = |row: Row| -> Result<(Uuid, Balance), tokio_postgres::Error> {
        let (posted, held, version) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        Ok((row.try_get(0)?, Balance { posted, held, version, system: row.try_get(4)?, closed: row.try_get(5)? }))
    };
    Ok(rows.into_iter().map(read).collect::<Result<_, _>>()?)
}

/// Everything goes out at once. The first error in this order is the cause; those after it only say that the transaction has failed.
pub async fn write(tx: &mut Tx, writes: &Writes<'_>) -> Result<Written, Error> {
    let (begun, inserted, updated, events, postings, balances) = tokio::join!(
        tx.begin_now(),
        insert_operations(tx, &writes.inserted),
        update_operations(tx, &writes.updated),
        copy_events(tx, &writes.events),
        copy_postings(tx, &writes.postings),
        update_balances(tx, &writes.balances),
    );
    begun?;
    tx.begun = true;
    let inserted = inserted?;
    if inserted < writes.inserted.len() as u64 {
        return Ok(Written::KeyExists);
    }
    updated?;
    events?;
    postings?;
    balances?;
    Ok(Written::All)
}

async fn insert_operations(tx: &Tx, operations: &[&Operation]) -> Result<u64, Error> {
    const SQL: &str = "INSERT INTO operations (id, owner_id, external_id, request_hash, kind, state, reason, currency_code, amount, source_account_id, \
         destination_account_id, description, metadata, effective_time_us, create_time_us, update_time_us, version, hash, attempts) \
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::bytea[], $5::bigint[], $6::bigint[], $7::text[], $8::text[], $9::bigint[], $10::uuid[], \
         $11::uuid[], $12::text[], $13::text[], $14::bigint[], $15::bigint[], $16::bigint[], $17::bigint[], $18::bytea[], $19::bigint[]) \
         ON CONFLICT (owner_id, external_id) DO NOTHING";
    if operations.is_empty() {
        return Ok(0);
    }
    tx.execute(
        SQL,
        &[
            &column(operations, |one| one.id),
            &column(operations, |one| one.owner_id),
            &column(operations, |one| one.external_id.as_str()),
            &column(operations, |one| one.request_hash.as_slice()),
            &column(operations, |one| one.kind as i64),
            &column(operations, |one| one.state as i64),
            &column(operations, |one| one.reason.as_str()),
            &column(operations, |one| one.currency.code()),
            &column(operations, |one| one.amount),
            &column(operations, |one| one.source),
            &column(operations, |one| one.destination),
            &column(operations, |one| one.description.as_str()),
            &column(operations, |one| metadata_to_text(&one.metadata)),
            &column(operations, |one| one.effective_time_us),
            &column(operations, |one| one.create_time_us),
            &column(operations, |one| one.update_time_us),
            &column(operations, |one| one.version),
            &column(operations, |one| one.hash.as_slice()),
            &column(operations, |one| one.attempts),
        ],
    )
    .await
}

async fn update_operations(tx: &Tx, operations: &[&Operation]) -> Result<(), Error> {
    const SQL: &str = "UPDATE operations o SET state = u.state, reason = u.reason, update_time_us = u.update_time_us, version = u.version, hash = u.hash, \
         attempts = u.attempts FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::bytea[], $7::bigint[]) \
         AS u (id, state, reason, update_time_us, version, hash, attempts) WHERE o.id = u.id";
    if operations.is_empty() {
        return Ok(());
    }
    tx.execute(
        SQL,
        &[
            &column(operations, |one| one.id),
            &column(operations, |one| one.state as i64),
            &column(operations, |one| one.reason.as_str()),
            &column(operations, |one| one.update_time_us),
            &column(operations, |one| one.version),
            &column(operations, |one| one.hash.as_slice()),
            &column(operations, |one| one.attempts),
        ],
    )
    .await
    .map(|_| ())
}

async fn update_balances(tx: &Tx, balances: &[(Uuid, Balance)]) -> Result<(), Error> {
    const SQL: &str = "UPDATE balances b SET posted = u.posted, held = u.held, version = u.version \
         FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[]) AS u (account_id, posted, held, version) WHERE b.account_id = u.account_id";
    if balances.is_empty() {
        return Ok(());
    }
    tx.execute(
        SQL,
        &[
            &column(balances, |(id, _)| *id),
            &column(balances, |(_, balance)| balance.posted),
            &column(balances, |(_, balance)| balance.held),
            &column(balances, |(_, balance)| balance.version),
        ],
    )
    .await
    .map(|_| ())
}

fn column<'a, T, V>(rows: &'a [T], value: impl Fn(&'a T) -> V) -> Vec<V> {
    rows.iter().map(value).collect()
}

async fn copy_events(tx: &Tx, events: &[Event]) -> Result<(), Error> {
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
    rows.send(tx.client()?, sql).await
}

async fn copy_postings(tx: &Tx, postings: &[(Uuid, Posting)]) -> Result<(), Error> {
    if postings.is_empty() {
        return Ok(());
    }
    let mut rows = CopyRows::new(5, postings.len() * 80);
    for (operation_id, posting) in postings {
        rows.start();
        rows.field(posting.account_id.as_bytes());
        rows.field(&posting.account_version.to_be_bytes());
        rows.field(operation_id.as_bytes());
        rows.field(&posting.amount.to_be_bytes());
        rows.field(&posting.balance.to_be_bytes());
    }
    rows.send(tx.client()?, "COPY postings (account_id, account_version, operation_id, amount, balance) FROM STDIN (FORMAT binary)").await
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

    async fn send(mut self, client: &Client, sql: &str) -> Result<(), Error> {
        self.bytes.extend_from_slice(&(-1_i16).to_be_bytes());
        let copy = client.copy_in::<_, Bytes>(sql).await?;
        let mut copy = std::pin::pin!(copy);
        copy.send(self.bytes.into()).await?;
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
    let rows = tx.first_query(&sql, &[&claim.after, &claim.failed_before_us]).await?;
    rows.iter().map(|row| operations::Row::from_postgres(row)?.read()).collect()
}
