//! The services' databases, by one rule: `lastro_<service>` on the PostgreSQL server of a URL, else `<service>.db` in the data folder.

use anyhow::{Context as _, Result};
use lastro_database::{Database, PostgresUrl};
use lastro_migrations::{CustomersMigrator, TransactionsMigrator};

use crate::data_dir::DataDir;

/// Every database, migrated.
pub struct Storage {
    pub customers: Database,
    pub transactions: Database,
}

impl Storage {
    /// On PostgreSQL.
    pub async fn open_postgres(url: &PostgresUrl, connections_max: u32) -> Result<Self> {
        let open = async |service: &str| {
            let name = format!("lastro_{service}");
            Database::open_postgres(url, &name, connections_max).await.with_context(|| format!("the database {name} cannot be opened"))
        };
        Self { customers: open("customers").await?, transactions: open("transactions").await? }.migrate().await
    }

    /// On SQLite.
    pub async fn open_sqlite(data: &DataDir) -> Result<Self> {
        let open = async |service: &str| {
            let path = data.private_file(&format!("{service}.db"))?;
            Database::open_sqlite(&path).await.with_context(|| format!("the database {} cannot be opened", path.display()))
        };
        Self { customers: open("customers").await?, transactions: open("transactions").await? }.migrate().await
    }

    async fn migrate(self) -> Result<Self> {
        lastro_migrations::run::<CustomersMigrator>(&self.customers).await.context("the tables of customers cannot be made")?;
        lastro_migrations::run::<TransactionsMigrator>(&self.transactions).await.context("the tables of transactions cannot be made")?;
        Ok(self)
    }

    /// Ends every connection.
    pub async fn close(self) {
        tokio::join!(self.customers.close(), self.transactions.close());
    }
}
