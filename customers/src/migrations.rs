//! The tables of customers, migration by migration.

mod m0001_identity;
mod m0002_key_rotation;
mod m0003_events_may_repeat;
mod m0004_revocations_and_refresh_tokens;
mod m0005_refresh_tokens_expire;
mod m0006_known_addresses;
mod m0007_cursors_name_their_cluster;

use sea_orm_migration::prelude::*;

/// The migrations of `lastro_customers`.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_identity::Migration),
            Box::new(m0002_key_rotation::Migration),
            Box::new(m0003_events_may_repeat::Migration),
            Box::new(m0004_revocations_and_refresh_tokens::Migration),
            Box::new(m0005_refresh_tokens_expire::Migration),
            Box::new(m0006_known_addresses::Migration),
            Box::new(m0007_cursors_name_their_cluster::Migration),
        ]
    }
}
