//! The table `operations`, outside of settlement.

mod list;
mod row;

use std::sync::LazyLock;

use lastro_database::batch_loader::BatchLoader;
use lastro_database::rows::all_of_ids;
use lastro_database::{Database, Error, Transaction, all, execute, one};
use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use uuid::Uuid;

pub use self::list::{Filter, Listed, MetadataFilter, Of, list};
pub(super) use self::row::{
    COLUMN_NAMES, COLUMNS, PartyRow, Row, balances_after, captured, is_external, legs_bytes, party_rows, reason_text, refunded, rejected_leg,
    row_amount, sides, state_number, type_number,
};
pub use self::row::{metadata_from_text, metadata_to_text};
use crate::domain::operation::Operation;

/// Operations by their ids, as they are now.
pub fn loader(database: &Database) -> BatchLoader<Operation> {
    static BY_IDS: LazyLock<String> = LazyLock::new(|| format!("SELECT {} FROM operations WHERE id = ANY($1)", *COLUMNS));
    let database = database.clone();
    BatchLoader::new(move |ids| {
        let database = database.clone();
        Box::pin(async move {
            let rows = match database.read_by_ids(&BY_IDS, &ids).await {
                Some(rows) => rows?.iter().map(Row::from_postgres).collect::<Result<Vec<_>, _>>()?,
                None => all_of_ids(database.reader(), &format!("SELECT {} FROM operations WHERE id {{ids}}", *COLUMNS), &ids, []).await?,
            };
            Ok(rows.into_iter().map(|row| (row.id(), row.read())).collect())
        })
    })
}

/// One operation.
pub async fn get(on: &impl ConnectionTrait, id: Uuid) -> Result<Option<Operation>, Error> {
    one::<Row>(on, &format!("SELECT {} FROM operations WHERE id = $1", *COLUMNS), [id.into()]).await?.map(Row::read).transpose()
}

/// Whether an operation has an event.
pub async fn has_event(on: &impl ConnectionTrait, operation_id: Uuid, event_id: Uuid) -> Result<bool, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        id: Uuid,
    }
    let sql = "SELECT id FROM operation_events WHERE aggregate_id = $1 AND id = $2";
    Ok(one::<Found>(on, sql, [operation_id.into(), event_id.into()]).await?.is_some_and(|found| found.id == event_id))
}

/// How far these operations have come: the versions of their last events.
pub async fn versions(on: &impl ConnectionTrait, ids: &[Uuid]) -> Result<Vec<(Uuid, i64)>, Error> {
    #[derive(FromQueryResult)]
    struct Version {
        id: Uuid,
        version: i64,
    }
    let rows: Vec<Version> = all_of_ids(on, "SELECT id, version FROM operations WHERE id {ids}", ids, []).await?;
    Ok(rows.into_iter().map(|row| (row.id, row.version)).collect())
}

/// The operations with these keys, (owner, external id) each, as many of them as exist.
pub async fn by_keys(on: &impl ConnectionTrait, keys: &[(Uuid, &str)]) -> Result<Vec<Operation>, Error> {
    /// Keys to a statement, each size being one prepared statement.
    const AT_ONCE: [usize; 3] = [64, 8, 1];
    let (mut found, mut rest) = (Vec::new(), keys);
    while let Some(size) = AT_ONCE.into_iter().find(|size| *size <= rest.len()) {
        let (now, later) = rest.split_at(size);
        rest = later;
        // Each term is one look into the index; a planner without statistics might read the whole table for a join.
        let terms: Vec<String> = (0..size).map(|n| format!("(owner_id = ${} AND external_id = ${})", 2 * n + 1, 2 * n + 2)).collect();
        let values = now.iter().flat_map(|(owner_id, external_id)| [Value::from(*owner_id), Value::from(*external_id)]);
        let rows: Vec<Row> = all(on, &format!("SELECT {} FROM operations WHERE {}", *COLUMNS, terms.join(" OR ")), values).await?;
        for row in rows {
            found.push(row.read()?);
        }
    }
    Ok(found)
}

/// The refunds of a payment, oldest first.
pub async fn refunds_of(on: &impl ConnectionTrait, payment_id: Uuid) -> Result<Vec<Operation>, Error> {
    let sql = format!("SELECT {} FROM operations WHERE kind IN (4, 5) AND kind = 5 AND original_id = $1 ORDER BY id", *COLUMNS);
    let rows: Vec<Row> = all(on, &sql, [payment_id.into()]).await?;
    rows.into_iter().map(Row::read).collect()
}

/// How many refunds of a payment there are.
pub async fn count_refunds(on: &impl ConnectionTrait, payment_id: Uuid) -> Result<i64, Error> {
    #[derive(FromQueryResult)]
    struct Count {
        count: i64,
    }
    let sql = "SELECT count(*) AS count FROM operations WHERE kind IN (4, 5) AND kind = 5 AND original_id = $1";
    Ok(one::<Count>(on, sql, [payment_id.into()]).await?.map_or(0, |found| found.count))
}

/// Payments with a key, of all payers: those that concern a user, or all; at most two, which tells one from several.
pub async fn payments_by_key(on: &impl ConnectionTrait, key: &str, concerning: Option<Uuid>) -> Result<Vec<Operation>, Error> {
    // Its accounts and their owners stand in the row, or in `operation_parties`, as `sides` has it.
    let concerns = "(source_owner_id = $2 OR destination_owner_id = $2 OR EXISTS \
                    (SELECT 1 FROM operation_parties p WHERE p.operation_id = operations.id AND p.party_id = $2))";
    let condition = if concerning.is_some() { format!(" AND {concerns}") } else { String::new() };
    let sql = format!(
        "SELECT {} FROM operations WHERE kind IN (4, 5) AND kind = 4 AND original_id IS NULL AND external_id = $1{condition} ORDER BY id LIMIT 2",
        *COLUMNS
    );
    let values = [Some(Value::from(key)), concerning.map(Value::from)].into_iter().flatten();
    let rows: Vec<Row> = all(on, &sql, values).await?;
    rows.into_iter().map(Row::read).collect()
}

/// Whether an operation that is not settled yet names one of some accounts, on either side. Few are open at any time. `accounts` is a query of ids, in
/// which `$1` is `of`.
async fn any_open(tx: &Transaction, accounts: &str, of: Uuid) -> Result<bool, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        id: Uuid,
    }
    // Each arm is a look into an index by account of what is not completed: others' holds are not read.
    let open = "o.state <> 4 AND o.state IN (1, 2, 3, 8)";
    let arms = [
        format!("SELECT o.id FROM operations o WHERE o.source_account_id IN ({accounts}) AND {open}"),
        format!("SELECT o.id FROM operations o WHERE o.destination_account_id IN ({accounts}) AND {open}"),
        format!(
            "SELECT o.id FROM operation_parties p JOIN operations o ON o.id = p.operation_id \
             WHERE p.stored_open AND p.party_id IN ({accounts}) AND {open}"
        ),
    ];
    let found: Option<Found> = one(tx, &format!("{} LIMIT 1", arms.join(" UNION ALL ")), [of.into()]).await?;
    Ok(found.is_some_and(|found| !found.id.is_nil()))
}

/// Holds that have run out, are not released yet, and name accounts: the one with this id, or all of a user. At most 200.
pub async fn expired_naming(on: &impl ConnectionTrait, named: Named, now_us: i64) -> Result<Vec<Uuid>, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        id: Uuid,
    }
    let (accounts, of) = match named {
        Named::Account(id) => ("SELECT id FROM accounts WHERE id = $1", id),
        Named::AccountsOf(owner_id) => ("SELECT id FROM accounts WHERE owner_id = $1", owner_id),
    };
    // As `any_open`: looks into the indexes of what is not completed.
    let expired = "o.state <> 4 AND o.state IN (1, 2, 3, 8) AND o.state = 3 AND o.hold_expire_us <= $2";
    let arms = [
        format!("SELECT o.id FROM operations o WHERE o.source_account_id IN ({accounts}) AND {expired}"),
        format!("SELECT o.id FROM operations o WHERE o.destination_account_id IN ({accounts}) AND {expired}"),
        format!(
            "SELECT o.id FROM operation_parties p JOIN operations o ON o.id = p.operation_id \
             WHERE p.stored_open AND p.party_id IN ({accounts}) AND {expired}"
        ),
    ];
    let found: Vec<Found> = all(on, &format!("{} LIMIT 200", arms.join(" UNION ")), [of.into(), now_us.into()]).await?;
    Ok(found.into_iter().map(|found| found.id).collect())
}

/// Which accounts are meant.
#[derive(Debug, Clone, Copy)]
pub enum Named {
    Account(Uuid),
    AccountsOf(Uuid),
}

/// Whether an operation that is not settled yet names an account of a user.
pub async fn any_open_of_owner(tx: &Transaction, owner_id: Uuid) -> Result<bool, Error> {
    any_open(tx, "SELECT id FROM accounts WHERE owner_id = $1", owner_id).await
}

/// Whether a deposit that a user has submitted waits for what this user, a provider, reports.
pub async fn any_waiting_for(tx: &Transaction, provider_id: Uuid) -> Result<bool, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        owner_id: Uuid,
    }
    let sql = "SELECT owner_id FROM operations WHERE state IN (3, 8) AND hold_expire_us IS NULL AND owner_id = $1 AND state = 8 AND kind = 1 LIMIT 1";
    Ok(one::<Found>(tx, sql, [provider_id.into()]).await?.is_some_and(|found| found.owner_id == provider_id))
}

/// Whether an operation that is not settled yet names an account.
pub async fn any_open_of_account(tx: &Transaction, account_id: Uuid) -> Result<bool, Error> {
    any_open(tx, "SELECT id FROM accounts WHERE id = $1", account_id).await
}

/// The holds on some accounts that have run out and are not released yet, those that ran out first before the others: at most 1,000.
pub async fn expired_on(on: &impl ConnectionTrait, accounts: &[Uuid], now_us: i64) -> Result<Vec<Operation>, Error> {
    let mut expired = Vec::new();
    for of in ["source_account_id {ids}", "id IN (SELECT operation_id FROM operation_parties WHERE stored_open AND party_id {ids})"] {
        let sql = format!(
            "SELECT {} FROM operations WHERE state IN (3, 8) AND state = 3 AND hold_expire_us <= $2 AND {of} ORDER BY hold_expire_us LIMIT 500",
            *COLUMNS
        );
        let rows: Vec<Row> = all_of_ids(on, &sql, accounts, [now_us.into()]).await?;
        for row in rows {
            expired.push(row.read()?);
        }
    }
    Ok(expired)
}

/// Notes the owners of operations that a replica of an older version stored, which knew no such columns; of at most 500, and how many they were.
/// What has no owner in this store is left as it is.
pub async fn fill_in_owners(tx: &Transaction) -> Result<u64, Error> {
    execute(tx, FILL_IN_OWNERS, []).await
}

const FILL_IN_OWNERS: &str = "UPDATE operations SET \
    source_owner_id = (SELECT a.owner_id FROM accounts a WHERE a.id = source_account_id), \
    destination_owner_id = (SELECT b.owner_id FROM accounts b WHERE b.id = destination_account_id \
                            AND b.owner_id IS DISTINCT FROM (SELECT a.owner_id FROM accounts a WHERE a.id = source_account_id)) \
    WHERE id IN (SELECT id FROM operations o WHERE o.source_owner_id IS NULL AND o.destination_owner_id IS NULL \
                 AND EXISTS (SELECT 1 FROM accounts a WHERE a.id IN (o.source_account_id, o.destination_account_id) AND a.owner_id IS NOT NULL) \
                 LIMIT 500)";
