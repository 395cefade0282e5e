//! What was posted to accounts before it was known here that they were opened: the events of accounts and of transactions come apart.

use std::collections::HashSet;

use lastro_database::rows::{Type, all_of_ids, execute_of_ids, insert_rows};
use lastro_database::{Error, Transaction, all, execute, one};
use sea_orm::{ConnectionTrait, DbBackend, FromQueryResult};
use uuid::Uuid;

use super::accounts;

#[derive(FromQueryResult)]
struct Found {
    transaction_id: Uuid,
}

/// Notes which transactions posted to accounts that are not known. Of each pair the account is first.
pub async fn note(tx: &Transaction, posted: Vec<(Uuid, Uuid)>) -> Result<(), Error> {
    let unknown_of = async |posted: Vec<(Uuid, Uuid)>| {
        let mut ids: Vec<Uuid> = posted.iter().map(|(account_id, _)| *account_id).collect();
        ids.sort_unstable();
        ids.dedup();
        let known: HashSet<Uuid> = accounts::versions(tx, &ids).await?.into_iter().map(|(id, _)| id).collect();
        Ok::<_, Error>(if known.len() == ids.len() { Vec::new() } else { posted.into_iter().filter(|(id, _)| !known.contains(id)).collect() })
    };
    let mut unknown = unknown_of(posted).await?;
    if !unknown.is_empty() {
        take_turn(tx).await?;
        unknown = unknown_of(unknown).await?;
        unknown.sort_unstable();
        unknown.dedup();
    }
    let columns = [("account_id", Type::Uuid), ("transaction_id", Type::Uuid)];
    let rows = unknown.into_iter().map(|(account_id, transaction_id)| vec![account_id.into(), transaction_id.into()]).collect();
    insert_rows(tx, "early_postings", &columns, "", rows).await.map(|_| ())
}

/// Forgets what was noted of accounts that are new now.
pub async fn forget(tx: &Transaction, opened: &[Uuid]) -> Result<(), Error> {
    if opened.is_empty() {
        return Ok(());
    }
    take_turn(tx).await?;
    execute_of_ids(tx, "DELETE FROM early_postings WHERE account_id {ids}", opened, []).await.map(|_| ())
}

/// Holds a lock until the transaction ends, so that no account becomes known between the look and the note: a note of a known account would stay, and reads would
/// wait for it in vain.
async fn take_turn(tx: &Transaction) -> Result<(), Error> {
    if tx.get_database_backend() == DbBackend::Postgres {
        // Tables that are made anew have a turn of their own.
        execute(tx, "SELECT pg_advisory_xact_lock(hashtext(concat('early_postings ', current_schema())))", []).await?;
    }
    Ok(())
}

/// Whether the account is one of those that are noted.
pub async fn has(on: &impl ConnectionTrait, account_id: Uuid) -> Result<bool, Error> {
    let sql = "SELECT transaction_id FROM early_postings WHERE account_id = $1 LIMIT 1";
    Ok(one::<Found>(on, sql, [account_id.into()]).await?.is_some())
}

/// An account of which it is a dead letter that it was opened is known when that is applied, and not in a moment.
const IS_AWAITED: &str = "NOT EXISTS (SELECT 1 FROM dead_events d WHERE d.topic = 'accounts' AND d.aggregate_id = e.account_id)";

/// Whether one of these transactions posted to an account that is awaited.
pub async fn are_of(on: &impl ConnectionTrait, transactions: &[Uuid]) -> Result<bool, Error> {
    if transactions.is_empty() {
        return Ok(false);
    }
    let sql = format!("SELECT e.transaction_id FROM early_postings e WHERE e.transaction_id {{ids}} AND {IS_AWAITED}");
    let found: Vec<Found> = all_of_ids(on, &sql, transactions, []).await?;
    Ok(!found.is_empty())
}

/// The transactions that posted to accounts that are awaited, up to a limit.
pub async fn all_of_them(on: &impl ConnectionTrait, limit: usize) -> Result<Vec<Uuid>, Error> {
    let sql = format!("SELECT DISTINCT e.transaction_id FROM early_postings e WHERE {IS_AWAITED} LIMIT {limit}");
    let found: Vec<Found> = all(on, &sql, []).await?;
    Ok(found.into_iter().map(|found| found.transaction_id).collect())
}
