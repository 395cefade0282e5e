//! What journeys and benchmarks share: real servers on free ports in temporary folders, and a client for REST.
#![allow(clippy::expect_used, reason = "a test says what it expected")]

pub mod client;
pub mod front;
pub mod postgres;
pub mod redis;
pub mod server;
pub mod stack;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use client::{Answer, Api};
pub use front::Front;
pub use postgres::Postgres;
pub use redis::Redis;
pub use server::Server;
pub use stack::Stack;

/// A port that nobody listens on right now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

/// The folder of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent").to_owned()
}

/// Runs a command to its end; its output if it succeeded.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    anyhow::ensure!(output.status.success(), "{command:?}: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(text)
}
