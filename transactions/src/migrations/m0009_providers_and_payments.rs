//! Money that somebody else moves: transactions that a provider settles, what providers report, payments and refunds. Older replicas are stopped before:
//! they would settle what waits for a provider.

use lastro_migrations::{Dialect, run_statements};
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let guards: &[&str] = if Dialect::of(manager).is_postgres() { GUARDS_POSTGRES } else { GUARDS_SQLITE };
        run_statements(manager, &[TABLES, guards].concat()).await
    }
}

const TABLES: &[&str] = &[
    // A provider says what becomes of it.
    "ALTER TABLE operations ADD COLUMN external {bool} NOT NULL DEFAULT false",
    // Of a payment: what refunds have taken of each leg, or hold of it; 8 bytes each. Of a refund: what it takes of each leg of its payment.
    "ALTER TABLE operations ADD COLUMN refunded {bytes}",
    // A transaction is reversed once; a payment may be refunded in parts.
    "DROP INDEX operations_original",
    "CREATE UNIQUE INDEX operations_original ON operations (original_id) WHERE original_id IS NOT NULL AND state <> 5 AND kind = 6",
    // Payments by their keys, which name their orders, and the refunds of each. One index for both: every insert of a transfer looks at each.
    "CREATE INDEX operations_payments ON operations (kind, original_id, external_id) WHERE kind IN (4, 5)",
    // What providers have reported. It may come before the transaction that it is about. `outcome` is 0 as long as it waits for that, then 1 applied,
    // 2 passed over, since the same had been reported before, or 3 contradicting how the transaction had ended.
    "CREATE TABLE provider_events (id {uuid} PRIMARY KEY, provider_id {uuid} NOT NULL, external_id {text} NOT NULL, kind {bigint} NOT NULL, \
     payload {text} NOT NULL, digest {bytes} NOT NULL, correlation_id {text} NOT NULL, create_time_us {bigint} NOT NULL, \
     outcome {bigint} NOT NULL, operation_id {uuid}, UNIQUE (provider_id, external_id, digest), CHECK (outcome BETWEEN 0 AND 3), \
     CHECK ((outcome = 0) = (operation_id IS NULL))){strict}",
    "CREATE INDEX provider_events_waiting ON provider_events (id) WHERE outcome = 0",
    // What a payment provider is to be asked for, until its answer is in the ledger.
    "CREATE TABLE provider_calls (operation_id {uuid} PRIMARY KEY, kind {bigint} NOT NULL, card_token {text}, is_unknown {bool} NOT NULL, \
     attempts {bigint} NOT NULL, next_attempt_us {bigint} NOT NULL, last_error {text} NOT NULL, correlation_id {text} NOT NULL){strict}",
    "CREATE INDEX provider_calls_due ON provider_calls (next_attempt_us)",
];

/// What was reported stays as it was. What became of it is said once.
const GUARDS_POSTGRES: &[&str] = &[
    "CREATE FUNCTION provider_events_guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'what a provider reported never changes'; END $$",
    "CREATE TRIGGER provider_events_no_delete BEFORE DELETE ON provider_events FOR EACH ROW EXECUTE FUNCTION provider_events_guard()",
    "CREATE TRIGGER provider_events_no_truncate BEFORE TRUNCATE ON provider_events FOR EACH STATEMENT EXECUTE FUNCTION provider_events_guard()",
    "CREATE TRIGGER provider_events_no_update BEFORE UPDATE ON provider_events FOR EACH ROW WHEN (OLD.outcome <> 0 OR \
     ROW (OLD.id, OLD.provider_id, OLD.external_id, OLD.kind, OLD.payload, OLD.digest, OLD.correlation_id, OLD.create_time_us) IS DISTINCT FROM \
     ROW (NEW.id, NEW.provider_id, NEW.external_id, NEW.kind, NEW.payload, NEW.digest, NEW.correlation_id, NEW.create_time_us)) \
     EXECUTE FUNCTION provider_events_guard()",
];

const GUARDS_SQLITE: &[&str] = &[
    "CREATE TRIGGER provider_events_no_delete BEFORE DELETE ON provider_events BEGIN SELECT RAISE(ABORT, 'what a provider reported never changes'); END",
    "CREATE TRIGGER provider_events_no_update BEFORE UPDATE ON provider_events WHEN OLD.outcome <> 0 OR \
     (OLD.id, OLD.provider_id, OLD.external_id, OLD.kind, OLD.payload, OLD.digest, OLD.correlation_id, OLD.create_time_us) IS NOT \
     (NEW.id, NEW.provider_id, NEW.external_id, NEW.kind, NEW.payload, NEW.digest, NEW.correlation_id, NEW.create_time_us) \
     BEGIN SELECT RAISE(ABORT, 'what a provider reported never changes'); END",
];
