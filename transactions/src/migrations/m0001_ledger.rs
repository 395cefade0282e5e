//! Accounts, the ledger, operations with their events, and what transactions knows of users. Times are Unix microseconds, UTC;
//! amounts are minor units.

use lastro_migrations::{Dialect, consumer_tables, relay_tables, reported_event_table, run_statements};
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // Balances change in place, again and again: room in the page keeps such a change from touching any index (HOT).
        let room = if Dialect::of(manager).is_postgres() { " WITH (fillfactor = 40)" } else { "{strict}" };
        let balances = format!(
            "CREATE TABLE balances (account_id {{uuid}} PRIMARY KEY, posted {{bigint}} NOT NULL, held {{bigint}} NOT NULL, version {{bigint}} NOT NULL, \
             system {{bool}} NOT NULL, closed {{bool}} NOT NULL, CHECK (held >= 0), CHECK (version >= 0), CHECK (system OR posted - held >= 0)){room}"
        );
        run_statements(
            manager,
            &[
                // What never changes about an account. A system account is one of the stripes of a currency's clearing account.
                "CREATE TABLE accounts (id {uuid} PRIMARY KEY, owner_id {uuid} NOT NULL, currency_code {text} NOT NULL, display_name {text} NOT NULL, \
                 system {bool} NOT NULL, stripe {bigint}, create_time_us {bigint} NOT NULL){strict}",
                "CREATE INDEX accounts_owner ON accounts (owner_id, id)",
                "CREATE UNIQUE INDEX accounts_stripe ON accounts (currency_code, stripe) WHERE stripe IS NOT NULL",
                &balances,
                // An operation's present state, rebuilt from its events if need be. `version` and `hash` are those of its last event.
                "CREATE TABLE operations (id {uuid} PRIMARY KEY, owner_id {uuid} NOT NULL, external_id {text} NOT NULL, request_hash {bytes} NOT NULL, \
                 kind {bigint} NOT NULL, state {bigint} NOT NULL, reason {text} NOT NULL, currency_code {text} NOT NULL, amount {bigint} NOT NULL, \
                 source_account_id {uuid}, destination_account_id {uuid}, description {text} NOT NULL, metadata {text} NOT NULL, \
                 effective_time_us {bigint} NOT NULL, create_time_us {bigint} NOT NULL, update_time_us {bigint} NOT NULL, \
                 version {bigint} NOT NULL, hash {bytes} NOT NULL, attempts {bigint} NOT NULL, \
                 CHECK (amount > 0), CHECK (source_account_id <> destination_account_id)){strict}",
                "CREATE UNIQUE INDEX operations_external ON operations (owner_id, external_id)",
                "CREATE INDEX operations_source ON operations (source_account_id, id) WHERE source_account_id IS NOT NULL",
                "CREATE INDEX operations_destination ON operations (destination_account_id, id) WHERE destination_account_id IS NOT NULL",
                // 1 PENDING, 2 PROCESSING: what workers still have to do. Empty but for trouble.
                "CREATE INDEX operations_open ON operations (id) WHERE state IN (1, 2)",
                // The ledger: per operation and currency the amounts sum to zero; a version is an account's place in its own history.
                "CREATE TABLE postings (account_id {uuid} NOT NULL, account_version {bigint} NOT NULL, operation_id {uuid} NOT NULL, amount {bigint} NOT NULL, \
                 balance {bigint} NOT NULL, PRIMARY KEY (account_id, account_version), CHECK (amount <> 0)){strict}",
                // Operations that were given up after their last attempt, until an operator retries them.
                "CREATE TABLE dead_letters (operation_id {uuid} PRIMARY KEY, error {text} NOT NULL, attempts {bigint} NOT NULL, create_time_us {bigint} NOT NULL){strict}",
                // What customers told: who may own, and which sessions are dead. Retention of the latter: until no token of theirs can live.
                "CREATE TABLE owners (user_id {uuid} PRIMARY KEY, may_own {bool} NOT NULL){strict}",
                "CREATE TABLE revoked_sessions (session_id {uuid} PRIMARY KEY, forget_after_s {bigint} NOT NULL){strict}",
            ],
        )
        .await?;
        reported_event_table(manager, "operation_events").await?;
        relay_tables(manager).await?;
        consumer_tables(manager).await
    }
}
