//! The tables `accounts` and `balances`, outside of settlement.

use std::sync::LazyLock;

use lastro_database::batch_loader::BatchLoader;
use lastro_database::rows::{all_of_ids, execute_of_ids};
use lastro_database::{Database, Error, Transaction, all, execute, one};
use lastro_mesh::page::Page;
use lastro_money::{Currency, Minor};
use lastro_proto::transactions::events::v1::{AccountFrozen, AccountRenamed, AccountUnfrozen, CreditLimitChanged, account_event};
use sea_orm::{ConnectionTrait, DbBackend, FromQueryResult, Value};
use uuid::Uuid;

use super::account_events::{Cause, append_changed, append_closed, append_opened};
use crate::domain::account::{Account, STRIPES, SYSTEM_OWNER, clearing_account_id};
use crate::domain::ledger::{Balance, Balances};

/// An account with what may change about it.
#[derive(Debug, Clone)]
pub struct AccountWithBalance {
    pub account: Account,
    /// What its owner calls it.
    pub display_name: String,
    pub posted: Minor,
    pub held: Minor,
    pub credit_limit: Minor,
    pub frozen: bool,
    pub closed: bool,
}

impl AccountWithBalance {
    /// Just opened.
    pub fn new(account: Account, display_name: String) -> Self {
        Self { account, display_name, posted: Minor::ZERO, held: Minor::ZERO, credit_limit: Minor::ZERO, frozen: false, closed: false }
    }
}

#[derive(FromQueryResult)]
struct Row {
    id: Uuid,
    owner_id: Uuid,
    currency_code: String,
    display_name: String,
    system: bool,
    create_time_us: i64,
    posted: i64,
    held: i64,
    credit_limit: i64,
    frozen: bool,
    closed: bool,
}

const SELECT: &str = "SELECT a.id, a.owner_id, a.currency_code, a.display_name, a.system, a.create_time_us, b.posted, b.held, b.credit_limit, \
                      b.frozen, b.closed FROM accounts a JOIN balances b ON b.account_id = a.id";

impl Row {
    /// Of a row of [`SELECT`].
    fn from_postgres(row: &lastro_database::pipelined::Row) -> Result<Self, Error> {
        Ok(Self {
            id: row.get(0)?,
            owner_id: row.get(1)?,
            currency_code: row.get(2)?,
            display_name: row.get(3)?,
            system: row.get(4)?,
            create_time_us: row.get(5)?,
            posted: row.get(6)?,
            held: row.get(7)?,
            credit_limit: row.get(8)?,
            frozen: row.get(9)?,
            closed: row.get(10)?,
        })
    }

    fn read(self) -> Result<AccountWithBalance, Error> {
        let currency = Currency::from_code(&self.currency_code).ok_or_else(|| Error::corrupt("a currency that is none"))?;
        let account = Account { id: self.id, owner_id: self.owner_id, currency, system: self.system, create_time_us: self.create_time_us };
        Ok(AccountWithBalance {
            account,
            display_name: self.display_name,
            posted: Minor::new(self.posted),
            held: Minor::new(self.held),
            credit_limit: Minor::new(self.credit_limit),
            frozen: self.frozen,
            closed: self.closed,
        })
    }
}

/// An idempotency key, and the SHA-256 of what was asked for with it.
#[derive(Debug, Clone)]
pub struct Key {
    pub external_id: String,
    pub request_hash: [u8; 32],
}

/// Adds an account with a balance of zero; false when it is a stripe that is there already. An error of kind `Unique` when its owner has used the key.
async fn insert(tx: &Transaction, account: &Account, display_name: &str, stripe: Option<u8>, key: Option<&Key>) -> Result<bool, Error> {
    // Whoever makes a currency's stripes at the same time makes the same ones; of any other account a conflict is told.
    let conflict = if stripe.is_some() { " ON CONFLICT DO NOTHING" } else { "" };
    let sql = format!(
        "INSERT INTO accounts (id, owner_id, currency_code, display_name, system, stripe, create_time_us, external_id, request_hash) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9){conflict}"
    );
    let values: [Value; 9] = [
        account.id.into(),
        account.owner_id.into(),
        account.currency.code().into(),
        display_name.into(),
        account.system.into(),
        stripe.map(i64::from).into(),
        account.create_time_us.into(),
        key.map(|key| key.external_id.clone()).into(),
        key.map(|key| key.request_hash.to_vec()).into(),
    ];
    let is_new = execute(tx, &sql, values).await? == 1;
    let sql =
        "INSERT INTO balances (account_id, posted, held, version, system, closed) VALUES ($1, 0, 0, 0, $2, $3) ON CONFLICT (account_id) DO NOTHING";
    execute(tx, sql, [account.id.into(), account.system.into(), false.into()]).await?;
    Ok(is_new)
}

/// Opens an account, with a balance of zero and its event. An error of kind `Unique` when its owner has used the key.
pub async fn open(tx: &Transaction, account: &Account, display_name: &str, key: Option<&Key>, cause: Cause<'_>) -> Result<(), Error> {
    insert(tx, account, display_name, None, key).await?;
    append_opened(tx, &[account], cause).await
}

/// Makes a currency's clearing account, unless it is there.
pub async fn ensure_clearing(tx: &Transaction, currency: Currency, now_us: i64, cause: Cause<'_>) -> Result<(), Error> {
    let mut made = Vec::new();
    for stripe in 0..STRIPES {
        let account = Account { id: clearing_account_id(currency, stripe), owner_id: SYSTEM_OWNER, currency, system: true, create_time_us: now_us };
        if insert(tx, &account, "clearing", Some(stripe), None).await? {
            made.push(account);
        }
    }
    append_opened(tx, &made.iter().collect::<Vec<_>>(), cause).await
}

/// Accounts by their ids, as they are now.
pub fn loader(database: &Database) -> BatchLoader<AccountWithBalance> {
    static BY_IDS: LazyLock<String> = LazyLock::new(|| format!("{SELECT} WHERE a.id = ANY($1)"));
    let database = database.clone();
    BatchLoader::new(move |ids| {
        let database = database.clone();
        Box::pin(async move {
            let rows = match database.read_by_ids(&BY_IDS, &ids).await {
                Some(rows) => rows?.iter().map(Row::from_postgres).collect::<Result<Vec<_>, _>>()?,
                None => all_of_ids(database.reader(), &format!("{SELECT} WHERE a.id {{ids}}"), &ids, []).await?,
            };
            Ok(rows.into_iter().map(|row| (row.id, row.read())).collect())
        })
    })
}

/// One account.
pub async fn get(on: &impl ConnectionTrait, id: Uuid) -> Result<Option<AccountWithBalance>, Error> {
    one::<Row>(on, &format!("{SELECT} WHERE a.id = $1"), [id.into()]).await?.map(Row::read).transpose()
}

/// The account that its owner opened with this key, and the hash of what it asked for.
pub async fn by_key(on: &impl ConnectionTrait, owner_id: Uuid, external_id: &str) -> Result<Option<(AccountWithBalance, Vec<u8>)>, Error> {
    #[derive(FromQueryResult)]
    struct Hash {
        id: Uuid,
        request_hash: Vec<u8>,
    }
    let sql = "SELECT id, request_hash FROM accounts WHERE owner_id = $1 AND external_id = $2";
    let Some(found) = one::<Hash>(on, sql, [owner_id.into(), external_id.into()]).await? else { return Ok(None) };
    let account = get(on, found.id).await?.ok_or_else(|| Error::corrupt("an account without a balance"))?;
    Ok(Some((account, found.request_hash)))
}

/// What accounts have now, as a batch would lock it.
pub async fn balances(on: &impl ConnectionTrait, ids: &[Uuid]) -> Result<Balances, Error> {
    #[derive(FromQueryResult)]
    struct Stored {
        account_id: Uuid,
        posted: i64,
        held: i64,
        version: i64,
        system: bool,
        closed: bool,
        frozen: bool,
        credit_limit: i64,
        recorded_us: i64,
    }
    let sql = "SELECT account_id, posted, held, version, system, closed, frozen, credit_limit, recorded_us FROM balances WHERE account_id {ids}";
    let rows: Vec<Stored> = all_of_ids(on, sql, ids, []).await?;
    let read = |row: Stored| {
        let balance = Balance {
            posted: Minor::new(row.posted),
            held: Minor::new(row.held),
            credit_limit: Minor::new(row.credit_limit),
            version: row.version,
            recorded_us: row.recorded_us,
            system: row.system,
            frozen: row.frozen,
            closed: row.closed,
        };
        (row.account_id, balance)
    };
    Ok(rows.into_iter().map(read).collect())
}

/// What an open account has, locked.
#[derive(Debug, Clone, FromQueryResult)]
pub struct OpenBalance {
    pub account_id: Uuid,
    posted: i64,
    held: i64,
}

impl OpenBalance {
    /// Whether the account may be closed.
    pub fn is_empty(&self) -> bool {
        self.posted == 0 && self.held == 0
    }
}

/// Locks the balances of a user's open accounts until the transaction ends, in the order of their ids, as everybody does.
pub async fn lock_open(tx: &Transaction, owner_id: Uuid) -> Result<Vec<OpenBalance>, Error> {
    let for_update = if tx.get_database_backend() == DbBackend::Postgres { " FOR UPDATE" } else { "" };
    let sql = format!(
        "SELECT account_id, posted, held FROM balances WHERE NOT closed AND account_id IN (SELECT id FROM accounts WHERE owner_id = $1 AND NOT system) \
         ORDER BY account_id{for_update}"
    );
    all(tx, &sql, [owner_id.into()]).await
}

/// Locks an account's balance until the transaction ends; the account as it is then. None where there is none.
pub async fn lock(tx: &Transaction, id: Uuid) -> Result<Option<AccountWithBalance>, Error> {
    let for_update = if tx.get_database_backend() == DbBackend::Postgres { " FOR UPDATE OF b" } else { "" };
    one::<Row>(tx, &format!("{SELECT} WHERE a.id = $1{for_update}"), [id.into()]).await?.map(Row::read).transpose()
}

/// Gives an account another name.
pub async fn rename(tx: &Transaction, id: Uuid, display_name: &str, cause: Cause<'_>) -> Result<(), Error> {
    Error::expect_rows(1, execute(tx, "UPDATE accounts SET display_name = $2 WHERE id = $1", [id.into(), display_name.into()]).await?)?;
    append_changed(tx, id, account_event::Event::Renamed(AccountRenamed {}), cause).await
}

/// Changes the credit limit of an open account, whose balance is locked. The floor of the table follows it, but not above what the account has.
pub async fn set_credit_limit(tx: &Transaction, id: Uuid, credit_limit: Minor, cause: Cause<'_>) -> Result<(), Error> {
    let sql = "UPDATE balances SET credit_limit = $2, floor = CASE WHEN posted - held < -$2 THEN posted - held ELSE -$2 END WHERE account_id = $1 AND NOT closed AND NOT system";
    Error::expect_rows(1, execute(tx, sql, [id.into(), credit_limit.get().into()]).await?)?;
    let changed = CreditLimitChanged { credit_limit_minor: credit_limit.get() };
    append_changed(tx, id, account_event::Event::CreditLimitChanged(changed), cause).await
}

/// Freezes an open account whose balance is locked, or ends that.
pub async fn set_frozen(tx: &Transaction, id: Uuid, frozen: bool, cause: Cause<'_>) -> Result<(), Error> {
    let sql = "UPDATE balances SET frozen = $2 WHERE account_id = $1 AND NOT closed AND NOT system";
    Error::expect_rows(1, execute(tx, sql, [id.into(), frozen.into()]).await?)?;
    let event = if frozen { account_event::Event::Frozen(AccountFrozen {}) } else { account_event::Event::Unfrozen(AccountUnfrozen {}) };
    append_changed(tx, id, event, cause).await
}

/// Closes accounts that are open and empty; their balances are locked.
pub async fn close(tx: &Transaction, accounts: &[Uuid], cause: Cause<'_>) -> Result<(), Error> {
    if accounts.is_empty() {
        return Ok(());
    }
    let sql = "UPDATE balances SET closed = $2 WHERE account_id {ids} AND NOT closed AND posted = 0 AND held = 0";
    Error::expect_rows(accounts.len() as u64, execute_of_ids(tx, sql, accounts, [true.into()]).await?)?;
    append_closed(tx, accounts, cause).await
}

/// A page of accounts, newest first: of one owner, or of all.
pub async fn list(on: &impl ConnectionTrait, owner_id: Option<Uuid>, page: Page) -> Result<Vec<AccountWithBalance>, Error> {
    let before = Value::from(page.before.unwrap_or(Uuid::max()));
    let limit = page.limit();
    let rows: Vec<Row> = match owner_id {
        Some(owner) => {
            all(on, &format!("{SELECT} WHERE a.owner_id = $2 AND a.id < $1 ORDER BY a.id DESC LIMIT {limit}"), [before, owner.into()]).await?
        }
        None => all(on, &format!("{SELECT} WHERE a.system = $2 AND a.id < $1 ORDER BY a.id DESC LIMIT {limit}"), [before, false.into()]).await?,
    };
    rows.into_iter().map(Row::read).collect()
}
