//! Each refresh token expires by itself, and not with its session, which every trade prolongs.

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
                // Unix microseconds.
                "ALTER TABLE refresh_tokens ADD COLUMN expires_us {bigint} NOT NULL DEFAULT 0",
                "UPDATE refresh_tokens SET expires_us = (SELECT s.refresh_expires_us FROM sessions s WHERE s.id = session_id)",
                "CREATE INDEX refresh_tokens_expiry ON refresh_tokens (expires_us)",
                "DROP INDEX refresh_tokens_used",
            ],
        )
        .await
    }
}
