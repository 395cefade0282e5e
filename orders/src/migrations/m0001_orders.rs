//! Orders with their sagas, their events, and the tables that publishing events needs.

use lastro_migrations::{Dialect, event_table, publisher_tables, run_statements};
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // Each order is changed three times and more: room beside it keeps its new versions on its page, and out of the indexes.
        let room = if Dialect::of(manager).is_postgres() { " WITH (fillfactor = 40)" } else { "{strict}" };
        run_statements(manager, &[&format!("{ORDERS}{room}"), DUE, NOT_COMPLETED]).await?;
        event_table(manager, "order_events").await?;
        publisher_tables(manager).await
    }
}

/// An order and its saga are one row: whoever changes one of the two has locked both. What was placed never changes; of it, `card_token` is removed when
/// the saga has ended. `saga_class` is 0 completed, 1 open, 2 compensated, 3 failed: what the indexes need of `saga_state`, and changed only when the saga
/// ends. `due_us` is when another replica may take an open saga up. Retention: never deleted.
const ORDERS: &str = "CREATE TABLE orders (id {uuid} PRIMARY KEY, owner_id {uuid} NOT NULL, external_id {text} NOT NULL, request_hash {bytes} NOT NULL, \
     correlation_id {text} NOT NULL, traceparent {text} NOT NULL, items {bytes} NOT NULL, currency_code {text} NOT NULL, total {bigint} NOT NULL, \
     account_id {uuid}, card_token {text} NOT NULL, store_id {text} NOT NULL, create_time_us {bigint} NOT NULL, deadline_us {bigint} NOT NULL, status {bigint} NOT NULL, \
     saga_state {bigint} NOT NULL, saga_class {bigint} NOT NULL, saga_cause {bigint} NOT NULL, reason {text} NOT NULL, detail {text} NOT NULL, \
     saga_log {bytes} NOT NULL, payment_id {uuid}, epoch {bigint} NOT NULL, due_us {bigint} NOT NULL, version {bigint} NOT NULL, hash {bytes} NOT NULL, \
     last_event_id {uuid} NOT NULL, update_time_us {bigint} NOT NULL, UNIQUE (owner_id, external_id), CHECK (total > 0), CHECK (status BETWEEN 1 AND 6), \
     CHECK (saga_state BETWEEN 1 AND 7), CHECK (saga_class BETWEEN 0 AND 3), CHECK (saga_class = 1 OR card_token = ''))";

const DUE: &str = "CREATE INDEX orders_due ON orders (due_us) WHERE saga_class = 1";
const NOT_COMPLETED: &str = "CREATE INDEX orders_not_completed ON orders (saga_class, id) WHERE saga_class <> 0";
