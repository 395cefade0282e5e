//! Opening an account is idempotent by key; one mark ends every session of a user. Serves versions from 0.1.0.

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
                // The caller's idempotency key, if it gave one, and the SHA-256 of what it asked for.
                "ALTER TABLE accounts ADD COLUMN external_id {text}",
                "ALTER TABLE accounts ADD COLUMN request_hash {bytes}",
                "CREATE UNIQUE INDEX accounts_external ON accounts (owner_id, external_id) WHERE external_id IS NOT NULL",
                // Tokens of a user with a lower version are dead. Retention: until none of them can live.
                "CREATE TABLE revoked_users (user_id {uuid} PRIMARY KEY, token_version {bigint} NOT NULL, forget_after_s {bigint} NOT NULL){strict}",
                "CREATE INDEX revoked_users_age ON revoked_users (forget_after_s)",
                "CREATE INDEX revoked_sessions_age ON revoked_sessions (forget_after_s)",
            ],
        )
        .await
    }
}
