//! What was posted to accounts before it was known here that they were opened: the events of accounts and of transactions come apart.

use lastro_database::rows::{Type, all_of_ids, execute_of_ids, insert_rows};
use lastro_database::{Error, Transaction, execute, one};
use sea_orm::{ConnectionTrait, DbBackend, FromQueryResult};
use uuid::Uuid;

use super::accounts;

#[derive(FromQueryResult)]
struct Found {
    #[expect(dead_code, reason = "that there is a row is what is asked")]
    transaction_id: Uuid,
}

/// Notes which transactions posted to accounts that are not known. Of each pair the account is first.
pub async fn note(tx: &Transaction, posted: Vec<(Uuid, Uuid)>) -> Result<(), Error> {
    let unknown_of = async |posted: Vec<(Uuid, Uuid)>| {
        let mut ids: Vec<Uuid> = posted.iter().map(|(account_id, _)| *account_id).collect();
        ids.sort_unstable();
        ids.dedup();
        let known: Vec<Uuid> = accounts::versions(tx, &ids).await?.into_iter().map(|(id, _)| id).collect();
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

/// Until the transaction ends nobody else looks whether an account is known, or makes one known: else a note would be left of one that is.
async fn take_turn(tx: &Transaction) -> Result<(), Error> {
    if tx.get_database_backend() == DbBackend::Postgres {
        execute(tx, "SELECT pg_advisory_xact_lock(hashtext('early_postings'))", []).await?;
    }
    Ok(())
}

/// Whether one of these transactions posted to an account that is not known.
pub async fn are_of(on: &impl ConnectionTrait, transactions: &[Uuid]) -> Result<bool, Error> {
    if transactions.is_empty() {
        return Ok(false);
    }
    let found: Vec<Found> = all_of_ids(on, "SELECT transaction_id FROM early_postings WHERE transaction_id {ids}", transactions, []).await?;
    Ok(!found.is_empty())
}

/// Whether any transaction posted to an account that is not known.
pub async fn are_there(on: &impl ConnectionTrait) -> Result<bool, Error> {
    Ok(one::<Found>(on, "SELECT transaction_id FROM early_postings LIMIT 1", []).await?.is_some())
}
