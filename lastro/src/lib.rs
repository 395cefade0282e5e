//! The one binary of Lastro: all of its commands. `main.rs` only calls [`main_with`]; tests call it with something that stands between services and fails.

mod admin;
mod banner;
mod certs;
mod cli;
mod data_dir;
mod dead_letters;
mod deployment;
mod health;
mod keys;
mod migrate;
mod ops;
mod print;
mod process;
mod proto;
mod replay;
mod routes;
mod services;
mod storage;
mod up;
mod verify;

use clap::{ArgMatches, FromArgMatches as _};

pub use routes::{Between, Way};
pub use up::Begun;

/// The environment variables by which `lastro up` is told settings.
pub fn variables_of_up() -> Vec<String> {
    let command = cli::command();
    let arguments = command.find_subcommand("up").into_iter().flat_map(clap::Command::get_arguments);
    arguments.filter_map(|argument| argument.get_env()?.to_str().map(str::to_owned)).collect()
}

/// `lastro up` with these arguments inside another program, which is told when it serves.
pub async fn up_within(arguments: &[&str], begun: impl FnOnce(Begun)) -> anyhow::Result<()> {
    let matches = cli::command().try_get_matches_from(["lastro", "up"].iter().chain(arguments))?;
    let cli::Command::Up(args) = cli::Cli::from_arg_matches(&matches)?.command else { anyhow::bail!("`lastro up` is one of the commands") };
    let given = matches.subcommand_matches("up").unwrap_or(&matches);
    up::up_within(cli::UpSettings::read(*args, given)?, begun).await
}

/// Does what the command line asks for. `between` stands between every service and those that it calls, if it is given.
pub fn main_with(between: Option<Between>) -> std::process::ExitCode {
    routes::put_between(between);
    let done = dispatch(&cli::command().get_matches());
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            #[allow(clippy::print_stderr, reason = "the last word of a command that failed")]
            {
                eprintln!("lastro: {error:#}");
            }
            std::process::ExitCode::FAILURE
        }
    }
}

fn dispatch(matches: &ArgMatches) -> anyhow::Result<()> {
    let Some((name, given)) = matches.subcommand() else { anyhow::bail!("a command is needed; --help lists them") };
    if let Some(service) = services::by_name(name) {
        return run(services::run::run(service, given));
    }
    match cli::Cli::from_arg_matches(matches)?.command {
        cli::Command::Up(args) => run(up::up(cli::UpSettings::read(*args, given)?)),
        cli::Command::Gateway(args) => run(services::gateway::run(cli::GatewaySettings::read(*args, given)?)),
        cli::Command::Migrate(args) => run(migrate::migrate(args)),
        cli::Command::Keys(command) => run(keys::keys(command)),
        cli::Command::Admin(command) => run(admin::admin(command)),
        cli::Command::Replay(_) => run(replay::replay(cli::ReplaySettings::read(given)?)),
        cli::Command::Verify(command) => run(verify::verify(command)),
        cli::Command::DeadLetters(command) => run(dead_letters::dead_letters(command)),
        cli::Command::Certs { dir, host } => certs::write(&dir, &host),
        cli::Command::Health { ops } => health::ask(&ops),
        cli::Command::Deployment { dir } => deployment::write(&dir),
        cli::Command::Services => {
            deployment::list();
            Ok(())
        }
        cli::Command::Proto { dir } => proto::write(&dir),
    }
}

fn run(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    // A thread that hashed a password holds its memory until it ends.
    let idle = std::time::Duration::from_secs(1);
    tokio::runtime::Builder::new_multi_thread().enable_all().thread_keep_alive(idle).build()?.block_on(work)
}
