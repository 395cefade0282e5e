//! The tables of transactions, migration by migration.

mod m0001_ledger;
mod m0002_owners_and_keys;
mod m0003_operations_by_owner;

use sea_orm_migration::prelude::*;

/// The migrations of `lastro_transactions`.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(m0001_ledger::Migration), Box::new(m0002_owners_and_keys::Migration), Box::new(m0003_operations_by_owner::Migration)]
    }
}
