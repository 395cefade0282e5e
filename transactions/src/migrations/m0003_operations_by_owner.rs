//! Operations by the owner of their accounts, so that a page of one owner's is one look into an index. Serves versions from 0.1.0: what a replica of
//! an older version stores meanwhile has no owner, and the sweep of a new one fills it in.

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
                "ALTER TABLE operations ADD COLUMN source_owner_id {uuid}",
                // None if it is the source's, too.
                "ALTER TABLE operations ADD COLUMN destination_owner_id {uuid}",
                "UPDATE operations SET source_owner_id = (SELECT a.owner_id FROM accounts a WHERE a.id = source_account_id), \
                 destination_owner_id = (SELECT b.owner_id FROM accounts b WHERE b.id = destination_account_id \
                 AND b.owner_id IS DISTINCT FROM (SELECT a.owner_id FROM accounts a WHERE a.id = source_account_id))",
                "CREATE INDEX operations_source_owner ON operations (source_owner_id, id) WHERE source_owner_id IS NOT NULL",
                "CREATE INDEX operations_destination_owner ON operations (destination_owner_id, id) WHERE destination_owner_id IS NOT NULL",
                // Empty, but while an older version runs.
                "CREATE INDEX operations_ownerless ON operations (id) WHERE source_owner_id IS NULL AND destination_owner_id IS NULL",
            ],
        )
        .await
    }
}
