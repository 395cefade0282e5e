//! Everything that money does: operations of several legs, holds and reversals; accounts with a credit limit, and frozen ones. Older replicas are stopped
//! before: they would settle an operation of several legs as if it had none.

use lastro_migrations::{Dialect, run_statements};
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let balances: &[&str] = if Dialect::of(manager).is_postgres() { BALANCES_POSTGRES } else { BALANCES_SQLITE };
        run_statements(manager, &[balances, OPERATIONS].concat()).await
    }
}

/// `floor` is what `posted - held` may not fall below: `-credit_limit`, or what the account has where that is less, as each write of the row sets it.
/// `recorded_us` is when the last posting was recorded: record times increase strictly per account.
const BALANCES_POSTGRES: &[&str] = &["ALTER TABLE balances ADD COLUMN credit_limit bigint NOT NULL DEFAULT 0 CHECK (credit_limit >= 0), \
     ADD COLUMN floor bigint NOT NULL DEFAULT 0 CHECK (floor <= 0), ADD COLUMN recorded_us bigint NOT NULL DEFAULT 0, \
     ADD COLUMN frozen boolean NOT NULL DEFAULT false, DROP CONSTRAINT balances_check, ADD CONSTRAINT balances_floor CHECK (system OR posted - held >= floor)"];

/// SQLite changes no CHECK of a table that exists.
const BALANCES_SQLITE: &[&str] = &[
    "CREATE TABLE balances_new (account_id {uuid} PRIMARY KEY, posted {bigint} NOT NULL, held {bigint} NOT NULL, version {bigint} NOT NULL, \
     system {bool} NOT NULL, closed {bool} NOT NULL, credit_limit {bigint} NOT NULL DEFAULT 0, floor {bigint} NOT NULL DEFAULT 0, \
     recorded_us {bigint} NOT NULL DEFAULT 0, frozen {bool} NOT NULL DEFAULT false, CHECK (held >= 0), CHECK (version >= 0), CHECK (credit_limit >= 0), \
     CHECK (floor <= 0), CHECK (system OR posted - held >= floor)){strict}",
    "INSERT INTO balances_new (account_id, posted, held, version, system, closed) SELECT account_id, posted, held, version, system, closed FROM balances",
    "DROP TABLE balances",
    "ALTER TABLE balances_new RENAME TO balances",
];

const OPERATIONS: &[&str] = &[
    // Record times go on behind what is there, also where the clock was set back.
    "UPDATE balances SET recorded_us = coalesce((SELECT o.update_time_us FROM postings p JOIN operations o ON o.id = p.operation_id \
     WHERE p.account_id = balances.account_id AND p.account_version = balances.version), 0)",
    // What moves, where it is several legs: as `store::legs` writes it. Source and destination are NULL then, and amount and currency those of the first.
    "ALTER TABLE operations ADD COLUMN legs {bytes}",
    // It is a hold, and ends by itself then.
    "ALTER TABLE operations ADD COLUMN hold_expire_us {bigint}",
    // What was captured of a hold of a single leg.
    "ALTER TABLE operations ADD COLUMN captured_amount {bigint}",
    // For which leg it was rejected, from 0, where it has several.
    "ALTER TABLE operations ADD COLUMN rejected_leg {bigint}",
    // What it reverses, and what reverses it. The index is the last line of defence: the original is locked, and looked at, first.
    "ALTER TABLE operations ADD COLUMN original_id {uuid}",
    "ALTER TABLE operations ADD COLUMN reversal_id {uuid}",
    "CREATE UNIQUE INDEX operations_original ON operations (original_id) WHERE original_id IS NOT NULL AND state <> 5",
    // The posted balances after it: 8 bytes each, two a leg. NULL until it is posted, and where an older version posted it.
    "ALTER TABLE operations ADD COLUMN balances_after {bytes}",
    // Holds by when they run out; and, without a time, what waits for somebody, by who submitted it.
    "CREATE INDEX operations_expiring ON operations (hold_expire_us, owner_id) WHERE state IN (3, 8)",
    // The accounts of operations of several legs and their owners, but for the owner whom the operation names: for lists. `stored_open` are those that were
    // not at their end when they were stored, among which are all that are not yet.
    "CREATE TABLE operation_parties (party_id {uuid} NOT NULL, operation_id {uuid} NOT NULL, stored_open {bool} NOT NULL, \
     PRIMARY KEY (party_id, operation_id)){strict}",
    "CREATE INDEX operation_parties_open ON operation_parties (party_id, operation_id) WHERE stored_open",
    // When it was recorded; NULL where an older version recorded it: then the event tells.
    "ALTER TABLE postings ADD COLUMN recorded_us {bigint}",
];
