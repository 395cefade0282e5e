//! Orders as they stand, what they are found by, and what is counted of them and sold.

use lastro_migrations::run_statements;
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run_statements(
            manager,
            &[
                // Orders as they stand, with how they were placed. `place` is when they were accepted (Unix microseconds, 64 bits), and then the second half of
                // the id: lists go by it. `digits` are those of the currency after the point. The nil UUID is no payment.
                "CREATE TABLE orders (id {uuid} PRIMARY KEY, place {uuid} NOT NULL, version {bigint} NOT NULL, customer_id {uuid} NOT NULL, status {bigint} NOT NULL, \
                 currency_code {text} NOT NULL, total {bigint} NOT NULL, created_us {bigint} NOT NULL, updated_us {bigint} NOT NULL, reason {text} NOT NULL, \
                 detail {text} NOT NULL, payment_id {uuid} NOT NULL, placed {bytes} NOT NULL, digits {bigint} NOT NULL){strict}",
                "CREATE INDEX orders_place ON orders (place)",
                "CREATE INDEX orders_customer ON orders (customer_id, place)",
                "CREATE INDEX orders_status ON orders (status, place)",
                "CREATE INDEX orders_open ON orders (created_us) WHERE status = 1",
                "CREATE TABLE order_items (product_id {uuid} NOT NULL, place {uuid} NOT NULL, PRIMARY KEY (product_id, place)){strict}",
                "CREATE TABLE order_words (word {text} NOT NULL, place {uuid} NOT NULL, PRIMARY KEY (word, place)){strict}",
                // Orders by the day on which they were accepted: where they stand now, and how their sagas went.
                "CREATE TABLE order_days (day {bigint} NOT NULL, currency_code {text} NOT NULL, pending {bigint} NOT NULL, completed {bigint} NOT NULL, \
                 shipped {bigint} NOT NULL, delivered {bigint} NOT NULL, cancelled {bigint} NOT NULL, failed {bigint} NOT NULL, \
                 revenue_billions {bigint} NOT NULL, revenue_rest {bigint} NOT NULL, decided {bigint} NOT NULL, compensated {bigint} NOT NULL, \
                 took_us {bigint} NOT NULL, newest_us {bigint} NOT NULL, PRIMARY KEY (day, currency_code)){strict}",
                // How many sagas of them took how long, in buckets of an eighth.
                "CREATE TABLE saga_times (day {bigint} NOT NULL, currency_code {text} NOT NULL, bucket {bigint} NOT NULL, sagas {bigint} NOT NULL, \
                 PRIMARY KEY (day, currency_code, bucket)){strict}",
                // What was sold of a product and paid to a merchant's account, by the day of completion; and what was given back, by the day of that.
                "CREATE TABLE sales (account_id {uuid} NOT NULL, day {bigint} NOT NULL, product_id {uuid} NOT NULL, product_name {text} NOT NULL, \
                 currency_code {text} NOT NULL, sold {bigint} NOT NULL, paid_billions {bigint} NOT NULL, paid_rest {bigint} NOT NULL, returned {bigint} NOT NULL, \
                 refunded_billions {bigint} NOT NULL, refunded_rest {bigint} NOT NULL, newest_us {bigint} NOT NULL, \
                 PRIMARY KEY (account_id, day, product_id)){strict}",
                "CREATE INDEX sales_day ON sales (day)",
            ],
        )
        .await
    }
}
