//! The settings of `lastro replay`: a command for each service whose tables are made from events.

use std::path::PathBuf;

use clap::{ArgMatches, Args, Command, FromArgMatches as _};
use lastro_database::PostgresUrl;
use lastro_mesh::config::Problems;
use lastro_service::{Service, Settings};

use super::{DatabaseArgs, read_url};
use crate::services::{SERVICES, by_name};

/// The flags are those of the service's own command.
#[derive(Args)]
pub struct NoArgs {}

/// Where the databases are.
#[derive(Args)]
struct ReplayArgs {
    /// The data folder of `lastro up`, which may run.
    #[arg(long, env = "LASTRO_DATA", value_name = "DIR", default_value = "data")]
    data: PathBuf,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// What `lastro replay` is told.
pub struct ReplaySettings {
    /// Whose tables are made anew.
    pub service: &'static Service,
    /// The data folder, where no server is given.
    pub data: PathBuf,
    /// The server that has the databases of all services.
    pub database_url: Option<PostgresUrl>,
    /// The service's own.
    pub own: Settings,
}

/// `lastro replay`, with a command for each service that can be made anew.
pub fn replay_command(command: Command) -> Command {
    let replayed = SERVICES.iter().filter_map(|service| service.replay.as_ref().map(|replay| (service, replay)));
    let command = command.subcommand_required(true).arg_required_else_help(true);
    replayed.fold(command, |command, (service, replay)| {
        let of_service = (replay.settings.add_to)(ReplayArgs::augment_args(Command::new(service.name)));
        command.subcommand(of_service.about(format!("Make the tables of {} anew: {}", service.name, service.about)).long_about(None))
    })
}

impl ReplaySettings {
    /// Reads every setting, or says all that is wrong.
    pub fn read(matches: &ArgMatches) -> anyhow::Result<Self> {
        let Some((name, matches)) = matches.subcommand() else { anyhow::bail!("name the service; `lastro replay --help` lists them") };
        let found = by_name(name).and_then(|service| service.replay.as_ref().map(|replay| (service, replay)));
        let (service, replay) = found.ok_or_else(|| anyhow::anyhow!("{name} is not made from events"))?;
        let args = ReplayArgs::from_arg_matches(matches)?;
        let mut problems = Problems::default();
        let own = replay.settings.read(matches, &mut problems);
        problems.check()?;
        let database_url = read_url(args.database.database_url.as_deref(), args.database.database_url_file.as_deref())?;
        Ok(Self { service, data: args.data, database_url, own: own.ok_or_else(|| anyhow::anyhow!("a setting is missing"))? })
    }
}
