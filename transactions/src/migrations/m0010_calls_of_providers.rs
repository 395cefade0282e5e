//! Calls to a payment provider stay when they have ended, each with who was asked and for whom: a refund goes to the provider that was paid through, one
//! provider's orders never go to another one, and what was given back leaves a trace.

use lastro_migrations::run_statements;
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run_statements(manager, STATEMENTS).await
    }
}

const STATEMENTS: &[&str] = &[
    "ALTER TABLE provider_calls RENAME TO provider_calls_before",
    "DROP INDEX provider_calls_due",
    // `provider` is the name of who was asked; it is empty where that was not noted yet. `owner_id` is whose operation it is. `state` is 0 as long as it is
    // to be asked, then 1 done, 2 declined, or 3 not to be asked any more.
    "CREATE TABLE provider_calls (operation_id {uuid} NOT NULL, kind {bigint} NOT NULL, provider {text} NOT NULL, owner_id {uuid} NOT NULL, \
     card_token {text}, state {bigint} NOT NULL DEFAULT 0, is_unknown {bool} NOT NULL DEFAULT false, attempts {bigint} NOT NULL DEFAULT 0, \
     next_attempt_us {bigint} NOT NULL, last_error {text} NOT NULL DEFAULT '', correlation_id {text} NOT NULL, \
     PRIMARY KEY (operation_id, kind), CHECK (state BETWEEN 0 AND 3), CHECK (state = 0 OR card_token IS NULL)){strict}",
    "INSERT INTO provider_calls (operation_id, kind, provider, owner_id, card_token, is_unknown, attempts, next_attempt_us, last_error, correlation_id) \
     SELECT c.operation_id, c.kind, '', o.owner_id, c.card_token, c.is_unknown, c.attempts, c.next_attempt_us, c.last_error, c.correlation_id \
     FROM provider_calls_before c JOIN operations o ON o.id = c.operation_id",
    "DROP TABLE provider_calls_before",
    "CREATE INDEX provider_calls_due ON provider_calls (next_attempt_us) WHERE state = 0",
    "CREATE INDEX provider_calls_open ON provider_calls (owner_id) WHERE state = 0",
];
