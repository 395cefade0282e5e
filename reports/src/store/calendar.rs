//! The time zone of the ledger, as it was when the days were made.

use lastro_database::{Database, execute, one};
use sea_orm::FromQueryResult;

use crate::domain::calendar::Calendar;

#[derive(FromQueryResult)]
struct Row {
    time_zone: String,
}

/// Keeps the time zone at the first start. Another one is refused: days that were made in the old one would be wrong.
pub async fn keep(database: &Database, calendar: &Calendar) -> anyhow::Result<()> {
    let new = "INSERT INTO calendar (one, time_zone) VALUES (1, $1) ON CONFLICT DO NOTHING";
    execute(database.writer(), new, [calendar.name().into()]).await?;
    let row: Option<Row> = one(database.reader(), "SELECT time_zone FROM calendar", []).await?;
    let kept = row.map(|row| row.time_zone).unwrap_or_default();
    anyhow::ensure!(
        kept == calendar.name(),
        "the days of reports were made in the time zone {kept}; start with --time-zone {kept}, or make them anew for {} with an empty database of reports",
        calendar.name()
    );
    Ok(())
}
