//! What customers tells may happen twice, word for word: a user renamed again, disabled again. Only what others report must not come twice,
//! and nobody reports anything to customers (docs/adr/0006). Serves versions from 0.1.0.

use lastro_migrations::run_statements;
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run_statements(manager, &["DROP INDEX user_events_digest"]).await
    }
}
