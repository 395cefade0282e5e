//! What an operator may set of reports.

use clap::Args;
use lastro_mesh::config::Problems;
use lastro_service::ReadSettings;

use crate::domain::calendar::Calendar;

/// What an operator may change.
#[derive(Debug, Clone)]
pub struct Settings {
    /// In which the days of the ledger begin and end.
    pub time_zone: Calendar,
}

/// What reports is told of days.
#[derive(Args)]
pub struct ReportsGroup {
    /// The time zone in which the days of reports begin and end, an IANA name such as Europe/Lisbon. Kept at the first start: all days are made anew for another one.
    #[arg(long, env = "LASTRO_TIME_ZONE", value_name = "NAME", default_value = "America/Sao_Paulo")]
    time_zone: String,
}

impl ReadSettings for ReportsGroup {
    type Settings = Settings;

    fn read(&self, problems: &mut Problems) -> Option<Settings> {
        let calendar = Calendar::named(&self.time_zone);
        if calendar.is_none() {
            problems.add(format!("--time-zone {:?}: must be the IANA name of a time zone, such as America/Sao_Paulo", self.time_zone));
        }
        calendar.map(|time_zone| Settings { time_zone })
    }
}
