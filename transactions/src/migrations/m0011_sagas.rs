//! What sagas pay for orders: the highest epoch of each, and whether its payment is cancelled. Serves 0.1.0 and later: nothing else is changed.

use lastro_migrations::run_statements;
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // Retention: never deleted, since a call of a saga may come late.
        let sagas = "CREATE TABLE sagas (id {uuid} PRIMARY KEY, epoch {bigint} NOT NULL, cancelled {bool} NOT NULL DEFAULT false){strict}";
        run_statements(manager, &[sagas]).await
    }
}
