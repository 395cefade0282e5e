//! `lastro health`: for containers that hold nothing but this binary.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};

const TIMEOUT: Duration = Duration::from_secs(2);

/// Succeeds when `/readyz` answers 200; says what it answered otherwise.
pub fn ask(ops: &str) -> Result<()> {
    let mut address: SocketAddr = ops.parse().with_context(|| format!("--ops {ops:?} is not address:port"))?;
    if address.ip().is_unspecified() {
        // It listens everywhere: here as well.
        address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let answer = read(address).with_context(|| format!("nobody answers at {address}"))?;
    anyhow::ensure!(answer.starts_with("HTTP/1.1 200"), "not ready: {}", answer.rsplit("\r\n\r\n").next().unwrap_or_default());
    Ok(())
}

fn read(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
