//! Products, stock with its events and snapshots, reservations, and the tables that publishing events needs.

use lastro_migrations::{event_table, publisher_tables, run_statements};
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run_statements(manager, TABLES).await?;
        event_table(manager, "product_events").await?;
        event_table(manager, "stock_events").await?;
        publisher_tables(manager).await
    }
}

const TABLES: &[&str] = &[
    "CREATE TABLE products (id {uuid} PRIMARY KEY, name {text} NOT NULL, description {text} NOT NULL, currency_code {text} NOT NULL, \
     price {bigint} NOT NULL, merchant_account_id {uuid} NOT NULL, active {bool} NOT NULL, create_time_us {bigint} NOT NULL, \
     update_time_us {bigint} NOT NULL, creator_id {uuid} NOT NULL, external_id {text}, request_hash {bytes}, \
     UNIQUE (creator_id, external_id), CHECK (price > 0)){strict}",
    "CREATE INDEX products_active ON products (active, id)",
    // One row a store and product: what its events come to. `id` is the aggregate of its events, `hash` that of the last one.
    "CREATE TABLE stock (id {uuid} PRIMARY KEY, product_id {uuid} NOT NULL, store_id {text} NOT NULL, on_hand {bigint} NOT NULL DEFAULT 0, \
     reserved {bigint} NOT NULL DEFAULT 0, version {bigint} NOT NULL DEFAULT 0, hash {bytes} NOT NULL, update_time_us {bigint} NOT NULL DEFAULT 0, \
     UNIQUE (product_id, store_id), CHECK (reserved >= 0), CHECK (on_hand >= reserved)){strict}",
    // What the stock was after every hundredth event, for reading an instant of the past without the whole stream. Retention: as the events.
    "CREATE TABLE stock_snapshots (stock_id {uuid} NOT NULL, version {bigint} NOT NULL, recorded_us {bigint} NOT NULL, on_hand {bigint} NOT NULL, \
     reserved {bigint} NOT NULL, PRIMARY KEY (stock_id, version)){strict}",
    "CREATE INDEX stock_snapshots_time ON stock_snapshots (stock_id, recorded_us)",
    // What was asked for with an idempotency key, and what it made. `id` is a hash of caller and key; `call_id` is of the call that made it, which tells
    // a repetition from the first answer. Retention: never deleted.
    "CREATE TABLE adjustments (id {uuid} PRIMARY KEY, call_id {uuid} NOT NULL, request_hash {bytes} NOT NULL, product_id {uuid} NOT NULL, \
     store_id {text} NOT NULL, on_hand {bigint} NOT NULL, reserved {bigint} NOT NULL, version {bigint} NOT NULL, create_time_us {bigint} NOT NULL){strict}",
    // `id` is a hash of namespace and name. `state` is 1 reserved, 2 confirmed, 3 released, 4 expired, 5 returned. A tombstone is released, has no items, and
    // an empty hash. Retention: never deleted.
    "CREATE TABLE reservations (id {uuid} PRIMARY KEY, namespace {uuid} NOT NULL, name {text} NOT NULL, call_id {uuid} NOT NULL, \
     request_hash {bytes} NOT NULL, state {bigint} NOT NULL, items {text} NOT NULL, expire_time_us {bigint} NOT NULL, create_time_us {bigint} NOT NULL, \
     update_time_us {bigint} NOT NULL, CHECK (state BETWEEN 1 AND 5)){strict}",
    "CREATE INDEX reservations_expiring ON reservations (expire_time_us) WHERE state = 1",
    // The highest epoch that a saga has called with. Retention: never deleted.
    "CREATE TABLE sagas (id {uuid} PRIMARY KEY, epoch {bigint} NOT NULL){strict}",
];
