//! A PostgreSQL of its own, on a free port, in a temporary folder, as it comes: fsync on, the settings that initdb writes, and more
//! connections for pgbench.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{free_port, run};

/// Runs until it is dropped.
pub struct Postgres {
    folder: tempfile::TempDir,
    /// Where it listens.
    pub port: u16,
}

impl Postgres {
    /// Makes and starts one.
    pub fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("lastro-postgres-").tempdir()?;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777))?;
        let postgres = Self { folder, port: free_port() };
        let data = postgres.data();
        run(as_postgres(&bin("initdb")?).args(["-U", "postgres", "-A", "trust", "--no-instructions", "-E", "UTF8", "--locale=C", "-D"]).arg(&data))?;
        postgres.resume()?;
        Ok(postgres)
    }

    /// Starts it again after [`stop`](Self::stop).
    pub fn resume(&self) -> Result<()> {
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories={} -c max_connections=300",
            self.port,
            self.folder.path().display()
        );
        let log = self.folder.path().join("log");
        run(as_postgres(&bin("pg_ctl")?).args(["-w", "-t", "60", "-o", &options, "-l"]).arg(log).arg("-D").arg(self.data()).arg("start"))?;
        Ok(())
    }

    /// Ends it as a crash does, or (fast) as an operator does.
    pub fn stop(&self, mode: &str) -> Result<()> {
        run(as_postgres(&bin("pg_ctl")?).args(["-w", "-m", mode, "-D"]).arg(self.data()).arg("stop")).map(|_| ())
    }

    /// The folder of its Unix socket.
    pub fn socket_folder(&self) -> String {
        self.folder.path().display().to_string()
    }

    /// For `--database-url`.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}", self.port)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.stop("immediate");
    }
}

/// PostgreSQL's own programs, where distributions put them.
pub fn bin(name: &str) -> Result<PathBuf> {
    let from_environment = std::env::vars_os().find(|(key, _)| key == "LASTRO_POSTGRES_BIN").map(|(_, value)| PathBuf::from(value));
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    let in_path = std::env::vars_os().find(|(key, _)| key == "PATH").map(|(_, value)| std::env::split_paths(&value).collect::<Vec<_>>());
    let folders = from_environment.into_iter().chain(installed).chain(in_path.into_iter().flatten());
    folders
        .map(|folder| folder.join(name))
        .find(|path| path.exists())
        .with_context(|| format!("{name} of PostgreSQL is not installed; run make deps"))
}

/// PostgreSQL refuses to run as root.
pub fn as_postgres(program: &PathBuf) -> Command {
    let id = Command::new("id").arg("-u").output().map(|output| output.stdout).unwrap_or_default();
    let mut command = if id.starts_with(b"0\n") {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/");
    command
}
