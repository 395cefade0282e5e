//! A batch on SQLite: rows of VALUES, as many to a statement as keep the number of different statements small.

use std::sync::LazyLock;

use lastro_database::Error;
use lastro_money::Minor;
use sqlx::pool::PoolConnection;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqlitePool, SqliteRow};
use sqlx::{FromRow as _, Row as _, Sqlite};
use uuid::Uuid;

use super::{
    Claim, ClaimedOperation, ClaimedOperations, ClaimedRow, ExpiredHolds, OperationChange, ReversalChange, Writes, select_claimed, select_open,
};
use crate::domain::ledger::{Balance, Balances};
use crate::domain::operation::Operation;
use crate::domain::payment::CardToken;
use crate::store::operations::{self, metadata_to_text};
use crate::store::provider_events::{self, WaitingReport};
use crate::store::sagas::{self, Saga, SagaEpoch};
use crate::store::{legs, provider_calls};

type Bound<'q> = Query<'q, Sqlite, SqliteArguments>;

static INSERT_CALL: LazyLock<String> = LazyLock::new(|| provider_calls::insert(false));

/// Rows to a statement: each size is one prepared statement a table.
const CHUNKS: [usize; 3] = [32, 8, 1];

/// A transaction. Whatever does not end it well ends its connection: on a full disk COMMIT fails, and nobody knows where the session stands.
pub struct Tx {
    connection: PoolConnection<Sqlite>,
    ended: bool,
}

impl Drop for Tx {
    fn drop(&mut self) {
        if !self.ended {
            self.connection.close_on_drop();
        }
    }
}

impl Tx {
    pub async fn begin(pool: &SqlitePool) -> Result<Self, Error> {
        let mut tx = Self { connection: pool.acquire().await?, ended: false };
        tx.run("BEGIN IMMEDIATE").await?;
        Ok(tx)
    }

    pub async fn rollback(self) -> Result<(), Error> {
        self.end("ROLLBACK").await
    }

    async fn end(mut self, how: &'static str) -> Result<(), Error> {
        self.run(how).await?;
        self.ended = true;
        Ok(())
    }

    async fn run(&mut self, sql: &'static str) -> Result<(), Error> {
        sqlx::query(sql).execute(&mut *self.connection).await?;
        Ok(())
    }
}

/// The one writer holds everything already.
pub async fn lock(tx: &mut Tx, accounts: &[Uuid]) -> Result<Balances, Error> {
    let mut balances = Balances::with_capacity_and_hasher(accounts.len(), foldhash::fast::RandomState::default());
    for chunk in chunks(accounts) {
        let places = vec!["?"; chunk.len()].join(", ");
        let sql = format!(
            "SELECT account_id, posted, held, version, system, closed, frozen, credit_limit, recorded_us FROM balances \
             WHERE account_id IN ({places})"
        );
        let query = chunk.iter().fold(sqlx::query(sqlx::AssertSqlSafe(sql)), |query, id| query.bind(*id));
        for row in query.fetch_all(&mut *tx.connection).await? {
            let balance = Balance {
                posted: Minor::new(row.try_get(1)?),
                held: Minor::new(row.try_get(2)?),
                version: row.try_get(3)?,
                system: row.try_get(4)?,
                closed: row.try_get(5)?,
                frozen: row.try_get(6)?,
                credit_limit: Minor::new(row.try_get(7)?),
                recorded_us: row.try_get(8)?,
            };
            balances.insert(row.try_get(0)?, balance);
        }
    }
    Ok(balances)
}

pub async fn commit(mut tx: Tx, writes: &Writes<'_>) -> Result<(), Error> {
    if let Err(error) = write(&mut tx, writes).await {
        // What went wrong is in `error`.
        let _ = tx.rollback().await;
        return Err(error);
    }
    tx.end("COMMIT").await
}

async fn write(tx: &mut Tx, writes: &Writes<'_>) -> Result<(), Error> {
    insert_operations(tx, &writes.inserted).await?;
    for OperationChange { operation, from, from_state } in &writes.updated {
        let sql = "UPDATE operations SET state = ?, reason = ?, update_time_us = ?, version = ?, hash = ?, attempts = ?, rejected_leg = ?, \
                   captured_amount = ?, balances_after = ?, effective_time_us = ? WHERE id = ? AND version = ? AND state = ?";
        let query = sqlx::query(sql).bind(operations::state_number(operation.state)).bind(operations::reason_text(operation).to_owned());
        let head = operation.head.ok_or_else(|| Error::corrupt("an operation without an event"))?;
        let query = query.bind(operation.update_time_us).bind(head.version).bind(head.hash.to_vec()).bind(operation.attempts);
        let query = query.bind(operations::rejected_leg(operation)).bind(operations::captured(operation));
        let query = query.bind(operations::balances_after(operation)).bind(operation.effective_time_us);
        let query = query.bind(operation.id).bind(from.map(|head| head.version)).bind(operations::state_number(*from_state));
        let changed = query.execute(&mut *tx.connection).await?;
        Error::expect_rows(1, changed.rows_affected())?;
    }
    let sql =
        "INSERT INTO operation_events (id, aggregate_id, version, kind, payload, digest, correlation_id, causation_id, recorded_us, hash) VALUES ";
    insert(tx, sql, "", 10, &writes.events, |query, event| {
        let query = query.bind(event.id).bind(event.aggregate_id).bind(event.version).bind(event.kind.clone()).bind(event.payload.clone());
        let query = query.bind(event.digest.to_vec()).bind(event.correlation_id.clone()).bind(event.causation_id);
        query.bind(event.recorded_us).bind(event.hash.to_vec())
    })
    .await?;
    let sql = "INSERT INTO postings (account_id, account_version, operation_id, amount, balance, recorded_us) VALUES ";
    insert(tx, sql, "", 6, &writes.postings, |query, (operation_id, posting)| {
        let query = query.bind(posting.account_id).bind(posting.account_version).bind(*operation_id);
        query.bind(posting.amount.get()).bind(posting.balance.get()).bind(posting.recorded_us)
    })
    .await?;
    let parties: Vec<operations::PartyRow> = writes.inserted.iter().flat_map(|operation| operations::party_rows(operation)).collect();
    let sql = "INSERT INTO operation_parties (party_id, operation_id, stored_open) VALUES ";
    insert(tx, sql, "", 3, &parties, |query, one| query.bind(one.party_id).bind(one.operation_id).bind(one.stored_open)).await?;
    for ReversalChange { original_id, from, to } in &writes.reversals {
        let sql = "UPDATE operations SET reversal_id = ? WHERE id = ? AND reversal_id IS ?";
        let changed = sqlx::query(sql).bind(*to).bind(*original_id).bind(*from).execute(&mut *tx.connection).await?;
        Error::expect_rows(1, changed.rows_affected())?;
    }
    // What is changed is what was locked, as it was then.
    let sql = "WITH u (account_id, posted, held, version, from_version, from_held, recorded_us) AS (VALUES ";
    let update = ") UPDATE balances SET posted = u.posted, held = u.held, version = u.version, recorded_us = u.recorded_us, \
                  floor = min(-credit_limit, u.posted - u.held) FROM u \
                  WHERE balances.account_id = u.account_id AND balances.version = u.from_version AND balances.held = u.from_held";
    let changed = insert(tx, sql, update, 7, &writes.balances, |query, change| {
        let after = change.after;
        let query = query.bind(change.account_id).bind(after.posted.get()).bind(after.held.get()).bind(after.version).bind(change.from_version);
        query.bind(change.from_held.get()).bind(after.recorded_us)
    })
    .await?;
    Error::expect_rows(writes.balances.len() as u64, changed)?;
    for one in &writes.refunds {
        let [from, to] = [&one.from, &one.to].map(|refunded| refunded.as_deref().map(legs::minors_to_bytes));
        let query = sqlx::query("UPDATE operations SET refunded = ? WHERE id = ? AND refunded IS ?").bind(to).bind(one.payment_id).bind(from);
        Error::expect_rows(1, query.execute(&mut *tx.connection).await?.rows_affected())?;
    }
    for one in &writes.calls {
        let query = sqlx::query(INSERT_CALL.as_str()).bind(one.operation_id).bind(provider_calls::kind_number(one.kind)).bind(one.key);
        let query = query.bind(&*one.provider).bind(one.owner_id).bind(one.card_token.as_ref().map(CardToken::reveal)).bind(&one.correlation_id);
        query.execute(&mut *tx.connection).await?;
    }
    for (operation_id, kind, end) in &writes.ended_calls {
        let query = sqlx::query(provider_calls::END).bind(*operation_id).bind(provider_calls::kind_number(*kind));
        query.bind(provider_calls::end_number(*end)).execute(&mut *tx.connection).await?;
    }
    for (operation_id, key) in &writes.give_back_calls {
        sqlx::query(provider_calls::GIVE_BACK).bind(*operation_id).bind(*key).execute(&mut *tx.connection).await?;
    }
    for one in &writes.reports {
        let sql = "UPDATE provider_events SET outcome = ?, operation_id = ? WHERE id = ? AND outcome = 0";
        let query = sqlx::query(sql).bind(provider_events::outcome_number(one.outcome)).bind(one.operation_id).bind(one.event_id);
        Error::expect_rows(1, query.execute(&mut *tx.connection).await?.rows_affected())?;
    }
    for one in &writes.dead_letters {
        let query = sqlx::query(super::DEAD_LETTER).bind(one.operation_id).bind(&one.error).bind(one.attempts).bind(one.create_time_us);
        query.execute(&mut *tx.connection).await?;
    }
    Ok(())
}

async fn insert_operations(tx: &mut Tx, operations: &[&Operation]) -> Result<u64, Error> {
    let sql = format!("INSERT INTO operations ({}) VALUES ", *operations::COLUMNS);
    insert(tx, &sql, "", operations::COLUMN_NAMES.len(), operations, |query, one| {
        let query = query
            .bind(one.id)
            .bind(one.owner_id)
            .bind(one.external_id.clone())
            .bind(one.request_hash.to_vec())
            .bind(operations::type_number(one.kind));
        let sides = operations::sides(one);
        let query = query
            .bind(operations::state_number(one.state))
            .bind(operations::reason_text(one).to_owned())
            // What moves nothing is not stored: the table refuses NULL.
            .bind(operations::row_amount(one).map(|amount| amount.currency().code().to_owned()))
            .bind(operations::row_amount(one).map(|amount| amount.minor().get()))
            .bind(sides.source);
        let query = query
            .bind(sides.destination)
            .bind(sides.source_owner)
            .bind(sides.destination_owner)
            .bind(one.description.clone())
            .bind(metadata_to_text(&one.metadata))
            .bind(one.effective_time_us);
        // What has no event is not stored: the table refuses NULL.
        let (version, hash) = (one.head.map(|head| head.version), one.head.map(|head| head.hash.to_vec()));
        let query = query.bind(one.create_time_us).bind(one.update_time_us).bind(version).bind(hash).bind(one.attempts);
        let query = query
            .bind(operations::legs_bytes(one))
            .bind(one.hold.map(|hold| hold.expire_time_us))
            .bind(operations::captured(one))
            .bind(operations::rejected_leg(one));
        let query = query.bind(one.original_id).bind(one.reversal_id).bind(operations::balances_after(one));
        query.bind(operations::is_external(one)).bind(operations::refunded(one))
    })
    .await
}

/// Runs a statement with rows of `columns` values each, as often as it takes; how many rows of the database it changed.
async fn insert<T>(
    tx: &mut Tx,
    head: &str,
    tail: &str,
    columns: usize,
    rows: &[T],
    bind: impl for<'q> Fn(Bound<'q>, &T) -> Bound<'q>,
) -> Result<u64, Error> {
    let row = format!("({})", vec!["?"; columns].join(", "));
    let mut changed = 0;
    for chunk in chunks(rows) {
        let sql = format!("{head}{}{tail}", vec![row.as_str(); chunk.len()].join(", "));
        let query = chunk.iter().fold(sqlx::query(sqlx::AssertSqlSafe(sql)), &bind);
        changed += query.execute(&mut *tx.connection).await?.rows_affected();
    }
    Ok(changed)
}

/// Cuts rows into pieces of the sizes of CHUNKS, the largest first.
fn chunks<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let size = CHUNKS.into_iter().find(|size| *size <= rows.len())?;
        let (chunk, rest) = rows.split_at(size);
        rows = rest;
        Some(chunk)
    })
}

pub async fn raise_sagas(tx: &mut Tx, asked: &[SagaEpoch]) -> Result<Vec<Saga>, Error> {
    let mut raised = Vec::with_capacity(asked.len());
    for saga in asked {
        let query = sqlx::query(sagas::RAISE).bind(saga.id).bind(saga.epoch).bind(false);
        let row = query.fetch_one(&mut *tx.connection).await?;
        raised.push(Saga { id: row.try_get(0)?, epoch: row.try_get(1)?, cancelled: row.try_get(2)? });
    }
    Ok(raised)
}

pub async fn claim(tx: &mut Tx, claim: Claim) -> Result<ClaimedOperations, Error> {
    let query = sqlx::query(sqlx::AssertSqlSafe(select_open(claim, ""))).bind(claim.after);
    let rows = query.bind(claim.failed_before_us).bind(claim.failed_after_us()).fetch_all(&mut *tx.connection).await?;
    Ok(ClaimedOperations::of(rows.iter().map(claimed_row).collect::<Result<_, _>>()?))
}

/// The one writer has them.
pub async fn lock_operations(tx: &mut Tx, ids: &[Uuid]) -> Result<Vec<ClaimedOperation>, Error> {
    let mut locked = Vec::with_capacity(ids.len());
    for chunk in chunks(ids) {
        let sql = select_claimed(&format!("WHERE o.id IN ({})", vec!["?"; chunk.len()].join(", ")));
        let query = chunk.iter().fold(sqlx::query(sqlx::AssertSqlSafe(sql)), |query, id| query.bind(*id));
        for row in query.fetch_all(&mut *tx.connection).await? {
            locked.push(claimed_row(&row)?.read()?);
        }
    }
    Ok(locked)
}

pub async fn lock_expired(tx: &mut Tx, which: ExpiredHolds<'_>) -> Result<ClaimedOperations, Error> {
    let sql = select_claimed(&which.condition(&listed(which.ids()), &listed(which.except)));
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false).bind(which.now_us).fetch_all(&mut *tx.connection).await?;
    Ok(ClaimedOperations::of(rows.iter().map(claimed_row).collect::<Result<_, _>>()?))
}

pub async fn any_expired(tx: &mut Tx, which: ExpiredHolds<'_>) -> Result<bool, Error> {
    let sql = format!("SELECT o.id FROM operations o {}", which.condition(&listed(which.ids()), &listed(which.except)));
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false).bind(which.now_us).fetch_all(&mut *tx.connection).await?;
    Ok(!rows.is_empty())
}

/// Ids are our own, and hexadecimal. A statement for each list of them is not kept.
fn listed(ids: &[Uuid]) -> String {
    let literals: Vec<String> = ids.iter().map(|id| format!("x'{}'", id.simple())).collect();
    format!("IN ({})", literals.join(", "))
}

pub async fn waiting_reports(tx: &mut Tx, (provider_id, external_id): (Uuid, &str)) -> Result<Vec<WaitingReport>, Error> {
    let rows = sqlx::query(provider_events::WAITING).bind(provider_id).bind(external_id).fetch_all(&mut *tx.connection).await?;
    rows.iter().map(|row| WaitingReport::read(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)).collect()
}

/// The one writer has it.
pub async fn operation(tx: &mut Tx, id: Uuid) -> Result<Option<ClaimedOperation>, Error> {
    let sql = select_claimed("WHERE o.id = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(&mut *tx.connection).await?;
    row.map(|row| claimed_row(&row)?.read()).transpose()
}

fn claimed_row(row: &SqliteRow) -> Result<ClaimedRow, Error> {
    let after = operations::COLUMN_NAMES.len();
    Ok(ClaimedRow { operation: operations::Row::from_row(row)?, correlation_id: row.try_get(after)?, last_event_id: row.try_get(after + 1)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_of_few_sizes_and_lose_nothing() {
        for rows in 0..200_usize {
            let all: Vec<usize> = (0..rows).collect();
            let pieces: Vec<&[usize]> = chunks(&all).collect();
            assert_eq!(pieces.concat(), all);
            assert!(pieces.iter().all(|piece| CHUNKS.contains(&piece.len())));
        }
    }
}
