//! The tables of transactions, migration by migration.

mod m0001_ledger;
mod m0002_owners_and_keys;
mod m0003_operations_by_owner;
mod m0004_cursors_name_their_cluster;
mod m0005_account_streams;
mod m0006_operations_that_wait;
mod m0007_operations_that_are_rare;
mod m0008_legs_holds_and_limits;
mod m0009_providers_and_payments;
mod m0010_calls_of_providers;
mod m0011_sagas;

use sea_orm_migration::prelude::*;

/// The migrations of `lastro_transactions`.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_ledger::Migration),
            Box::new(m0002_owners_and_keys::Migration),
            Box::new(m0003_operations_by_owner::Migration),
            Box::new(m0004_cursors_name_their_cluster::Migration),
            Box::new(m0005_account_streams::Migration),
            Box::new(m0006_operations_that_wait::Migration),
            Box::new(m0007_operations_that_are_rare::Migration),
            Box::new(m0008_legs_holds_and_limits::Migration),
            Box::new(m0009_providers_and_payments::Migration),
            Box::new(m0010_calls_of_providers::Migration),
            Box::new(m0011_sagas::Migration),
        ]
    }
}
