//! When a signing key begins to sign and when it ends to verify, in place of a state that somebody would have to change in time. Serves
//! versions from 0.1.0: `state` stays, and nobody reads it any more.

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
                "ALTER TABLE signing_keys ADD COLUMN sign_from_us {bigint} NOT NULL DEFAULT 0",
                "ALTER TABLE signing_keys ADD COLUMN retire_us {bigint}",
            ],
        )
        .await
    }
}
