//! The command line. Every flag is also an environment variable, `LASTRO_…`; `--help` says what each is for.

mod groups;
mod replay;
mod service;
mod up;

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use lastro_database::PostgresUrl;

pub use replay::ReplaySettings;
pub use service::{GatewayArgs, GatewaySettings, ProcessSettings, ServiceSettings, StoreSettings};
pub use up::{UpArgs, UpSettings};

use crate::services::SERVICES;

/// Lastro: the money core of a product. `lastro up` runs all of it in one process.
#[derive(Parser)]
#[command(name = "lastro", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// The whole command line: what is written here, and a command for each service.
pub fn command() -> clap::Command {
    // The services stand behind `up`, which stands first.
    let fixed = Cli::command().mut_subcommands(|command| command.display_order(SERVICES.len() + 2));
    let fixed = fixed
        .mut_subcommand("replay", replay::replay_command)
        .mut_subcommand("up", |up| up::up_command(up).display_order(0))
        .mut_subcommand("gateway", |gateway| service::gateway_command(gateway).display_order(SERVICES.len() + 1));
    (1..).zip(SERVICES).fold(fixed, |command, (place, service)| command.subcommand(service::service_command(service).display_order(place)))
}

#[derive(Subcommand)]
pub enum Command {
    /// Run every service in one process: gRPC on one port, REST on another, operations on a third.
    Up(Box<UpArgs>),
    /// Run the gateway alone: HTTP/JSON to gRPC. Any number of replicas.
    Gateway(Box<GatewayArgs>),
    /// Make the databases on a PostgreSQL server, their roles if passwords are given, the first signing key and the administrator, and bring
    /// the tables to this version. Several at once take turns; running it again changes nothing.
    Migrate(MigrateArgs),
    /// List or rotate the keys that sign access tokens.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Give an administrator who has forgotten the password a new one.
    #[command(subcommand)]
    Admin(AdminCommand),
    /// List the events that a service could not apply, or have those of one aggregate tried again.
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// Make the tables of a service anew from the events that others have published, while it works and is read: after a defect, or for another time zone.
    Replay(replay::NoArgs),
    /// Compare what a service tells with the ledger, while everything runs; fails where anything differs.
    #[command(subcommand)]
    Verify(VerifyCommand),
    /// Make a development authority and a certificate for each service, for nginx (edge) and for an operator, and the policy of who may call
    /// what. What is there already stays.
    Certs {
        /// The folder to write to; it is made where it is missing.
        dir: PathBuf,
        /// A further host name or address that clients reach nginx by. May be given several times.
        #[arg(long, value_name = "NAME")]
        host: Vec<String>,
    },
    /// Ask a process on this machine whether it is ready; for health checks of containers.
    Health {
        /// Where it serves /readyz.
        #[arg(long, env = "LASTRO_OPS", value_name = "ADDR", default_value = "127.0.0.1:9464")]
        ops: String,
    },
    /// Write the files of a checkout that depend on which services there are: compose.yaml, the template of nginx, the names for scripts.
    Deployment {
        /// The folder of the checkout.
        dir: PathBuf,
    },
    /// Print the services and the gateway as JSON: names, packages, which services each calls, databases and roles.
    Services,
    /// Write every public proto file with its imports, and a descriptor set, for whoever generates a client.
    Proto {
        /// The folder to write to; it is made where it is missing.
        dir: PathBuf,
    },
}

#[derive(Subcommand)]
pub enum VerifyCommand {
    /// Compare every posting and every day of every account. What has not come yet is counted, and is no difference.
    Reports {
        /// The data folder of `lastro up`, which may run.
        #[arg(long, env = "LASTRO_DATA", value_name = "DIR", default_value = "data")]
        data: PathBuf,
        #[command(flatten)]
        database: DatabaseArgs,
    },
}

#[derive(Subcommand)]
pub enum DeadLettersCommand {
    /// Print every dead letter: when it was given up, its topic, aggregate, version and kind, the request that led to it, and the error.
    List {
        #[command(flatten)]
        of: OfService,
    },
    /// Have all dead letters of one aggregate tried again, in order, once what was at fault is mended.
    Retry {
        #[command(flatten)]
        of: OfService,
        /// The topic, as `list` prints it.
        topic: String,
        /// The aggregate, as `list` prints it.
        #[arg(value_parser = crate::dead_letters::parse_aggregate)]
        aggregate: uuid::Uuid,
    },
}

/// The service that reads the events, and where its database is.
#[derive(Args)]
pub struct OfService {
    /// The service that could not apply them.
    #[arg(long, value_name = "NAME")]
    pub service: String,
    /// The data folder of `lastro up`, which must be stopped; on PostgreSQL everything goes on.
    #[arg(long, env = "LASTRO_DATA", value_name = "DIR", default_value = "data")]
    pub data: PathBuf,
    #[command(flatten)]
    pub database: DatabaseArgs,
}

#[derive(Subcommand)]
pub enum AdminCommand {
    /// Make a new password for the administrator, write it to a file, and end the administrator's sessions. Needs no password: whoever may read the
    /// data folder, or log in at the database, may do it. `lastro up` on a data folder must be stopped; on PostgreSQL everything goes on.
    Reset(ResetArgs),
}

#[derive(Args)]
pub struct ResetArgs {
    /// The administrator's e-mail address; needed where there are several administrators.
    #[arg(long, value_name = "ADDRESS")]
    pub email: Option<String>,
    /// The data folder of `lastro up`.
    #[arg(long, env = "LASTRO_DATA", value_name = "DIR", default_value = "data")]
    pub data: PathBuf,
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The file that the address and the new password are written to. Without: admin.json in the data folder.
    #[arg(long, env = "LASTRO_ADMIN_FILE", value_name = "PATH")]
    pub admin_file: Option<PathBuf>,
}

/// A PostgreSQL server, or none.
#[derive(Args)]
pub struct DatabaseArgs {
    /// The PostgreSQL server, postgres://user:password@host:port; the service's database, lastro_<service>, is on it. Without: SQLite in the data folder.
    #[arg(long, env = "LASTRO_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    database_url: Option<String>,
    /// A file that holds the URL, for secrets.
    #[arg(long, env = "LASTRO_DATABASE_URL_FILE", value_name = "PATH", conflicts_with = "database_url")]
    database_url_file: Option<PathBuf>,
}

impl DatabaseArgs {
    /// The URL, from wherever it was given, if it was.
    pub fn url(&self) -> anyhow::Result<Option<PostgresUrl>> {
        read_url(self.database_url.as_deref(), self.database_url_file.as_deref())
    }
}

fn read_url(given: Option<&str>, file: Option<&Path>) -> anyhow::Result<Option<PostgresUrl>> {
    let mut problems = lastro_mesh::config::Problems::default();
    let url = service::given_or_in_file(&mut problems, "--database-url", given, file);
    let url = url.and_then(|url| groups::read_postgres_url(&mut problems, "--database-url", &url));
    problems.check()?;
    Ok(url)
}

/// A PostgreSQL server with the right to make databases and roles.
#[derive(Args)]
pub struct ServerArgs {
    /// The PostgreSQL server, postgres://user:password@host:port; the databases lastro_customers, … are on it.
    #[arg(long, env = "LASTRO_DATABASE_URL", value_name = "URL", hide_env_values = true, required_unless_present = "database_url_file")]
    database_url: Option<String>,
    /// A file that holds the URL, for secrets.
    #[arg(long, env = "LASTRO_DATABASE_URL_FILE", value_name = "PATH", conflicts_with = "database_url")]
    database_url_file: Option<PathBuf>,
}

impl ServerArgs {
    /// The URL, from wherever it was given.
    pub fn url(&self) -> anyhow::Result<PostgresUrl> {
        let url = read_url(self.database_url.as_deref(), self.database_url_file.as_deref())?;
        url.ok_or_else(|| anyhow::anyhow!("--database-url or --database-url-file is needed"))
    }
}

#[derive(Args)]
pub struct MigrateArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// A folder with a file for each role, named as the role and holding its password: lastro_customers_owner, lastro_customers, … Each
    /// database then belongs to its owner, and its service may read and write rows but change no table. Without: all belongs to the user of the URL.
    #[arg(long, env = "LASTRO_ROLE_PASSWORDS", value_name = "DIR")]
    pub role_passwords: Option<PathBuf>,
    /// A JSON file with the email and the password of the first administrator. Without: none is made.
    #[arg(long, env = "LASTRO_ADMIN_FILE", value_name = "PATH")]
    pub admin_file: Option<PathBuf>,
}

#[derive(Subcommand)]
pub enum KeysCommand {
    /// Print every key that verifies tokens: its id, and when it begins and ends to sign and to verify.
    List {
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Publish a new key, which signs once everybody knows it; the old ones verify until no token of theirs can live.
    Rotate {
        #[command(flatten)]
        server: ServerArgs,
        /// Seconds until the new key signs: longer than services keep the public keys, which is 10 s.
        #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(i64).range(15..=86_400))]
        sign_after: i64,
        /// Seconds that the old keys verify after that: no less than an access token lives.
        #[arg(long, value_name = "SECONDS", default_value_t = 18_000, value_parser = clap::value_parser!(i64).range(1..=2_592_000))]
        retire_after: i64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_can_be_parsed_and_every_service_has_one() {
        command().debug_assert();
        for service in SERVICES {
            let found = command().find_subcommand(service.name).cloned().expect("a command for each service");
            assert!(found.get_about().is_some_and(|about| about.to_string().contains(service.about)));
        }
    }
}
