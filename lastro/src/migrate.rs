//! `lastro migrate`.

use anyhow::Result;

use crate::cli::MigrateArgs;
use crate::storage::Storage;

/// Makes the databases and brings them to this version.
pub async fn migrate(settings: MigrateArgs) -> Result<()> {
    Storage::open_postgres(&settings.database_url, 4).await?.close().await;
    Ok(())
}
