//! How fast a new reader applies the events of a ledger: each in one transaction with the others of its page, from one database into another.

use anyhow::Result;
use lastro_database::Database;
use lastro_events::source::Near;
use lastro_tests::{Postgres, reader};

/// Operations of the ledger, with two events each.
const OPERATIONS: usize = 100_000;

/// From PostgreSQL to PostgreSQL, and on SQLite.
pub async fn measure(postgres: &Postgres, rounds: usize) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let on_postgres = Database::open_postgres(&postgres.url().parse()?, "events_of_bench", 8).await?;
    let on_sqlite = Database::open_sqlite(&folder.path().join("publisher.db")).await?;
    for (name, publisher) in [("PostgreSQL to PostgreSQL", &on_postgres), ("SQLite to SQLite", &on_sqlite)] {
        lastro_transactions::SERVICE.migrator.run(publisher).await?;
        reader::write_events(publisher, OPERATIONS).await?;
        let mut rates = Vec::new();
        for round in 1..=rounds {
            let place = folder.path().join(format!("reader-{round}.db"));
            let database = if publisher.is_postgres() {
                let server = Postgres::start()?;
                let database = reader::open(&server.url()).await?;
                rates.push(rate(&database, publisher).await?);
                continue;
            } else {
                reader::open(&place.display().to_string()).await?
            };
            rates.push(rate(&database, publisher).await?);
        }
        println!("events applied, {name}: {:.0}/s (rounds: {rates:.0?})", crate::report::median(rates.iter().copied()).unwrap_or_default());
    }
    Ok(())
}

async fn rate(reader: &Database, publisher: &Database) -> Result<f64> {
    let events = 2 * OPERATIONS as i64;
    let took = reader::time_to_read(reader, Near::source(reader::STORE, publisher), events).await?;
    Ok(events as f64 / took.as_secs_f64())
}
