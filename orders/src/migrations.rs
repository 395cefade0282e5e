//! The tables of orders, migration by migration.

mod m0001_orders;

use sea_orm_migration::prelude::*;

/// The migrations of `lastro_orders`.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(m0001_orders::Migration)]
    }
}
