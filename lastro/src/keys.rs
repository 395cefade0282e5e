//! `lastro keys`.

use anyhow::{Context as _, Result, bail};
use lastro_customers::{Customers, KeyInfo};
use lastro_database::Database;

use crate::cli::{KeysCommand, ServerArgs};
use crate::print;

/// Lists or rotates the signing keys.
pub async fn keys(command: KeysCommand) -> Result<()> {
    match command {
        KeysCommand::List { server } => {
            let database = open(&server)?;
            Customers::list_keys(&database).await?.iter().for_each(show);
            database.close().await;
        }
        KeysCommand::Rotate { server, sign_after, retire_after } => {
            let database = open(&server)?;
            let Some(_) = Customers::rotate_keys(&database, sign_after, retire_after).await? else {
                bail!("the key of an earlier rotation does not sign yet; `lastro keys list` says from when on it does");
            };
            Customers::list_keys(&database).await?.iter().for_each(show);
            database.close().await;
        }
    }
    Ok(())
}

fn open(server: &ServerArgs) -> Result<Database> {
    Database::connect_postgres(&server.url()?, "lastro_customers", 4).context("the database lastro_customers cannot be opened")
}

fn show(key: &KeyInfo) {
    let time = |us: i64| jiff::Timestamp::from_microsecond(us).map(|time| time.strftime("%FT%TZ").to_string()).unwrap_or_default();
    let retires = key.retire_us.map_or_else(|| "with no end yet".to_owned(), |us| format!("until {}", time(us)));
    print::line(format_args!("{}  signs from {}  verifies {retires}", key.kid, time(key.sign_from_us)));
}
