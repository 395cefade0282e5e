//! A `lastro up` of its own, on free ports.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{Api, Front, run, workspace};

/// Runs until it is dropped; the data folder stays as long as somebody has it.
pub struct Server {
    child: Child,
    /// `127.0.0.1:port`.
    pub rest: String,
    /// `127.0.0.1:port`.
    pub grpc: String,
    /// `127.0.0.1:port`.
    pub ops: String,
    /// The data folder.
    pub data: PathBuf,
    /// What it printed when it started.
    pub banner: String,
}

/// In the environment of what the tests start.
pub const MANY_REGISTRATIONS: [(&str, &str); 2] = [("LASTRO_REGISTRATIONS_PER_MINUTE", "1000000"), ("LASTRO_REGISTRATIONS_BURST", "1000000")];

/// The binary under test: of the same profile as this program, built if it is not.
pub fn binary() -> Result<PathBuf> {
    binary_named("lastro")
}

/// The same program, with something between orders and those that it calls that fails as it is told: src/bin/faulty.rs.
pub fn faulty_binary() -> Result<PathBuf> {
    binary_named("lastro-faulty")
}

/// The program that makes a demo: src/bin/demo.
pub fn demo_binary() -> Result<PathBuf> {
    binary_named("lastro-demo")
}

fn binary_named(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.ancestors().find(|path| path.ends_with("debug") || path.ends_with("release")).context("not in a target folder")?;
    let binary = folder.join(name);
    if !binary.exists() {
        run(Command::new("cargo").args(["build", "--locked", "--bin", name]).current_dir(workspace()))?;
    }
    Ok(binary)
}

impl Server {
    /// Starts one on a data folder, with more flags, and waits until it is ready.
    pub fn start(data: &Path, flags: &[&str]) -> Result<Self> {
        let ports = ["--rest", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--ops", "127.0.0.1:0"];
        Self::start_on(&binary()?, &[], data, &ports, flags)
    }

    /// As [`start`](Self::start), of another binary.
    pub fn start_binary(binary: &Path, data: &Path, flags: &[&str]) -> Result<Self> {
        Self::start_binary_in(binary, &[], data, flags)
    }

    /// As [`start`](Self::start), of another binary, with more in its environment.
    pub fn start_binary_in(binary: &Path, environment: &[(&str, &OsStr)], data: &Path, flags: &[&str]) -> Result<Self> {
        Self::start_on(binary, environment, data, &["--rest", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--ops", "127.0.0.1:0"], flags)
    }

    /// As [`start`](Self::start), on the ports that an earlier one had.
    pub fn start_again(&self, flags: &[&str]) -> Result<Self> {
        let ports = ["--rest", self.rest.as_str(), "--grpc", &self.grpc, "--ops", &self.ops];
        Self::start_on(&binary()?, &[], &self.data, &ports, flags)
    }

    /// As [`start_again`](Self::start_again), of another binary.
    pub fn start_binary_again(&self, binary: &Path, environment: &[(&str, &OsStr)], flags: &[&str]) -> Result<Self> {
        let ports = ["--rest", self.rest.as_str(), "--grpc", &self.grpc, "--ops", &self.ops];
        Self::start_on(binary, environment, &self.data, &ports, flags)
    }

    /// Whether it has ended by itself, or was killed.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    fn start_on(binary: &Path, environment: &[(&str, &OsStr)], data: &Path, ports: &[&str], flags: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(data)?;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(data.with_extension("log"))?;
        let mut command = Command::new(binary);
        // The tests register more users from one address than anybody may; a flag says otherwise where that is tested.
        command.envs(MANY_REGISTRATIONS).envs(environment.iter().copied());
        command.arg("up").arg("--data").arg(data).args(ports).args(flags);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        let mut banner = String::new();
        let mut value_after = |word: &str| -> Result<String> {
            for line in lines.by_ref() {
                let line = line?;
                banner = format!("{banner}{line}\n");
                if let Some(rest) = line.trim().strip_prefix(word) {
                    let address = rest.trim().trim_start_matches("http://");
                    return Ok(address.split([' ', '/']).next().unwrap_or_default().to_owned());
                }
            }
            anyhow::bail!(
                "lastro did not start; it printed {banner:?}, and {}",
                std::fs::read_to_string(data.with_extension("log")).unwrap_or_default()
            )
        };
        let (rest, grpc, ops) = (value_after("REST")?, value_after("gRPC")?, value_after("ops")?);
        // The rest of what it prints is read, so that it never waits for us.
        let rest_of_banner = std::thread::spawn(move || lines.map_while(Result::ok).take(40).collect::<Vec<_>>().join("\n"));
        drop(rest_of_banner);
        Ok(Self { child, rest, grpc, ops, data: data.to_owned(), banner })
    }

    /// Where it is reached.
    pub fn front(&self) -> Front {
        Front {
            rest: format!("http://{}", self.rest),
            grpc: format!("http://{}", self.grpc),
            ops: self.ops.clone(),
            authority: None,
            admin_file: self.data.join("admin.json"),
            identity: None,
        }
    }

    /// Its REST API.
    pub fn api(&self) -> Api {
        Api::new(&format!("http://{}", self.rest))
    }

    /// The administrator's access token.
    pub async fn administrator(&self) -> Result<String> {
        self.front().administrator().await
    }

    /// Ends it at once, as a crash does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end, and waits until it has.
    pub fn terminate(&mut self) -> Result<()> {
        run(Command::new("kill").args(["-TERM", &self.child.id().to_string()]))?;
        for _ in 0..400 {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        anyhow::bail!("lastro did not end after SIGTERM")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
