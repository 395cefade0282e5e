//! The table `orders`: an order and its saga in one row.

use std::sync::Arc;

use lastro_database::batch_loader::BatchLoader;
use lastro_database::group_commit::Lock;
use lastro_database::rows::{Type, all_of_ids, insert_rows, update_rows};
use lastro_database::{Database, Error, all, one};
use lastro_mesh::clock;
use lastro_mesh::page::Page;
use lastro_money::{Amount, Currency, Minor};
use sea_orm::{ConnectionTrait, DbBackend, FromQueryResult, Value};
use uuid::Uuid;

use super::log::{items_of_bytes, items_to_bytes, log_of_bytes, log_to_bytes};
use crate::domain::order::{CardToken, Head, Payment, Placed, Progress, Status};
use crate::domain::saga::{Cause, Saga, State};

/// An order, as it was placed and as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    pub placed: Arc<Placed>,
    pub progress: Progress,
}

const CAUSES: [Cause; 4] = [Cause::StepFailed, Cause::TimedOut, Cause::Cancelled, Cause::GivenUp];

/// The place of a value among all, counted from 1.
fn number<T: PartialEq>(all: &[T], one: T) -> i64 {
    all.iter().position(|other| *other == one).map_or(0, |place| place as i64 + 1)
}

fn of_number<T: Copy>(all: &[T], number: i64) -> Option<T> {
    all.get(usize::try_from(number).ok()?.checked_sub(1)?).copied()
}

/// What the indexes need of the state of a saga.
const fn class(state: State) -> i64 {
    match state {
        State::Completed => 0,
        State::Started | State::InventoryReserved | State::PaymentProcessing | State::Compensating => 1,
        State::Compensated => 2,
        State::Failed => 3,
    }
}

/// The clock by which sagas are due, Unix microseconds: on PostgreSQL the server's, which all replicas share.
const NOW_POSTGRES: &str = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

/// The time by that clock.
pub async fn now_us(on: &impl ConnectionTrait) -> Result<i64, Error> {
    #[derive(FromQueryResult)]
    struct Now {
        now_us: i64,
    }
    if on.get_database_backend() == DbBackend::Sqlite {
        return Ok(clock::now_us());
    }
    let now: Option<Now> = one(on, &format!("SELECT {NOW_POSTGRES} AS now_us"), []).await?;
    now.map(|now| now.now_us).ok_or_else(|| Error::corrupt("a server without a clock"))
}

#[derive(FromQueryResult)]
struct PlacedRow {
    id: Uuid,
    owner_id: Uuid,
    external_id: String,
    request_hash: Vec<u8>,
    correlation_id: String,
    traceparent: String,
    items: Vec<u8>,
    currency_code: String,
    total: i64,
    account_id: Option<Uuid>,
    card_token: String,
    store_id: String,
    create_time_us: i64,
    deadline_us: i64,
}

#[derive(FromQueryResult)]
struct ProgressRow {
    id: Uuid,
    status: i64,
    saga_state: i64,
    saga_cause: i64,
    reason: String,
    detail: String,
    saga_log: Vec<u8>,
    payment_id: Option<Uuid>,
    epoch: i64,
    due_us: i64,
    version: i64,
    hash: Vec<u8>,
    last_event_id: Uuid,
    update_time_us: i64,
}

#[derive(FromQueryResult)]
struct Row {
    #[sea_orm(nested)]
    placed: PlacedRow,
    #[sea_orm(nested)]
    progress: ProgressRow,
}

#[derive(FromQueryResult)]
struct Claimed {
    #[sea_orm(nested)]
    row: Row,
    now_us: i64,
}

const PLACED: &str = "id, owner_id, external_id, request_hash, correlation_id, traceparent, items, currency_code, total, account_id, card_token, store_id, \
                      create_time_us, deadline_us";
const PROGRESS: &str =
    "status, saga_state, saga_cause, reason, detail, saga_log, payment_id, epoch, due_us, version, hash, last_event_id, update_time_us";

impl PlacedRow {
    fn read(self) -> Result<Placed, Error> {
        let currency = Currency::from_code(&self.currency_code).ok_or_else(|| Error::corrupt("an order in no currency"))?;
        let payment = match self.account_id {
            Some(account_id) => Payment::Account(account_id),
            None => Payment::Card(Some(self.card_token).filter(|token| !token.is_empty()).map(CardToken)),
        };
        Ok(Placed {
            id: self.id,
            owner_id: self.owner_id,
            external_id: self.external_id,
            request_hash: self.request_hash.try_into().map_err(|_| Error::corrupt("a hash that has not 32 bytes"))?,
            correlation_id: self.correlation_id,
            traceparent: self.traceparent,
            items: items_of_bytes(&self.items)?,
            total: Amount::new(Minor::new(self.total), currency),
            payment,
            store_id: Some(self.store_id).filter(|store_id| !store_id.is_empty()),
            create_time_us: self.create_time_us,
            deadline_us: self.deadline_us,
        })
    }
}

impl ProgressRow {
    fn read(self) -> Result<Progress, Error> {
        let corrupt = |what: &'static str| Error::corrupt(what);
        let (steps, undos) = log_of_bytes(&self.saga_log)?;
        let saga = Saga {
            state: of_number(&State::ALL, self.saga_state).ok_or_else(|| corrupt("a saga in no state"))?,
            cause: of_number(&CAUSES, self.saga_cause),
            reason: self.reason,
            detail: self.detail,
            steps,
            undos,
        };
        let hash = self.hash.try_into().map_err(|_| corrupt("a hash that has not 32 bytes"))?;
        Ok(Progress {
            status: of_number(&Status::ALL, self.status).ok_or_else(|| corrupt("an order without a status"))?,
            saga,
            payment_id: self.payment_id,
            epoch: self.epoch,
            due_us: self.due_us,
            head: Some(Head { event_id: self.last_event_id, version: self.version, hash }),
            update_time_us: self.update_time_us,
        })
    }
}

impl Row {
    fn read(self) -> Result<Order, Error> {
        Ok(Order { placed: Arc::new(self.placed.read()?), progress: self.progress.read()? })
    }
}

/// Adds orders with their first events.
pub async fn insert(on: &impl ConnectionTrait, orders: &[&Order]) -> Result<(), Error> {
    let columns = [
        ("id", Type::Uuid),
        ("owner_id", Type::Uuid),
        ("external_id", Type::Text),
        ("request_hash", Type::Bytes),
        ("correlation_id", Type::Text),
        ("traceparent", Type::Text),
        ("items", Type::Bytes),
        ("currency_code", Type::Text),
        ("total", Type::BigInt),
        ("account_id", Type::OptionalUuid),
        ("card_token", Type::Text),
        ("store_id", Type::Text),
        ("create_time_us", Type::BigInt),
        ("deadline_us", Type::BigInt),
        ("status", Type::BigInt),
        ("saga_state", Type::BigInt),
        ("saga_class", Type::BigInt),
        ("saga_cause", Type::BigInt),
        ("reason", Type::Text),
        ("detail", Type::Text),
        ("saga_log", Type::Bytes),
        ("epoch", Type::BigInt),
        ("due_us", Type::BigInt),
        ("version", Type::BigInt),
        ("hash", Type::Bytes),
        ("last_event_id", Type::Uuid),
        ("update_time_us", Type::BigInt),
    ];
    let row = |Order { placed, progress }: &&Order| -> Result<Vec<Value>, Error> {
        let head = progress.head.ok_or_else(|| Error::corrupt("an order without an event"))?;
        let (account_id, card_token) = match &placed.payment {
            Payment::Account(account_id) => (Some(*account_id), ""),
            Payment::Card(token) => (None, token.as_ref().map_or("", |token| token.0.as_str())),
        };
        Ok(vec![
            placed.id.into(),
            placed.owner_id.into(),
            placed.external_id.as_str().into(),
            placed.request_hash.to_vec().into(),
            placed.correlation_id.as_str().into(),
            placed.traceparent.as_str().into(),
            items_to_bytes(&placed.items).into(),
            placed.total.currency().code().into(),
            placed.total.minor().get().into(),
            account_id.into(),
            card_token.into(),
            placed.store_id.as_deref().unwrap_or_default().into(),
            placed.create_time_us.into(),
            placed.deadline_us.into(),
            number(&Status::ALL, progress.status).into(),
            number(&State::ALL, progress.saga.state).into(),
            class(progress.saga.state).into(),
            cause_number(progress.saga.cause).into(),
            progress.saga.reason.as_str().into(),
            progress.saga.detail.as_str().into(),
            log_to_bytes(&progress.saga).into(),
            progress.epoch.into(),
            progress.due_us.into(),
            head.version.into(),
            head.hash.to_vec().into(),
            head.event_id.into(),
            progress.update_time_us.into(),
        ])
    };
    let rows = orders.iter().map(row).collect::<Result<_, _>>()?;
    insert_rows(on, "orders", &columns, "", rows).await.map(|_| ())
}

fn cause_number(cause: Option<Cause>) -> i64 {
    cause.map_or(0, |cause| number(&CAUSES, cause))
}

/// An order that is locked as it is to be, and its epoch and version when it was locked. Where it has others, nothing is written at all.
pub struct Change<'a> {
    pub id: Uuid,
    pub from_epoch: i64,
    pub from_version: i64,
    pub progress: &'a Progress,
}

/// Writes orders that are locked. The token of a card goes when the saga ends.
pub async fn update(on: &impl ConnectionTrait, changes: &[Change<'_>]) -> Result<(), Error> {
    let columns = [
        ("id", Type::Uuid),
        ("from_epoch", Type::BigInt),
        ("from_version", Type::BigInt),
        ("status", Type::BigInt),
        ("saga_state", Type::BigInt),
        ("saga_class", Type::BigInt),
        ("saga_cause", Type::BigInt),
        ("reason", Type::Text),
        ("detail", Type::Text),
        ("saga_log", Type::Bytes),
        ("payment_id", Type::Uuid),
        ("epoch", Type::BigInt),
        ("due_us", Type::BigInt),
        ("version", Type::BigInt),
        ("hash", Type::Bytes),
        ("last_event_id", Type::Uuid),
        ("update_time_us", Type::BigInt),
    ];
    // The nil UUID is no payment.
    let nil = if on.get_database_backend() == DbBackend::Postgres { "'00000000-0000-0000-0000-000000000000'::uuid" } else { "zeroblob(16)" };
    let set = format!(
        "status = u.status, saga_state = u.saga_state, saga_class = u.saga_class, saga_cause = u.saga_cause, reason = u.reason, detail = u.detail, \
         saga_log = u.saga_log, payment_id = NULLIF(u.payment_id, {nil}), epoch = u.epoch, due_us = u.due_us, version = u.version, hash = u.hash, \
         last_event_id = u.last_event_id, update_time_us = u.update_time_us, card_token = CASE WHEN u.saga_class = 1 THEN t.card_token ELSE '' END"
    );
    let row = |change: &Change<'_>| -> Result<Vec<Value>, Error> {
        let progress = change.progress;
        let head = progress.head.ok_or_else(|| Error::corrupt("an order without an event"))?;
        Ok(vec![
            change.id.into(),
            change.from_epoch.into(),
            change.from_version.into(),
            number(&Status::ALL, progress.status).into(),
            number(&State::ALL, progress.saga.state).into(),
            class(progress.saga.state).into(),
            cause_number(progress.saga.cause).into(),
            progress.saga.reason.as_str().into(),
            progress.saga.detail.as_str().into(),
            log_to_bytes(&progress.saga).into(),
            progress.payment_id.unwrap_or(Uuid::nil()).into(),
            progress.epoch.into(),
            progress.due_us.into(),
            head.version.into(),
            head.hash.to_vec().into(),
            head.event_id.into(),
            progress.update_time_us.into(),
        ])
    };
    let rows = changes.iter().map(row).collect::<Result<_, _>>()?;
    let condition = "t.id = u.id AND t.epoch = u.from_epoch AND t.version = u.from_version";
    let updated = update_rows(on, "orders", &columns, (&set, condition), rows).await?;
    Error::expect_rows(changes.len() as u64, updated)
}

/// Locks orders in the order of their ids, which must be sorted: where each stands. What is missing was not locked, or is not there.
pub async fn lock(on: &impl ConnectionTrait, ids: &[Uuid], lock: Lock) -> Result<Vec<(Uuid, Progress)>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let for_update = match (on.get_database_backend(), lock) {
        (DbBackend::Postgres, Lock::Skip) => " FOR UPDATE SKIP LOCKED",
        (DbBackend::Postgres, Lock::Wait) => " FOR UPDATE",
        _ => "",
    };
    let rows: Vec<ProgressRow> =
        all_of_ids(on, &format!("SELECT id, {PROGRESS} FROM orders WHERE id {{ids}} ORDER BY id{for_update}"), ids, []).await?;
    rows.into_iter().map(|row| Ok((row.id, row.read()?))).collect()
}

/// The order that its owner has placed with this key.
pub async fn by_key(on: &impl ConnectionTrait, owner_id: Uuid, external_id: &str) -> Result<Option<Order>, Error> {
    let sql = format!("SELECT {PLACED}, {PROGRESS} FROM orders WHERE owner_id = $1 AND external_id = $2");
    one::<Row>(on, &sql, [owner_id.into(), external_id.into()]).await?.map(Row::read).transpose()
}

/// The orders that their owners have placed with these keys.
pub async fn by_keys(on: &impl ConnectionTrait, keys: &[(Uuid, &str)]) -> Result<Vec<Order>, Error> {
    let mut found = Vec::new();
    for (owner_id, external_id) in keys {
        found.extend(by_key(on, *owner_id, external_id).await?);
    }
    Ok(found)
}

/// Reads of single orders as they stand, which share statements.
pub fn loader(database: &Database) -> BatchLoader<Order> {
    let database = database.clone();
    BatchLoader::new(move |ids| {
        let database = database.clone();
        Box::pin(async move {
            let rows: Vec<Row> =
                all_of_ids(database.writer(), &format!("SELECT {PLACED}, {PROGRESS} FROM orders WHERE id {{ids}}"), &ids, []).await?;
            Ok(rows.into_iter().map(|row| (row.placed.id, row.read())).collect())
        })
    })
}

/// How many events orders have.
pub async fn versions(on: &impl ConnectionTrait, ids: &[Uuid]) -> Result<Vec<(Uuid, i64)>, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        id: Uuid,
        version: i64,
    }
    let found: Vec<Found> = all_of_ids(on, "SELECT id, version FROM orders WHERE id {ids}", ids, []).await?;
    Ok(found.into_iter().map(|found| (found.id, found.version)).collect())
}

/// Whether an order has this last event, or more of them.
pub async fn has_version(on: &impl ConnectionTrait, id: Uuid, version: i64, event_id: Uuid) -> Result<bool, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        id: Uuid,
    }
    let sql = "SELECT id FROM order_events WHERE aggregate_id = $1 AND version = $2";
    Ok(one::<Found>(on, sql, [id.into(), version.into()]).await?.is_some_and(|found| found.id == event_id))
}

/// Takes sagas up that are due, by turns of their owners, those that waited longest first: one who has many does not keep the others. Each with the time by the clock of the database: whoever had them has them no more, and nobody else takes them until the lease ends.
pub async fn claim(database: &Database, limit: u32, lease_us: i64) -> Result<Vec<(Order, i64)>, Error> {
    let (now, lock) = if database.is_postgres() { (NOW_POSTGRES.to_owned(), " FOR UPDATE SKIP LOCKED") } else { (clock::now_us().to_string(), "") };
    // One that is due far ahead was written before the clock was set back.
    let due = format!("saga_class = 1 AND (due_us <= {now} OR due_us > {now} + {DUE_AT_MOST_US})");
    let by_turns = format!(
        "SELECT id FROM (SELECT id, due_us, row_number() OVER (PARTITION BY owner_id ORDER BY due_us) AS turn FROM \
         (SELECT id, owner_id, due_us FROM orders WHERE {due} ORDER BY due_us LIMIT {DUE_AT_ONCE}) AS due) AS ranked ORDER BY turn, due_us LIMIT {limit}"
    );
    let sql = format!(
        "UPDATE orders SET epoch = epoch + 1, due_us = {now} + {lease_us} WHERE id IN \
         (SELECT id FROM orders WHERE id IN ({by_turns}) AND {due}{lock}) RETURNING {PLACED}, {PROGRESS}, {now} AS now_us"
    );
    let rows: Vec<Claimed> = all(database.writer(), &sql, []).await?;
    let readable = |Claimed { row, now_us }: Claimed| {
        let id = row.placed.id;
        // One that a newer version wrote does not keep the others.
        let order = row.read().inspect_err(|error| tracing::error!(%error, order = %id, "an order does not read; its saga does not go on here"));
        Some((order.ok()?, now_us))
    };
    Ok(rows.into_iter().filter_map(readable).collect())
}

/// Of sagas that are due, so many that have waited longest are ranked by the turns of their owners.
const DUE_AT_ONCE: u32 = 5_000;
/// No saga is left alone for longer: neither a lease nor a pause lasts that long.
const DUE_AT_MOST_US: i64 = 150_000_000;

/// Orders whose sagas are in a state, or in any, newest first.
pub async fn list_by_saga(on: &impl ConnectionTrait, state: Option<State>, page: Page) -> Result<Vec<Order>, Error> {
    let before = page.before.unwrap_or(Uuid::max());
    let condition = match state {
        None => String::new(),
        // Almost all are completed: the primary key finds them.
        Some(State::Completed) => " AND saga_class = 0".to_owned(),
        Some(state) => format!(" AND saga_class <> 0 AND saga_class = {} AND saga_state = {}", class(state), number(&State::ALL, state)),
    };
    let sql = format!("SELECT {PLACED}, {PROGRESS} FROM orders WHERE id < $1{condition} ORDER BY id DESC LIMIT {}", page.limit());
    let rows: Vec<Row> = all(on, &sql, [before.into()]).await?;
    rows.into_iter().map(Row::read).collect()
}

/// How many sagas are open, and when the oldest of them was placed.
pub async fn count_open(on: &impl ConnectionTrait) -> Result<(i64, i64, Option<i64>), Error> {
    #[derive(FromQueryResult)]
    struct Counts {
        open: i64,
        failed: i64,
        oldest_us: Option<i64>,
    }
    let sql = "SELECT count(CASE WHEN saga_class = 1 THEN 1 END) AS open, count(CASE WHEN saga_class = 3 THEN 1 END) AS failed, \
               min(CASE WHEN saga_class = 1 THEN create_time_us END) AS oldest_us FROM orders WHERE saga_class <> 0 AND saga_class IN (1, 3)";
    Ok(one::<Counts>(on, sql, []).await?.map_or((0, 0, None), |counts| (counts.open, counts.failed, counts.oldest_us)))
}
