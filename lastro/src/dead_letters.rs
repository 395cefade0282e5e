//! `lastro dead-letters`: the events that a service could not apply, for its operator. Past the service, in its database: it works while the service
//! runs, and while it does not.

use anyhow::{Context as _, Result, ensure};
use lastro_database::Database;
use lastro_events::dead_letters::{self, DeadLetter};
use uuid::Uuid;

use crate::cli::{DeadLettersCommand, OfService};
use crate::data_dir::DataDir;
use crate::print;
use crate::services::by_name;

/// Dead letters of one listing.
const LISTED_MAX: u32 = 1000;

/// Lists them, or has those of an aggregate tried again.
pub async fn dead_letters(command: DeadLettersCommand) -> Result<()> {
    match command {
        DeadLettersCommand::List { of } => {
            let (database, _folder) = open(&of).await?;
            let found = dead_letters::list(&database, None, LISTED_MAX).await.context("the dead letters cannot be read")?;
            found.iter().for_each(show);
            say(&match found.len() as u32 {
                LISTED_MAX => format!("these are the first {LISTED_MAX}; there may be more"),
                count => format!("{count} dead letters of {}", of.service),
            });
            database.close().await;
        }
        DeadLettersCommand::Retry { of, topic, aggregate } => {
            let (database, _folder) = open(&of).await?;
            let events = dead_letters::retry(&database, &topic, aggregate).await.context("they cannot be taken out now; try again")?;
            ensure!(events > 0, "{topic} {aggregate}: {} has no such dead letters; `lastro dead-letters list` says which it has", of.service);
            say(&format!("{events} events of {aggregate} are tried again as soon as {} runs", of.service));
            database.close().await;
        }
    }
    Ok(())
}

async fn open(of: &OfService) -> Result<(Database, Option<DataDir>)> {
    let service =
        by_name(&of.service).with_context(|| format!("--service {:?}: there is no such service; `lastro services` lists them", of.service))?;
    ensure!(!service.reads.is_empty(), "--service {}: this service reads no events", service.name);
    let name = service.database_name();
    if let Some(url) = of.database.url()? {
        let database = Database::connect_postgres(&url, &name, 4).with_context(|| format!("the database {name} cannot be opened"))?;
        return Ok((database, None));
    }
    let file = of.data.join(format!("{}.db", service.name));
    ensure!(file.exists(), "{} is not there; --data names the folder of `lastro up`, --database-url a PostgreSQL server", file.display());
    // Held to the end: nobody else may have the folder's databases open.
    let data = DataDir::open(&of.data)?;
    let database = Database::open_sqlite(&data.private_file(&format!("{}.db", service.name))?).await;
    Ok((database.with_context(|| format!("{} cannot be opened", file.display()))?, Some(data)))
}

fn show(one: &DeadLetter) {
    let time = jiff::Timestamp::from_microsecond(one.dead_us).map(|time| time.strftime("%FT%TZ").to_string()).unwrap_or_default();
    say(&format!(
        "{time}  {} {} version {} {}  correlation {}  {}",
        one.topic, one.aggregate_id, one.version, one.kind, one.correlation_id, one.error
    ));
}

fn say(line: &str) {
    print::line(line);
}

/// The id of an aggregate, as it is printed.
pub fn parse_aggregate(text: &str) -> Result<Uuid, String> {
    Uuid::parse_str(text).map_err(|_| "must be a UUID".to_owned())
}
