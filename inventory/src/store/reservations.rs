//! The table `reservations`.

use lastro_database::batch_loader::BatchLoader;
use lastro_database::group_commit::Lock;
use lastro_database::rows::{Type, all_of_ids, insert_rows, update_rows};
use lastro_database::{Database, Error, all, one};
use sea_orm::{ConnectionTrait, FromQueryResult};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{for_update, hash};
use crate::domain::reservation::{PUBLIC, State};
use crate::domain::stock::stock_id;

/// A reservation, as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Reservation {
    pub id: Uuid,
    /// Where its name is unique: nil for everybody's, or a saga.
    pub namespace: Uuid,
    pub name: String,
    /// Of the call that made it.
    pub call_id: Uuid,
    /// None of a tombstone, which an undo has left before anything was done.
    pub request_hash: Option<[u8; 32]>,
    pub state: State,
    pub items: Vec<Item>,
    pub expire_time_us: i64,
    pub create_time_us: i64,
    pub update_time_us: i64,
}

impl Reservation {
    /// What events call it: its name, after the saga that it belongs to.
    pub fn full_name(&self) -> String {
        if self.namespace == PUBLIC { self.name.clone() } else { format!("{}/{}", self.namespace, self.name) }
    }

    /// The products of its items.
    pub fn products(&self) -> Vec<Uuid> {
        self.items.iter().map(|item| item.product_id).collect()
    }
}

/// Pieces that it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub product_id: Uuid,
    pub store_id: String,
    pub stock_id: Uuid,
    pub quantity: i64,
}

const STATES: [State; 5] = [State::Reserved, State::Confirmed, State::Released, State::Expired, State::Returned];

const fn state_number(state: State) -> i64 {
    match state {
        State::Reserved => 1,
        State::Confirmed => 2,
        State::Released => 3,
        State::Expired => 4,
        State::Returned => 5,
    }
}

#[derive(FromQueryResult)]
struct Row {
    id: Uuid,
    namespace: Uuid,
    name: String,
    call_id: Uuid,
    request_hash: Vec<u8>,
    state: i64,
    items: String,
    expire_time_us: i64,
    create_time_us: i64,
    update_time_us: i64,
}

const SELECT: &str =
    "SELECT id, namespace, name, call_id, request_hash, state, items, expire_time_us, create_time_us, update_time_us FROM reservations";

const COLUMNS: &[(&str, Type)] = &[
    ("id", Type::Uuid),
    ("namespace", Type::Uuid),
    ("name", Type::Text),
    ("call_id", Type::Uuid),
    ("request_hash", Type::Bytes),
    ("state", Type::BigInt),
    ("items", Type::Text),
    ("expire_time_us", Type::BigInt),
    ("create_time_us", Type::BigInt),
    ("update_time_us", Type::BigInt),
];

impl Row {
    fn read(self) -> Result<Reservation, Error> {
        let state = STATES.into_iter().find(|state| state_number(*state) == self.state).ok_or_else(|| Error::corrupt("a state that is none"))?;
        let request_hash = if self.request_hash.is_empty() { None } else { Some(hash(self.request_hash)?) };
        Ok(Reservation {
            id: self.id,
            namespace: self.namespace,
            name: self.name,
            call_id: self.call_id,
            request_hash,
            state,
            items: items_of_text(&self.items).ok_or_else(|| Error::corrupt("items that do not read"))?,
            expire_time_us: self.expire_time_us,
            create_time_us: self.create_time_us,
            update_time_us: self.update_time_us,
        })
    }
}

fn items_to_text(items: &[Item]) -> String {
    items.iter().map(|item| json!([item.product_id, item.store_id, item.quantity])).collect::<Value>().to_string()
}

fn items_of_text(text: &str) -> Option<Vec<Item>> {
    let items: Vec<(Uuid, String, i64)> = serde_json::from_str::<Vec<Value>>(text).ok()?.iter().map(read_item).collect::<Option<_>>()?;
    let item =
        |(product_id, store_id, quantity): (Uuid, String, i64)| Item { stock_id: stock_id(product_id, &store_id), product_id, store_id, quantity };
    Some(items.into_iter().map(item).collect())
}

fn read_item(item: &Value) -> Option<(Uuid, String, i64)> {
    Some((item[0].as_str()?.parse().ok()?, item[1].as_str()?.to_owned(), item[2].as_i64()?))
}

/// An error of kind `Unique` where one of them exists.
pub async fn insert(on: &impl ConnectionTrait, reservations: &[&Reservation]) -> Result<(), Error> {
    let row = |one: &&Reservation| {
        vec![
            one.id.into(),
            one.namespace.into(),
            one.name.clone().into(),
            one.call_id.into(),
            one.request_hash.map(|hash| hash.to_vec()).unwrap_or_default().into(),
            state_number(one.state).into(),
            items_to_text(&one.items).into(),
            one.expire_time_us.into(),
            one.create_time_us.into(),
            one.update_time_us.into(),
        ]
    };
    insert_rows(on, "reservations", COLUMNS, "", reservations.iter().map(row).collect()).await.map(|_| ())
}

/// Writes the states of reservations that are locked, each with the one that it had. Where one has another, nothing is written at all.
pub async fn update_states(on: &impl ConnectionTrait, changed: &[(&Reservation, State)]) -> Result<(), Error> {
    let columns = [("id", Type::Uuid), ("from_state", Type::BigInt), ("state", Type::BigInt), ("update_time_us", Type::BigInt)];
    let how = ("state = u.state, update_time_us = u.update_time_us", "t.id = u.id AND t.state = u.from_state");
    let row = |(one, from): &(&Reservation, State)| {
        vec![one.id.into(), state_number(*from).into(), state_number(one.state).into(), one.update_time_us.into()]
    };
    let updated = update_rows(on, "reservations", &columns, how, changed.iter().map(row).collect()).await?;
    Error::expect_rows(changed.len() as u64, updated)
}

/// Those of these ids that exist.
pub async fn by_ids(on: &impl ConnectionTrait, ids: &[Uuid]) -> Result<Vec<Reservation>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<Row> = all_of_ids(on, &format!("{SELECT} WHERE id {{ids}}"), ids, []).await?;
    rows.into_iter().map(Row::read).collect()
}

/// Reads reservations as they are now; reads of many callers share a statement.
pub fn loader(database: &Database) -> BatchLoader<Reservation> {
    let database = database.clone();
    BatchLoader::new(move |ids| {
        let database = database.clone();
        Box::pin(async move {
            let rows: Vec<Row> = all_of_ids(database.writer(), &format!("{SELECT} WHERE id {{ids}}"), &ids, []).await?;
            Ok(rows.into_iter().map(|row| (row.id, row.read())).collect())
        })
    })
}

/// Locks reservations in the order of their ids. Those that are missing were not locked.
pub async fn lock(on: &impl ConnectionTrait, ids: &[Uuid], lock: Lock) -> Result<Vec<Reservation>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<Row> = all_of_ids(on, &format!("{SELECT} WHERE id {{ids}} ORDER BY id{}", for_update(on, lock)), ids, []).await?;
    rows.into_iter().map(Row::read).collect()
}

/// Reservations whose time is over, and that nobody has ended, those first that ran out first.
pub async fn expired(on: &impl ConnectionTrait, now_us: i64, limit: u32) -> Result<Vec<Reservation>, Error> {
    let sql = format!("{SELECT} WHERE state = 1 AND expire_time_us <= $1 ORDER BY expire_time_us LIMIT {limit}");
    let rows: Vec<Row> = all(on, &sql, [now_us.into()]).await?;
    // One that does not read does not keep the others.
    let readable = |row: Row| {
        let id = row.id;
        row.read().inspect_err(|error| tracing::error!(%error, reservation = %id, "a reservation does not read")).ok()
    };
    Ok(rows.into_iter().filter_map(readable).collect())
}

/// Whether a call has made a reservation.
pub async fn is_made_by(on: &impl ConnectionTrait, id: Uuid, call_id: Uuid) -> Result<bool, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        call_id: Uuid,
    }
    let found: Option<Found> = one(on, "SELECT call_id FROM reservations WHERE id = $1", [id.into()]).await?;
    Ok(found.is_some_and(|found| found.call_id == call_id))
}
