//! The table `operations`, outside of settlement.

use lastro_database::{Error, Transaction, all, one};
use lastro_mesh::page::Page;
use lastro_money::{Currency, Minor};
use lastro_proto::transactions::v1::MetadataEntry;
use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use uuid::Uuid;

use crate::domain::operation::{State, Type};

/// An operation as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    pub id: Uuid,
    pub owner_id: Uuid,
    pub external_id: String,
    pub request_hash: [u8; 32],
    pub kind: Type,
    pub state: State,
    /// Why it was rejected, or empty.
    pub reason: String,
    pub currency: Currency,
    pub amount: Minor,
    /// None: the clearing account.
    pub source: Option<Uuid>,
    /// None: the clearing account.
    pub destination: Option<Uuid>,
    pub description: String,
    pub metadata: Vec<MetadataEntry>,
    pub effective_time_us: i64,
    pub create_time_us: i64,
    pub update_time_us: i64,
    /// Of its last event.
    pub version: i64,
    /// Of its last event.
    pub hash: [u8; 32],
    /// How often settling it failed.
    pub attempts: i64,
}

/// A row of it; both databases read it.
#[derive(FromQueryResult, sqlx::FromRow)]
pub(super) struct Row {
    id: Uuid,
    owner_id: Uuid,
    external_id: String,
    request_hash: Vec<u8>,
    kind: i64,
    state: i64,
    reason: String,
    currency_code: String,
    amount: i64,
    source_account_id: Option<Uuid>,
    destination_account_id: Option<Uuid>,
    description: String,
    metadata: String,
    effective_time_us: i64,
    create_time_us: i64,
    update_time_us: i64,
    version: i64,
    hash: Vec<u8>,
    attempts: i64,
}

pub(super) const COLUMNS: &str = "id, owner_id, external_id, request_hash, kind, state, reason, currency_code, amount, source_account_id, \
                                  destination_account_id, description, metadata, effective_time_us, create_time_us, update_time_us, version, hash, attempts";

impl Operation {
    /// How large it is in an answer, about: never less than it is.
    pub fn answer_bytes(&self) -> usize {
        let metadata: usize = self.metadata.iter().map(|entry| entry.key.len() + entry.value.len() + 12).sum();
        400 + self.external_id.len() + self.reason.len() + self.description.len() + metadata
    }
}

impl Row {
    /// Of a row with [`COLUMNS`].
    pub(super) fn from_postgres(row: &lastro_database::pipelined::Row) -> Result<Self, Error> {
        Ok(Self {
            id: row.get(0)?,
            owner_id: row.get(1)?,
            external_id: row.get(2)?,
            request_hash: row.get(3)?,
            kind: row.get(4)?,
            state: row.get(5)?,
            reason: row.get(6)?,
            currency_code: row.get(7)?,
            amount: row.get(8)?,
            source_account_id: row.get(9)?,
            destination_account_id: row.get(10)?,
            description: row.get(11)?,
            metadata: row.get(12)?,
            effective_time_us: row.get(13)?,
            create_time_us: row.get(14)?,
            update_time_us: row.get(15)?,
            version: row.get(16)?,
            hash: row.get(17)?,
            attempts: row.get(18)?,
        })
    }

    pub(super) fn read(self) -> Result<Operation, Error> {
        let hash = |bytes: Vec<u8>| bytes.try_into().map_err(|_| Error::corrupt("a hash that has not 32 bytes"));
        let number = |number: i64| i32::try_from(number).map_err(|_| Error::corrupt("a number out of range"));
        Ok(Operation {
            id: self.id,
            owner_id: self.owner_id,
            external_id: self.external_id,
            request_hash: hash(self.request_hash)?,
            kind: Type::try_from(number(self.kind)?).map_err(Error::corrupt)?,
            state: State::try_from(number(self.state)?).map_err(Error::corrupt)?,
            reason: self.reason,
            currency: Currency::from_code(&self.currency_code).ok_or_else(|| Error::corrupt("a currency that is none"))?,
            amount: self.amount,
            source: self.source_account_id,
            destination: self.destination_account_id,
            description: self.description,
            metadata: metadata_from_text(&self.metadata)?,
            effective_time_us: self.effective_time_us,
            create_time_us: self.create_time_us,
            update_time_us: self.update_time_us,
            version: self.version,
            hash: hash(self.hash)?,
            attempts: self.attempts,
        })
    }
}

/// Metadata as it is stored: a JSON object, or nothing.
pub fn metadata_to_text(metadata: &[MetadataEntry]) -> String {
    if metadata.is_empty() {
        return String::new();
    }
    let object: serde_json::Map<String, serde_json::Value> = metadata.iter().map(|entry| (entry.key.clone(), entry.value.clone().into())).collect();
    serde_json::Value::Object(object).to_string()
}

fn metadata_from_text(text: &str) -> Result<Vec<MetadataEntry>, Error> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let object: std::collections::BTreeMap<String, String> = serde_json::from_str(text).map_err(Error::corrupt)?;
    Ok(object.into_iter().map(|(key, value)| MetadataEntry { key, value }).collect())
}

/// One operation.
pub async fn get(on: &impl ConnectionTrait, id: Uuid) -> Result<Option<Operation>, Error> {
    one::<Row>(on, &format!("SELECT {COLUMNS} FROM operations WHERE id = $1"), [id.into()]).await?.map(Row::read).transpose()
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
        let rows: Vec<Row> = all(on, &format!("SELECT {COLUMNS} FROM operations WHERE {}", terms.join(" OR ")), values).await?;
        for row in rows {
            found.push(row.read()?);
        }
    }
    Ok(found)
}

/// Whether an operation that is not settled yet names an account of a user, on either side. Few are open at any time.
pub async fn any_open_of(tx: &Transaction, owner_id: Uuid) -> Result<bool, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        id: Uuid,
    }
    let sql = "SELECT id FROM operations WHERE state IN (1, 2) AND (source_account_id IN (SELECT id FROM accounts WHERE owner_id = $1) \
               OR destination_account_id IN (SELECT id FROM accounts WHERE owner_id = $1)) LIMIT 1";
    let found: Option<Found> = one(tx, sql, [owner_id.into()]).await?;
    Ok(found.is_some_and(|found| !found.id.is_nil()))
}

/// A page of all operations, newest first.
pub async fn list(on: &impl ConnectionTrait, page: Page) -> Result<Vec<Operation>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM operations WHERE id < $1 ORDER BY id DESC LIMIT {}", page.limit());
    let rows: Vec<Row> = all(on, &sql, [page.before.unwrap_or(Uuid::max()).into()]).await?;
    rows.into_iter().map(Row::read).collect()
}

/// A page of the operations that debit or credit one of some accounts, newest first. Each account's own index is read from its end, so
/// that a page costs the same however long the history is.
pub async fn list_of_accounts(on: &impl ConnectionTrait, accounts: &[Uuid], page: Page) -> Result<Vec<Operation>, Error> {
    const ACCOUNTS_AT_ONCE: usize = 100;
    let mut found: Vec<Operation> = Vec::new();
    for accounts in accounts.chunks(ACCOUNTS_AT_ONCE) {
        let one_side = |side: &str, place: usize| {
            format!(
                "SELECT * FROM (SELECT {COLUMNS} FROM operations WHERE {side} = ${place} AND id < $1 ORDER BY id DESC LIMIT {}) AS x",
                page.limit()
            )
        };
        let sides: Vec<String> =
            (2..accounts.len() + 2).flat_map(|place| ["source_account_id", "destination_account_id"].map(|side| one_side(side, place))).collect();
        let values = [Value::from(page.before.unwrap_or(Uuid::max()))].into_iter().chain(accounts.iter().map(|id| Value::from(*id)));
        let rows: Vec<Row> = all(on, &sides.join(" UNION ALL "), values).await?;
        for row in rows {
            found.push(row.read()?);
        }
    }
    found.sort_by_key(|operation| std::cmp::Reverse(operation.id));
    found.dedup_by_key(|operation| operation.id);
    found.truncate(usize::try_from(page.limit()).unwrap_or(usize::MAX));
    Ok(found)
}
