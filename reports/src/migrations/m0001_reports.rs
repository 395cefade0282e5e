//! Accounts, what was posted to them and what that comes to by day, transactions that have not ended, counts of transactions, and the tables that reading
//! events needs.

use lastro_migrations::{reader_tables, run_statements};
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run_statements(
            manager,
            &[
                // The one row says when these tables were begun, Unix microseconds, and in which time zone their days begin and end.
                "CREATE TABLE edition (one {bigint} PRIMARY KEY, begun_us {bigint} NOT NULL, time_zone {text} NOT NULL, CHECK (one = 1)){strict}",
                // `version` is that of the last event of the account.
                "CREATE TABLE accounts (id {uuid} PRIMARY KEY, owner_id {uuid} NOT NULL, currency_code {text} NOT NULL, is_system {bool} NOT NULL, \
                 opened_us {bigint} NOT NULL, version {bigint} NOT NULL){strict}",
                "CREATE INDEX accounts_owner ON accounts (owner_id, currency_code)",
                // How far the postings of an account have come without a gap; `ahead` are stored and wait for what is missing.
                "CREATE TABLE account_heads (account_id {uuid} PRIMARY KEY, version {bigint} NOT NULL, ahead {bigint} NOT NULL, balance {bigint} NOT NULL, \
                 record_us {bigint} NOT NULL){strict}",
                // What was posted to accounts of which it is not known yet that they were opened: empty, but for moments.
                "CREATE TABLE early_postings (account_id {uuid} NOT NULL, transaction_id {uuid} NOT NULL, PRIMARY KEY (account_id, transaction_id)){strict}",
                "CREATE INDEX early_postings_transaction ON early_postings (transaction_id)",
                // Days are counted from 1970-01-01. Retention: for ever.
                "CREATE TABLE entries (account_id {uuid} NOT NULL, account_version {bigint} NOT NULL, transaction_id {uuid} NOT NULL, posting {bigint} NOT NULL, \
                 operation_version {bigint} NOT NULL, kind {bigint} NOT NULL, amount {bigint} NOT NULL, balance {bigint} NOT NULL, effective_us {bigint} NOT NULL, \
                 record_us {bigint} NOT NULL, day {bigint} NOT NULL, description {text} NOT NULL, PRIMARY KEY (account_id, account_version)){strict}",
                "CREATE INDEX entries_in_order ON entries (account_id, effective_us, account_version)",
                // How far a settled transaction has come stands at its first entry.
                "CREATE UNIQUE INDEX entries_transaction ON entries (transaction_id) WHERE posting = 0",
                // A day of an account, apart by the day (in UTC) on which it was recorded, so that what was known at an instant can be told. Sums are two
                // numbers: billions, and the rest. `last_version` is the last posting of the account that is in it.
                "CREATE TABLE daily_balances (account_id {uuid} NOT NULL, day {bigint} NOT NULL, record_day {bigint} NOT NULL, \
                 credits_billions {bigint} NOT NULL, credits_rest {bigint} NOT NULL, debits_billions {bigint} NOT NULL, debits_rest {bigint} NOT NULL, \
                 last_version {bigint} NOT NULL, PRIMARY KEY (account_id, day, record_day)){strict}",
                // Those that have not ended, with how they were submitted; and those that have ended without a posting, without it.
                "CREATE TABLE operations (id {uuid} PRIMARY KEY, version {bigint} NOT NULL, submitted {bytes} NOT NULL, accepted_us {bigint} NOT NULL, \
                 has_ended {bool} NOT NULL){strict}",
                "CREATE VIEW operation_versions AS SELECT id, version FROM operations \
                 UNION ALL SELECT transaction_id AS id, operation_version AS version FROM entries WHERE posting = 0",
                // The nil UUID is everybody.
                "CREATE TABLE operation_days (owner_id {uuid} NOT NULL, day {bigint} NOT NULL, kind {bigint} NOT NULL, currency_code {text} NOT NULL, \
                 accepted {bigint} NOT NULL, completed {bigint} NOT NULL, rejected {bigint} NOT NULL, released {bigint} NOT NULL, \
                 amount_billions {bigint} NOT NULL, amount_rest {bigint} NOT NULL, processing_us {bigint} NOT NULL, newest_us {bigint} NOT NULL, \
                 PRIMARY KEY (owner_id, day, kind, currency_code)){strict}",
            ],
        )
        .await?;
        reader_tables(manager).await
    }
}
