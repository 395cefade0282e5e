//! An index of the operations that wait for somebody, so that closing the accounts of a user need not read the whole ledger. Serves versions from 0.1.0.

use lastro_migrations::run_statements;
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // Authorized, and waiting for approval. A transfer that settles at once is never in it.
        run_statements(manager, &["CREATE INDEX operations_waiting ON operations (id) WHERE state IN (3, 8)"]).await
    }
}
