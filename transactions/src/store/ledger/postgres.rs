//! A batch on PostgreSQL: statements go out together and are answered together (pipelining), arrays are parameters, and what is only
//! ever appended goes by binary COPY. The driver is another one than elsewhere; docs/adr/0003 says why, with figures.

use std::collections::HashMap;

use bytes::Bytes;
use deadpool_postgres::{Client as Pooled, Object};
use futures_util::SinkExt as _;
use lastro_database::{Error, Kind, PipelinedPool};
use lastro_events::Event;
use tokio_postgres::Row;
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

/// Two rounds, each sent at once. The first error in this order is the cause; those after it only say that the transaction has failed.
pub async fn write(tx: &mut Tx, writes: &Writes<'_>) -> Result<Written, Error> {
    let (begun, updated, balances, inserted) = tokio::join!(
        tx.begin_now(),
        update_operations(tx, &writes.updated),
        update_balances(tx, &writes.balances),
        copy_operations(tx, &writes.inserted),
    );
    begun?;
    tx.begun = true;
    updated?;
    balances?;
    match inserted {
        Err(error) if error.kind == Kind::Unique => return Ok(Written::KeyExists),
        inserted => inserted?,
    }
    // Only now: the driver loses its place in the protocol when a COPY begins in a transaction that has failed, and with it the connection.
    let (events, postings) = tokio::join!(copy_events(tx, &writes.events), copy_postings(tx, &writes.postings));
    events?;
    postings?;
    Ok(Written::All)
}

/// A key that exists is an error of the whole batch here, and costs nothing as long as none does: no look before each row, as
/// ON CONFLICT takes.
async fn copy_operations(tx: &Tx, operations: &[&Operation]) -> Result<(), Error> {
    const SQL: &str = "COPY operations (id, owner_id, external_id, request_hash, kind, state, reason, currency_code, amount, source_account_id, \
                       destination_account_id, description, metadata, effective_time_us, create_time_us, update_time_us, version, hash, attempts) \
                       FROM STDIN (FORMAT binary)";
    if operations.is_empty() {
        return Ok(());
    }
    let mut rows = CopyRows::new(19, operations.len() * 400);
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
        rows.field(one.description.as_bytes());
        rows.field(metadata_to_text(&one.metadata).as_bytes());
        for number in [one.effective_time_us, one.create_time_us, one.update_time_us, one.version] {
            rows.field(&number.to_be_bytes());
        }
        rows.field(&one.hash);
        rows.field(&one.attempts.to_be_bytes());
    }
    rows.send(tx.client()?, SQL).await
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

    async fn send(mut self, client: &Pooled, sql: &str) -> Result<(), Error> {
        self.bytes.extend_from_slice(&(-1_i16).to_be_bytes());
        // Prepared once: a COPY from its text would be parsed, described and closed again, each a round trip that the batch waits for.
        let statement = client.prepare_cached(sql).await?;
        let copy = client.copy_in::<_, Bytes>(&statement).await?;
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
