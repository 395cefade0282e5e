//! The services' databases, by one rule: `lastro_<service>` on the PostgreSQL server of a URL, else `<service>.db` in the data folder.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use lastro_database::{Database, PostgresUrl};
use lastro_service::Service;

use crate::data_dir::DataDir;
use crate::services::SERVICES;

/// Every service's database, migrated and prepared.
pub struct Storage(BTreeMap<&'static str, Database>);

impl Storage {
    /// On PostgreSQL.
    pub async fn open_postgres(url: &PostgresUrl, connections_max: u32) -> Result<Self> {
        let mut storage = Self(BTreeMap::new());
        for service in SERVICES {
            let name = service.database_name();
            let database =
                Database::open_postgres(url, &name, connections_max).await.with_context(|| format!("the database {name} cannot be opened"))?;
            storage.add(service, database).await?;
        }
        Ok(storage)
    }

    /// On SQLite.
    pub async fn open_sqlite(data: &DataDir) -> Result<Self> {
        let mut storage = Self(BTreeMap::new());
        for service in SERVICES {
            let path = data.private_file(&format!("{}.db", service.name))?;
            let database = Database::open_sqlite(&path).await.with_context(|| format!("the database {} cannot be opened", path.display()))?;
            storage.add(service, database).await?;
        }
        Ok(storage)
    }

    async fn add(&mut self, service: &'static Service, database: Database) -> Result<()> {
        migrate_and_prepare(service, &database).await?;
        self.0.insert(service.name, database);
        Ok(())
    }

    /// The database of a service.
    pub fn of(&self, service: &Service) -> &Database {
        &self.0[service.name]
    }

    /// Ends every connection.
    pub async fn close(self) {
        for database in self.0.into_values() {
            database.close().await;
        }
    }
}

/// Brings a service's database to this version, with whatever it needs beside tables.
pub async fn migrate_and_prepare(service: &Service, database: &Database) -> Result<()> {
    let name = service.name;
    service.migrator.run(database).await.with_context(|| format!("the tables of {name} cannot be made"))?;
    (service.prepare)(database.clone()).await.with_context(|| format!("what {name} needs beside its tables cannot be made"))
}
