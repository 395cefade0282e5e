//! A Redis of its own, on a free port, in a temporary folder, with an append-only file.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{free_port, run};

/// Runs until it is dropped.
pub struct Redis {
    folder: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Redis {
    /// Starts one.
    pub fn start() -> Result<Self> {
        let mut redis = Self { folder: tempfile::tempdir()?, port: free_port(), child: None };
        redis.resume()?;
        Ok(redis)
    }

    /// Starts it again after [`stop`](Self::stop).
    pub fn resume(&mut self) -> Result<()> {
        let mut command = Command::new("redis-server");
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--appendonly", "yes", "--save", "", "--dir"]).arg(self.folder.path());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.child = Some(child.context("redis-server is not installed; run make deps")?);
        for _ in 0..200 {
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        anyhow::bail!("redis-server does not listen")
    }

    /// Kills it.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends SIGSTOP, SIGCONT or any other signal.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let pid = self.child.as_ref().map(Child::id).context("Redis does not run")?;
        run(Command::new("kill").args([format!("-{signal}"), pid.to_string()])).map(|_| ())
    }

    /// Kills it and deletes everything that it had.
    pub fn lose_everything(&mut self) -> Result<()> {
        self.stop();
        std::fs::remove_dir_all(self.folder.path())?;
        std::fs::create_dir(self.folder.path())?;
        Ok(())
    }

    /// For `--redis-url`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}
