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
    /// The time zone in which the days of reports begin and end, an IANA name such as Europe/Lisbon. Kept at the first start; `lastro replay reports` makes
    /// all days anew in another one.
    #[arg(long, env = "LASTRO_TIME_ZONE", value_name = "NAME", default_value = "America/Sao_Paulo")]
    time_zone: String,
}

impl ReadSettings for ReportsGroup {
    type Settings = Settings;

    fn read(&self, problems: &mut Problems) -> Option<Settings> {
        calendar(&self.time_zone, problems).map(|time_zone| Settings { time_zone })
    }
}

/// What an operator may change when all of it is made anew.
#[derive(Debug, Clone)]
pub struct ReplaySettings {
    /// In which the days are to begin and end; else as they do.
    pub time_zone: Option<Calendar>,
}

/// What `lastro replay reports` is told of days.
#[derive(Args)]
pub struct ReplayGroup {
    /// The time zone in which days begin and end from now on, an IANA name such as Europe/Lisbon. Without: that of the days that are there. Start reports with the
    /// same one from then on.
    #[arg(long, value_name = "NAME")]
    time_zone: Option<String>,
}

impl ReadSettings for ReplayGroup {
    type Settings = ReplaySettings;

    fn read(&self, problems: &mut Problems) -> Option<ReplaySettings> {
        let Some(name) = &self.time_zone else { return Some(ReplaySettings { time_zone: None }) };
        calendar(name, problems).map(|time_zone| ReplaySettings { time_zone: Some(time_zone) })
    }
}

fn calendar(name: &str, problems: &mut Problems) -> Option<Calendar> {
    let calendar = Calendar::named(name);
    if calendar.is_none() {
        problems.add(format!("--time-zone {name:?}: must be the IANA name of a time zone, such as America/Sao_Paulo"));
    }
    calendar
}
