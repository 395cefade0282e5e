//! The one binary of Lastro.

mod admin;
mod banner;
mod certs;
mod cli;
mod data_dir;
mod health;
mod keys;
mod migrate;
mod ops;
mod process;
mod proto;
mod routes;
mod services;
mod storage;
mod up;

use clap::Parser as _;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    let command = cli::Cli::parse().command;
    let done = match command {
        cli::Command::Proto { dir } => proto::write(&dir),
        cli::Command::Migrate(settings) => run(migrate::migrate(settings)),
        cli::Command::Up(settings) => run(up::up(*settings)),
        cli::Command::Customers(settings) => run(services::customers::run(*settings)),
        cli::Command::Transactions(settings) => run(services::transactions::run(*settings)),
        cli::Command::Gateway(settings) => run(services::gateway::run(*settings)),
        cli::Command::Keys(command) => run(keys::keys(command)),
        cli::Command::Admin(command) => run(admin::admin(command)),
        cli::Command::Certs { dir, host } => certs::write(&dir, &host),
        cli::Command::Health { ops } => health::ask(&ops),
    };
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

fn run(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    // A thread that hashed a password holds its memory until it ends.
    let idle = std::time::Duration::from_secs(1);
    tokio::runtime::Builder::new_multi_thread().enable_all().thread_keep_alive(idle).build()?.block_on(work)
}
