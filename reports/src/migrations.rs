//! The tables of reports, migration by migration.

mod m0001_reports;
mod m0002_orders;

use sea_orm_migration::prelude::*;

/// The migrations of `lastro_reports`.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(m0001_reports::Migration), Box::new(m0002_orders::Migration)]
    }
}
