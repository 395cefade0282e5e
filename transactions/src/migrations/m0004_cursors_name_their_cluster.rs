//! Cursors name the cluster that they belong to: after dump and restore into another one, events go on being published and read. Older replicas are
//! stopped before: they would write cursors without it.

use lastro_migrations::{upgrade_publisher_tables, upgrade_reader_tables};
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        upgrade_publisher_tables(manager).await?;
        upgrade_reader_tables(manager).await
    }
}
