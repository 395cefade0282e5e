//! pgbench's TPC-B on the server that the transfers run on.

use anyhow::{Context as _, Result};
use lastro_tests::postgres::{as_postgres, bin};
use lastro_tests::{Postgres, run};

const DATABASE: &str = "pgbench";

fn connection(postgres: &Postgres) -> [String; 6] {
    ["-h", "127.0.0.1", "-U", "postgres", "-p", &postgres.port.to_string()].map(str::to_owned)
}

/// Makes its tables.
pub fn initialise(postgres: &Postgres, scale: u32) -> Result<()> {
    run(as_postgres(&bin("createdb")?).args(connection(postgres)).arg(DATABASE))?;
    run(as_postgres(&bin("pgbench")?).args(connection(postgres)).args(["-i", "-q", "-s", &scale.to_string(), DATABASE]))?;
    Ok(())
}

/// Transactions per second.
pub fn measure(postgres: &Postgres, clients: usize, seconds: u64) -> Result<f64> {
    let (clients, threads, seconds) = (clients.to_string(), clients.min(2).to_string(), seconds.to_string());
    let mut command = as_postgres(&bin("pgbench")?);
    command.args(connection(postgres)).args(["-c", &clients, "-j", &threads, "-T", &seconds, DATABASE]);
    let said = run(&mut command)?;
    let line = said.lines().find_map(|line| line.strip_prefix("tps = ")).context("pgbench says no tps")?;
    Ok(line.split(' ').next().unwrap_or_default().parse()?)
}
