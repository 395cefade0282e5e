//! The table `products`.

use lastro_database::batch_loader::BatchLoader;
use lastro_database::group_commit::Lock;
use lastro_database::rows::all_of_ids;
use lastro_database::{Database, Error, Transaction, all, execute, one};
use lastro_events::{EventStore, NewEvent};
use lastro_mesh::clock;
use lastro_mesh::page::Page;
use lastro_money::{Amount, Currency, Minor};
use lastro_proto::inventory::events::v1::{ProductCreated, ProductEvent, ProductState, ProductUpdated, product_event};
use prost::Message as _;
use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use uuid::Uuid;

use super::{for_update, hash};
use crate::domain::product::Product;

/// What inventory tells of products.
pub const PRODUCT_EVENTS: EventStore = EventStore { table: "product_events", topic: "products", message: "lastro.inventory.events.v1.ProductEvent" };

/// An idempotency key of a caller, and the SHA-256 of what was asked for with it.
#[derive(Debug, Clone)]
pub struct Key {
    pub external_id: String,
    pub request_hash: [u8; 32],
}

#[derive(FromQueryResult)]
struct Row {
    id: Uuid,
    name: String,
    description: String,
    currency_code: String,
    price: i64,
    merchant_account_id: Uuid,
    active: bool,
    create_time_us: i64,
    update_time_us: i64,
}

const SELECT: &str = "SELECT id, name, description, currency_code, price, merchant_account_id, active, create_time_us, update_time_us FROM products";

impl Row {
    fn read(self) -> Result<Product, Error> {
        let currency = Currency::from_code(&self.currency_code).ok_or_else(|| Error::corrupt("a currency that is none"))?;
        Ok(Product {
            id: self.id,
            name: self.name,
            description: self.description,
            price: Amount::new(Minor::new(self.price), currency),
            merchant_account_id: self.merchant_account_id,
            active: self.active,
            create_time_us: self.create_time_us,
            update_time_us: self.update_time_us,
        })
    }
}

/// Adds a product with its event. An error of kind `Unique` when its creator has used the key.
pub async fn insert(tx: &Transaction, product: &Product, creator_id: Uuid, key: Option<&Key>, correlation_id: &str) -> Result<(), Error> {
    let sql = "INSERT INTO products (id, name, description, currency_code, price, merchant_account_id, active, create_time_us, update_time_us, \
               creator_id, external_id, request_hash) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
    let values: [Value; 12] = [
        product.id.into(),
        product.name.clone().into(),
        product.description.clone().into(),
        product.price.currency().code().into(),
        product.price.minor().get().into(),
        product.merchant_account_id.into(),
        product.active.into(),
        product.create_time_us.into(),
        product.update_time_us.into(),
        creator_id.into(),
        key.map(|key| key.external_id.clone()).into(),
        key.map(|key| key.request_hash.to_vec()).into(),
    ];
    execute(tx, sql, values).await?;
    let created = product_event::Event::Created(ProductCreated { product: Some(state(product)) });
    append(tx, product, ("CREATED", created), correlation_id).await
}

/// Changes a product that is locked, with its event.
pub async fn update(tx: &Transaction, product: &Product, correlation_id: &str) -> Result<(), Error> {
    let sql = "UPDATE products SET name = $2, description = $3, currency_code = $4, price = $5, merchant_account_id = $6, active = $7, \
               update_time_us = $8 WHERE id = $1";
    let values: [Value; 8] = [
        product.id.into(),
        product.name.clone().into(),
        product.description.clone().into(),
        product.price.currency().code().into(),
        product.price.minor().get().into(),
        product.merchant_account_id.into(),
        product.active.into(),
        product.update_time_us.into(),
    ];
    Error::expect_rows(1, execute(tx, sql, values).await?)?;
    let updated = product_event::Event::Updated(ProductUpdated { product: Some(state(product)) });
    append(tx, product, ("UPDATED", updated), correlation_id).await
}

async fn append(tx: &Transaction, product: &Product, (kind, event): (&'static str, product_event::Event), correlation_id: &str) -> Result<(), Error> {
    let event = NewEvent {
        id: clock::new_id(),
        kind,
        payload: ProductEvent { event: Some(event) }.encode_to_vec(),
        correlation_id: correlation_id.to_owned(),
        causation_id: None,
        recorded_us: product.update_time_us,
    };
    PRODUCT_EVENTS.append(tx, product.id, event).await.map(|_| ())
}

fn state(product: &Product) -> ProductState {
    ProductState {
        name: product.name.clone(),
        description: product.description.clone(),
        currency_code: product.price.currency().code().to_owned(),
        price_minor: product.price.minor().get(),
        merchant_account_id: product.merchant_account_id.to_string(),
        active: product.active,
    }
}

/// One product.
pub async fn get(on: &impl ConnectionTrait, id: Uuid) -> Result<Option<Product>, Error> {
    one::<Row>(on, &format!("{SELECT} WHERE id = $1"), [id.into()]).await?.map(Row::read).transpose()
}

/// Reads products as they are now; reads of many callers share a statement.
pub fn loader(database: &Database) -> BatchLoader<Product> {
    let database = database.clone();
    BatchLoader::new(move |ids| {
        let database = database.clone();
        Box::pin(async move {
            let rows: Vec<Row> = all_of_ids(database.writer(), &format!("{SELECT} WHERE id {{ids}}"), &ids, []).await?;
            Ok(rows.into_iter().map(|row| (row.id, row.read())).collect())
        })
    })
}

/// Locks a product until the transaction ends; as it is then. None where there is none, or where it is left out because somebody else has locked it.
pub async fn lock(tx: &Transaction, id: Uuid, lock: Lock) -> Result<Option<Product>, Error> {
    one::<Row>(tx, &format!("{SELECT} WHERE id = $1{}", for_update(tx, lock)), [id.into()]).await?.map(Row::read).transpose()
}

/// The product that its creator added with this key, and the hash of what it asked for.
pub async fn by_key(on: &impl ConnectionTrait, creator_id: Uuid, external_id: &str) -> Result<Option<(Product, [u8; 32])>, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        id: Uuid,
        request_hash: Vec<u8>,
    }
    let sql = "SELECT id, request_hash FROM products WHERE creator_id = $1 AND external_id = $2";
    let Some(found) = one::<Found>(on, sql, [creator_id.into(), external_id.into()]).await? else { return Ok(None) };
    let product = get(on, found.id).await?.ok_or_else(|| Error::corrupt("a product that has gone"))?;
    Ok(Some((product, hash(found.request_hash)?)))
}

/// A page of products, newest first.
pub async fn list(on: &impl ConnectionTrait, active: Option<bool>, page: Page) -> Result<Vec<Product>, Error> {
    let before = Value::from(page.before.unwrap_or(Uuid::max()));
    let limit = page.limit();
    let rows: Vec<Row> = match active {
        None => all(on, &format!("{SELECT} WHERE id < $1 ORDER BY id DESC LIMIT {limit}"), [before]).await?,
        Some(active) => all(on, &format!("{SELECT} WHERE active = $2 AND id < $1 ORDER BY id DESC LIMIT {limit}"), [before, active.into()]).await?,
    };
    rows.into_iter().map(Row::read).collect()
}
