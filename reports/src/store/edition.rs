//! Which edition of the tables these are: when they were begun, and in which time zone their days begin and end. `lastro replay reports` makes another
//! edition beside this one, and puts it in its place while everybody goes on.

use lastro_database::{Database, Error, execute, one};
use lastro_mesh::clock;
use sea_orm::{ConnectionTrait, FromQueryResult};

use crate::domain::calendar::Calendar;

/// An edition of the tables.
#[derive(Debug, Clone)]
pub struct Edition {
    /// When it was begun, Unix microseconds: no two have the same.
    pub begun_us: i64,
    /// By which its days were made.
    pub calendar: Calendar,
}

#[derive(FromQueryResult)]
struct Row {
    begun_us: i64,
    time_zone: String,
}

/// The edition that is there. None before the first start.
pub async fn find(on: &impl ConnectionTrait) -> Result<Option<Edition>, Error> {
    let row: Option<Row> = one(on, "SELECT begun_us, time_zone FROM edition", []).await?;
    let edition = |row: Row| {
        let calendar = Calendar::named(&row.time_zone)
            .ok_or_else(|| Error::corrupt(format!("the table `edition` names the time zone {}, which this version does not know", row.time_zone)))?;
        Ok(Edition { begun_us: row.begun_us, calendar })
    };
    row.map(edition).transpose()
}

/// The edition that is there.
pub async fn get(on: &impl ConnectionTrait) -> Result<Edition, Error> {
    find(on).await?.ok_or_else(|| Error::corrupt("the table `edition` is empty: reports was never started on these tables"))
}

/// The edition that is there, or one that is begun now. Another time zone than that of its days is refused: they would be wrong.
pub async fn begin_or_check(database: &Database, calendar: Calendar) -> anyhow::Result<Edition> {
    begin(database, &calendar).await?;
    let kept = get(database.reader()).await?;
    anyhow::ensure!(
        kept.calendar.name() == calendar.name(),
        "the days of reports were made in the time zone {0}; start with --time-zone {0}, or make them anew first: lastro replay reports --time-zone {1}",
        kept.calendar.name(),
        calendar.name()
    );
    Ok(kept)
}

/// Begins another edition in new tables, in this time zone, or else in that of the days that are there.
pub async fn begin_anew(live: &Database, new: &Database, calendar: Option<Calendar>) -> anyhow::Result<()> {
    let kept = find(live.reader()).await?.map(|edition| edition.calendar);
    let calendar = calendar.or(kept).ok_or_else(|| anyhow::anyhow!("reports has never run here: there is nothing to make anew"))?;
    Ok(begin(new, &calendar).await?)
}

/// Begins an edition; where there is one already, it stays.
async fn begin(database: &Database, calendar: &Calendar) -> Result<(), Error> {
    let new = "INSERT INTO edition (one, begun_us, time_zone) VALUES (1, $1, $2) ON CONFLICT DO NOTHING";
    execute(database.writer(), new, [clock::now_us().into(), calendar.name().into()]).await.map(|_| ())
}
