//! What journeys and benchmarks share: real servers on free ports in temporary folders, and a client for REST.
#![allow(clippy::expect_used, reason = "a test says what it expected")]

pub mod client;
pub mod front;
pub mod payment_provider;
pub mod postgres;
pub mod reader;
pub mod redis;
pub mod server;
pub mod stack;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

pub use client::{Answer, Api};
pub use front::Front;
pub use payment_provider::PaymentProvider;
pub use postgres::Postgres;
pub use redis::Redis;
pub use server::Server;
pub use stack::Stack;

/// A port that nobody listens on, and that this process gives out once. It is none of those that the system takes for outgoing
/// connections (from 32768 on Linux, 49152 elsewhere): under load, one of them would be taken before the server that asked listens.
pub fn free_port() -> u16 {
    const FIRST: u32 = 12_000;
    const PORTS: u32 = 20_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Processes begin at different places, so that two test runs on one machine do not race for each port.
    let begin = std::process::id().wrapping_mul(257);
    (0..PORTS)
        .map(|_| FIRST + begin.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % PORTS)
        .filter_map(|port| u16::try_from(port).ok())
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
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
