//! The tables `stock`, `stock_events` and `stock_snapshots`.

use lastro_database::batch_loader::BatchLoader;
use lastro_database::group_commit::Lock;
use lastro_database::rows::{Type, all_of_ids, insert_rows, update_rows};
use lastro_database::{Database, Error, all, one};
use lastro_events::event::{Event, GENESIS};
use lastro_events::{EventStore, NewEvent};
use lastro_mesh::clock;
use lastro_proto::inventory::events::v1::{
    StockAdded, StockCommitted, StockEvent, StockReleased, StockRemoved, StockReserved, StockReturned, stock_event,
};
use prost::Message as _;
use sea_orm::{ConnectionTrait, FromQueryResult};
use uuid::Uuid;

use super::{for_update, hash};
use crate::domain::stock::{Happening, Stock};

/// What inventory tells of stock.
pub const STOCK_EVENTS: EventStore = EventStore { table: "stock_events", topic: "stock", message: "lastro.inventory.events.v1.StockEvent" };

/// Events between two snapshots.
pub const SNAPSHOT_EVERY: i64 = 100;

/// The stock of a product in a store.
#[derive(Debug, Clone, PartialEq)]
pub struct StockRow {
    pub id: Uuid,
    pub product_id: Uuid,
    pub store_id: String,
    pub stock: Stock,
    /// Of its last event.
    pub hash: [u8; 32],
    /// Of its last event.
    pub update_time_us: i64,
}

#[derive(FromQueryResult)]
struct Row {
    id: Uuid,
    product_id: Uuid,
    store_id: String,
    on_hand: i64,
    reserved: i64,
    version: i64,
    hash: Vec<u8>,
    update_time_us: i64,
}

const SELECT: &str = "SELECT id, product_id, store_id, on_hand, reserved, version, hash, update_time_us FROM stock";

impl Row {
    fn read(self) -> Result<StockRow, Error> {
        let stock = Stock { on_hand: self.on_hand, reserved: self.reserved, version: self.version };
        let Self { id, product_id, store_id, update_time_us, .. } = self;
        Ok(StockRow { id, product_id, store_id, stock, hash: hash(self.hash)?, update_time_us })
    }
}

/// The stock of a product, by the name of the store.
pub async fn of_product(on: &impl ConnectionTrait, product_id: Uuid) -> Result<Vec<StockRow>, Error> {
    let rows: Vec<Row> = all(on, &format!("{SELECT} WHERE product_id = $1 ORDER BY store_id"), [product_id.into()]).await?;
    rows.into_iter().map(Row::read).collect()
}

/// The stores that products are in. Once it is in a store a product stays in it, also where none is left.
pub async fn stores_of(on: &impl ConnectionTrait, products: &[Uuid]) -> Result<Vec<(Uuid, String)>, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        product_id: Uuid,
        store_id: String,
    }
    let found: Vec<Found> = all_of_ids(on, "SELECT product_id, store_id FROM stock WHERE product_id {ids}", products, []).await?;
    Ok(found.into_iter().map(|found| (found.product_id, found.store_id)).collect())
}

/// The stores that products are in, by their names; reads of many callers share a statement. None of a product that there is not.
pub fn stores_loader(database: &Database) -> BatchLoader<Vec<String>> {
    #[derive(FromQueryResult)]
    struct Found {
        id: Uuid,
        store_id: Option<String>,
    }
    let database = database.clone();
    BatchLoader::new(move |ids| {
        let database = database.clone();
        Box::pin(async move {
            let sql = "SELECT p.id, s.store_id FROM products p LEFT JOIN stock s ON s.product_id = p.id WHERE p.id {ids} ORDER BY p.id, s.store_id";
            let found: Vec<Found> = all_of_ids(database.writer(), sql, &ids, []).await?;
            let mut stores: Vec<(Uuid, Result<Vec<String>, Error>)> = Vec::new();
            for Found { id, store_id } in found {
                match stores.last_mut() {
                    Some((last, Ok(stores))) if *last == id => stores.extend(store_id),
                    _ => stores.push((id, Ok(store_id.into_iter().collect()))),
                }
            }
            Ok(stores)
        })
    })
}

/// Locks stock in the order of its ids. What is missing was not locked, or is not there.
pub async fn lock(on: &impl ConnectionTrait, ids: &[Uuid], lock: Lock) -> Result<Vec<StockRow>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<Row> = all_of_ids(on, &format!("{SELECT} WHERE id {{ids}} ORDER BY id{}", for_update(on, lock)), ids, []).await?;
    rows.into_iter().map(Row::read).collect()
}

/// Makes stock of nothing, where it is not there yet: of each its id, product and store.
pub async fn make(on: &impl ConnectionTrait, new: &[(Uuid, Uuid, &str)]) -> Result<(), Error> {
    let columns = [("id", Type::Uuid), ("product_id", Type::Uuid), ("store_id", Type::Text), ("hash", Type::Bytes)];
    let row = |(id, product_id, store_id): &(Uuid, Uuid, &str)| vec![(*id).into(), (*product_id).into(), (*store_id).into(), GENESIS.to_vec().into()];
    insert_rows(on, "stock", &columns, "ON CONFLICT DO NOTHING", new.iter().map(row).collect()).await.map(|_| ())
}

/// How many stores a product is in: something has happened to it there.
pub async fn count_stores(on: &impl ConnectionTrait, product_id: Uuid) -> Result<i64, Error> {
    #[derive(FromQueryResult)]
    struct Count {
        count: i64,
    }
    let sql = "SELECT count(*) AS count FROM stock WHERE product_id = $1 AND version > 0";
    Ok(one::<Count>(on, sql, [product_id.into()]).await?.map_or(0, |found| found.count))
}

/// Writes stock that is locked, each with the version that it had. Where one has another, nothing is written at all.
pub async fn update(on: &impl ConnectionTrait, changed: &[(&StockRow, i64)]) -> Result<(), Error> {
    let columns = [
        ("id", Type::Uuid),
        ("from_version", Type::BigInt),
        ("on_hand", Type::BigInt),
        ("reserved", Type::BigInt),
        ("version", Type::BigInt),
        ("hash", Type::Bytes),
        ("update_time_us", Type::BigInt),
    ];
    let set = "on_hand = u.on_hand, reserved = u.reserved, version = u.version, hash = u.hash, update_time_us = u.update_time_us";
    let row = |(row, from_version): &(&StockRow, i64)| {
        let stock = row.stock;
        vec![
            row.id.into(),
            (*from_version).into(),
            stock.on_hand.into(),
            stock.reserved.into(),
            stock.version.into(),
            row.hash.to_vec().into(),
            row.update_time_us.into(),
        ]
    };
    let rows = changed.iter().map(row).collect();
    let updated = update_rows(on, "stock", &columns, (set, "t.id = u.id AND t.version = u.from_version"), rows).await?;
    Error::expect_rows(changed.len() as u64, updated)
}

/// Adds snapshots: what stock was after an event.
pub async fn insert_snapshots(on: &impl ConnectionTrait, snapshots: &[(Uuid, Stock, i64)]) -> Result<(), Error> {
    let columns =
        [("stock_id", Type::Uuid), ("version", Type::BigInt), ("recorded_us", Type::BigInt), ("on_hand", Type::BigInt), ("reserved", Type::BigInt)];
    let row = |(id, stock, recorded_us): &(Uuid, Stock, i64)| {
        vec![(*id).into(), stock.version.into(), (*recorded_us).into(), stock.on_hand.into(), stock.reserved.into()]
    };
    insert_rows(on, "stock_snapshots", &columns, "", snapshots.iter().map(row).collect()).await.map(|_| ())
}

/// What led to something that happened to stock.
#[derive(Debug, Clone)]
pub struct Cause<'a> {
    pub correlation_id: &'a str,
    /// The name of the reservation, if it belongs to one.
    pub reservation_id: &'a str,
    /// Whether the time of that was over.
    pub expired: bool,
}

/// Appends what happened to stock that is locked; `row` is as it was, and is brought up to it.
pub fn record(row: &mut StockRow, after: Stock, happening: Happening, cause: &Cause<'_>, now_us: i64) -> Event {
    let (quantity, reservation_id) = (happening.quantity(), cause.reservation_id.to_owned());
    let (kind, event) = match happening {
        Happening::Added(_) => ("ADDED", stock_event::Event::Added(StockAdded { quantity })),
        Happening::Removed(_) => ("REMOVED", stock_event::Event::Removed(StockRemoved { quantity })),
        Happening::Reserved(_) => ("RESERVED", stock_event::Event::ReservedFor(StockReserved { quantity, reservation_id })),
        Happening::Released(_) => ("RELEASED", stock_event::Event::Released(StockReleased { quantity, reservation_id, expired: cause.expired })),
        Happening::Committed(_) => ("COMMITTED", stock_event::Event::Committed(StockCommitted { quantity, reservation_id })),
        Happening::Returned(_) => ("RETURNED", stock_event::Event::Returned(StockReturned { quantity, reservation_id })),
    };
    let (product_id, store_id) = (row.product_id.to_string(), row.store_id.clone());
    let payload = StockEvent { product_id, store_id, on_hand: after.on_hand, reserved: after.reserved, event: Some(event) };
    // Times of one stream never go back, whatever the clocks of replicas say: an instant of the past has one stock.
    let recorded_us = now_us.max(row.update_time_us);
    let new = NewEvent {
        id: clock::new_id(),
        kind,
        payload: payload.encode_to_vec(),
        correlation_id: cause.correlation_id.to_owned(),
        causation_id: None,
        recorded_us,
    };
    let event = new.at(row.id, after.version, &row.hash);
    (row.stock, row.hash, row.update_time_us) = (after, event.hash, recorded_us);
    event
}

/// The stock of a product at an instant, by the name of the store: stores that had nothing happen to them by then are left out.
pub async fn of_product_at(on: &impl ConnectionTrait, product_id: Uuid, at_us: i64) -> Result<Vec<(String, Stock)>, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        store_id: String,
        version: i64,
        payload: Vec<u8>,
    }
    // From the last snapshot before that instant on: so many events at most, however long the stream is.
    let sql = format!(
        "SELECT s.store_id, e.version, e.payload FROM (SELECT id, store_id, coalesce((SELECT n.version FROM stock_snapshots n WHERE n.stock_id = stock.id \
         AND n.recorded_us <= $2 ORDER BY n.recorded_us DESC, n.version DESC LIMIT 1), 0) AS base FROM stock WHERE product_id = $1) s \
         JOIN stock_events e ON e.aggregate_id = s.id AND e.version >= s.base AND e.version <= s.base + {SNAPSHOT_EVERY} AND e.recorded_us <= $2 \
         ORDER BY s.store_id, e.version"
    );
    let found: Vec<Found> = all(on, &sql, [product_id.into(), at_us.into()]).await?;
    let mut stock: Vec<(String, Stock)> = Vec::new();
    for found in found {
        let event = StockEvent::decode(found.payload.as_slice()).map_err(|error| Error::corrupt(error.to_string()))?;
        let then = Stock { on_hand: event.on_hand, reserved: event.reserved, version: found.version };
        match stock.last_mut() {
            Some((store_id, last)) if *store_id == found.store_id => *last = then,
            _ => stock.push((found.store_id, then)),
        }
    }
    Ok(stock)
}

/// A part of the events of a stock, oldest first.
pub async fn events(database: &Database, id: Uuid, from_version: i64, limit: u32) -> Result<Vec<Event>, Error> {
    STOCK_EVENTS.stream_from(database, id, from_version, limit).await
}

/// Whether a stock has an event at this place.
pub async fn has_event(on: &impl ConnectionTrait, id: Uuid, version: i64, event_id: Uuid) -> Result<bool, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        id: Uuid,
    }
    let sql = "SELECT id FROM stock_events WHERE aggregate_id = $1 AND version = $2";
    Ok(one::<Found>(on, sql, [id.into(), version.into()]).await?.is_some_and(|found| found.id == event_id))
}
