//! What was posted to accounts, and how far each account has come.

use std::collections::{BTreeSet, HashMap};

use lastro_database::rows::{Type, all_of_ids, insert_rows};
use lastro_database::{Error, Transaction, all};
use sea_orm::{ConnectionTrait, DbBackend, FromQueryResult, Value};
use uuid::Uuid;

use crate::domain::calendar::Day;
use crate::domain::heads::Head;
use crate::domain::operation::{Entry, Posted};

#[derive(FromQueryResult)]
struct HeadRow {
    account_id: Uuid,
    version: i64,
    ahead: i64,
    balance: i64,
    record_us: i64,
}

#[derive(FromQueryResult)]
struct EntryRow {
    account_id: Uuid,
    account_version: i64,
    transaction_id: Uuid,
    posting: i64,
    kind: i64,
    amount: i64,
    balance: i64,
    effective_us: i64,
    record_us: i64,
    day: i64,
    description: String,
}

const COLUMNS: &str = "account_id, account_version, transaction_id, posting, kind, amount, balance, effective_us, record_us, day, description";

impl EntryRow {
    fn entry(self) -> Entry {
        let Self { account_id, account_version, transaction_id, posting, kind, amount, balance, effective_us, record_us, day, description } = self;
        let posted = Posted { account_id, amount, account_version, balance, record_us };
        Entry { posted, transaction_id, posting, kind, effective_us, day: Day::of_number(day), description }
    }
}

/// Locks the heads of accounts until the transaction ends, in the order of their ids. An account without one gets one first: rows that
/// several add are added in the same order too, before anything is locked.
pub async fn lock_heads(tx: &Transaction, accounts: &[Uuid]) -> Result<HashMap<Uuid, Head>, Error> {
    let is_postgres = tx.get_database_backend() == DbBackend::Postgres;
    let select = "SELECT account_id, version, ahead, balance, record_us FROM account_heads WHERE account_id {ids}";
    let known: Vec<HeadRow> = all_of_ids(tx, select, accounts, []).await?;
    if known.len() < accounts.len() {
        let known: BTreeSet<Uuid> = known.iter().map(|row| row.account_id).collect();
        let mut new: Vec<Uuid> = accounts.iter().copied().filter(|id| !known.contains(id)).collect();
        new.sort_unstable();
        write_heads(tx, new.into_iter().map(|id| (id, Head::default())), "ON CONFLICT (account_id) DO NOTHING").await?;
    } else if !is_postgres {
        // SQLite has one writer, which we are.
        return Ok(known.into_iter().map(head_of).collect());
    }
    let lock = if is_postgres { " ORDER BY account_id FOR UPDATE" } else { "" };
    let rows: Vec<HeadRow> = all_of_ids(tx, &format!("{select}{lock}"), accounts, []).await?;
    if rows.len() < accounts.len() {
        return Err(Error::corrupt("the head of an account that is not there"));
    }
    Ok(rows.into_iter().map(head_of).collect())
}

fn head_of(row: HeadRow) -> (Uuid, Head) {
    (row.account_id, Head { version: row.version, ahead: row.ahead, balance: row.balance, record_us: row.record_us })
}

/// Writes locked heads as they are now.
pub async fn set_heads(tx: &Transaction, heads: impl Iterator<Item = (Uuid, Head)>) -> Result<(), Error> {
    let conflict = "ON CONFLICT (account_id) DO UPDATE SET version = excluded.version, ahead = excluded.ahead, balance = excluded.balance, \
                    record_us = excluded.record_us";
    write_heads(tx, heads, conflict).await
}

async fn write_heads(tx: &Transaction, heads: impl Iterator<Item = (Uuid, Head)>, conflict: &str) -> Result<(), Error> {
    let columns =
        [("account_id", Type::Uuid), ("version", Type::BigInt), ("ahead", Type::BigInt), ("balance", Type::BigInt), ("record_us", Type::BigInt)];
    let row = |(id, head): (Uuid, Head)| vec![id.into(), head.version.into(), head.ahead.into(), head.balance.into(), head.record_us.into()];
    insert_rows(tx, "account_heads", &columns, conflict, heads.map(row).collect()).await.map(|_| ())
}

/// Entries of an account after a version, in the order of their versions, up to a limit.
pub async fn after(on: &impl ConnectionTrait, account_id: Uuid, version: i64, limit: u32) -> Result<Vec<Entry>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM entries WHERE account_id = $1 AND account_version > $2 ORDER BY account_version LIMIT {limit}");
    let rows: Vec<EntryRow> = all(on, &sql, [account_id.into(), version.into()]).await?;
    Ok(rows.into_iter().map(EntryRow::entry).collect())
}

#[derive(FromQueryResult)]
struct Version {
    account_id: Uuid,
    version: i64,
}

/// The last posting that is stored of each of these accounts of which something is ahead of a gap.
pub async fn stored_ahead(on: &impl ConnectionTrait, accounts: &[Uuid]) -> Result<Vec<(Uuid, i64)>, Error> {
    let sql = "SELECT h.account_id, (SELECT MAX(e.account_version) FROM entries e WHERE e.account_id = h.account_id) AS version FROM account_heads h \
               WHERE h.account_id {ids} AND h.ahead > 0";
    let rows: Vec<Version> = all_of_ids(on, sql, accounts, []).await?;
    Ok(rows.into_iter().map(|row| (row.account_id, row.version)).collect())
}

/// How far the postings of accounts have come without a gap; those to which nothing was posted are left out.
pub async fn versions_of(on: &impl ConnectionTrait, accounts: &[Uuid]) -> Result<Vec<(Uuid, i64)>, Error> {
    let rows: Vec<Version> = all_of_ids(on, "SELECT account_id, version FROM account_heads WHERE account_id {ids}", accounts, []).await?;
    Ok(rows.into_iter().map(|row| (row.account_id, row.version)).collect())
}

/// Stores entries, each with the version of the last event of its transaction.
pub async fn insert(tx: &Transaction, entries: &[(Entry, i64)]) -> Result<(), Error> {
    let columns = [
        ("account_id", Type::Uuid),
        ("account_version", Type::BigInt),
        ("transaction_id", Type::Uuid),
        ("posting", Type::BigInt),
        ("operation_version", Type::BigInt),
        ("kind", Type::BigInt),
        ("amount", Type::BigInt),
        ("balance", Type::BigInt),
        ("effective_us", Type::BigInt),
        ("record_us", Type::BigInt),
        ("day", Type::BigInt),
        ("description", Type::Text),
    ];
    let row = |(entry, operation_version): &(Entry, i64)| {
        let posted = &entry.posted;
        let values: Vec<Value> = vec![
            posted.account_id.into(),
            posted.account_version.into(),
            entry.transaction_id.into(),
            entry.posting.into(),
            (*operation_version).into(),
            entry.kind.into(),
            posted.amount.into(),
            posted.balance.into(),
            entry.effective_us.into(),
            posted.record_us.into(),
            entry.day.number().into(),
            entry.description.clone().into(),
        ];
        values
    };
    insert_rows(tx, "entries", &columns, "", entries.iter().map(row).collect()).await.map(|_| ())
}

/// A place in the order of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// When the entry counts, Unix microseconds.
    pub effective_us: i64,
    /// The version of its account: in the order of record times.
    pub account_version: i64,
}

/// Which entries of an account.
#[derive(Debug, Clone, Copy)]
pub struct Which {
    /// The account.
    pub account_id: Uuid,
    /// Only those up to this version.
    pub up_to_version: i64,
    /// Only those that count on this day or later.
    pub from: Day,
    /// Only those that count on this day or earlier.
    pub to: Day,
    /// Only those after this place.
    pub after: Option<Place>,
}

/// No time zone is so far from UTC: the index by time is read within these bounds, and `day` says exactly which entries are of the days.
const DAYS_AROUND: i64 = 2;
const US_PER_DAY: i64 = 86_400_000_000;

/// Entries in the order in which they count, up to a limit.
pub async fn list(on: &impl ConnectionTrait, which: Which, limit: u64) -> Result<Vec<Entry>, Error> {
    let after = which.after.unwrap_or(Place { effective_us: i64::MIN, account_version: 0 });
    let sql = format!(
        "SELECT {COLUMNS} FROM entries WHERE account_id = $1 AND (effective_us, account_version) > ($2, $3) AND account_version <= $4 \
         AND day BETWEEN $5 AND $6 AND effective_us >= $7 AND effective_us < $8 ORDER BY effective_us, account_version LIMIT {limit}"
    );
    let begin_of = |day: i64| day.saturating_mul(US_PER_DAY);
    let values: [Value; 8] = [
        which.account_id.into(),
        after.effective_us.into(),
        after.account_version.into(),
        which.up_to_version.into(),
        which.from.number().into(),
        which.to.number().into(),
        begin_of(which.from.number() - DAYS_AROUND).into(),
        begin_of(which.to.number() + 1 + DAYS_AROUND).into(),
    ];
    let rows: Vec<EntryRow> = all(on, &sql, values).await?;
    Ok(rows.into_iter().map(EntryRow::entry).collect())
}
