//! Where an account was logged in from: whoever fails from elsewhere does not lock it there.

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
                // SHA-256 of the account's e-mail address, and of that together with a network address. Retention: 90 days after the last login.
                "CREATE TABLE known_addresses (account_hash {bytes} NOT NULL, address_hash {bytes} NOT NULL, last_us {bigint} NOT NULL, \
                 PRIMARY KEY (account_hash, address_hash)){strict}",
                "CREATE INDEX known_addresses_age ON known_addresses (last_us)",
            ],
        )
        .await
    }
}
