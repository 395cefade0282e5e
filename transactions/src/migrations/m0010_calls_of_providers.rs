//! Calls to a payment provider stay when they have ended, each with who was asked and for whom: a refund goes to the provider that was paid through, one
//! provider's orders never go to another one, and what was given back leaves a trace. Older replicas are stopped before: they would ask with other keys.

use lastro_migrations::{Dialect, run_statements};
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let give_back_key = if Dialect::of(manager).is_postgres() { GIVE_BACK_KEY_POSTGRES } else { GIVE_BACK_KEY_SQLITE };
        let copy = format!(
            "INSERT INTO provider_calls (operation_id, kind, key, provider, owner_id, card_token, is_unknown, attempts, next_attempt_us, last_error, \
             correlation_id) SELECT c.operation_id, c.kind, CASE WHEN c.kind = 3 THEN {give_back_key} ELSE c.operation_id END, '', o.owner_id, \
             c.card_token, c.is_unknown, c.attempts, c.next_attempt_us, c.last_error, c.correlation_id \
             FROM provider_calls_before c JOIN operations o ON o.id = c.operation_id"
        );
        run_statements(manager, &[BEFORE, &[&copy], AFTER].concat()).await
    }
}

/// What is under way keeps the key that it was asked with: that of its operation; to give a charge back, with the version 8 in the place of 7.
const GIVE_BACK_KEY_POSTGRES: &str = "overlay(c.operation_id::text PLACING '8' FROM 15 FOR 1)::uuid";
const GIVE_BACK_KEY_SQLITE: &str = "unhex(substr(hex(c.operation_id), 1, 12) || '8' || substr(hex(c.operation_id), 14))";

const BEFORE: &[&str] = &[
    "ALTER TABLE provider_calls RENAME TO provider_calls_before",
    "DROP INDEX provider_calls_due",
    // `key` is the provider's key of the order. `provider` is the name of who was asked; it is empty where that was not noted yet. `owner_id` is whose operation it is. `state` is 0 as long as it is
    // to be asked, then 1 done, 2 declined, or 3 not to be asked any more.
    "CREATE TABLE provider_calls (operation_id {uuid} NOT NULL, kind {bigint} NOT NULL, key {uuid} NOT NULL, provider {text} NOT NULL, owner_id {uuid} NOT NULL, \
     card_token {text}, state {bigint} NOT NULL DEFAULT 0, is_unknown {bool} NOT NULL DEFAULT false, attempts {bigint} NOT NULL DEFAULT 0, \
     next_attempt_us {bigint} NOT NULL, last_error {text} NOT NULL DEFAULT '', correlation_id {text} NOT NULL, \
     PRIMARY KEY (operation_id, kind), CHECK (state BETWEEN 0 AND 3), CHECK (state = 0 OR card_token IS NULL)){strict}",
];

const AFTER: &[&str] = &[
    "DROP TABLE provider_calls_before",
    "CREATE INDEX provider_calls_due ON provider_calls (next_attempt_us) WHERE state = 0",
    "CREATE INDEX provider_calls_open ON provider_calls (owner_id) WHERE state = 0",
];
