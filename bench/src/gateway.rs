//! The gateway beside grpc-gateway (Go), each a process of its own in front of the same service over the wire, in turns. Ours verifies tokens, limits,
//! counts and logs; the other one only translates.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lastro_tests::server::binary;
use lastro_tests::{Front, free_port, workspace};

use crate::load::{self, Calls, Kind};
use crate::report;
use crate::setup::Rich;

/// Ended when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub async fn measure(rich: &Rich, rounds: usize, span: Duration) -> Result<()> {
    let built = Command::new(workspace().join("bench/grpc-gateway/build")).arg(binary()?).status()?;
    ensure!(built.success(), "grpc-gateway could not be built: it needs Go with its module proxy, and grpcio-tools (make deps)");
    let grpc = rich.front.grpc_address().to_owned();
    let folder = tempfile::tempdir()?;
    let (our_port, ops, its_port) = (free_port(), free_port(), free_port());
    let at = |port: u16| format!("127.0.0.1:{port}");
    let mut ours = Command::new(binary()?);
    ours.args(["gateway", "--plaintext", "true", "--rest", &at(our_port), "--ops", &at(ops), "--customers", &grpc, "--transactions", &grpc]);
    ours.args(["--rate-limit-per-address", "10000000", "--rate-limit-per-user", "10000000"]).arg("--data").arg(folder.path());
    let _ours = Running(ours.stderr(Stdio::null()).spawn()?);
    let mut its = Command::new(workspace().join("target/grpc-gateway/grpc-gateway"));
    let _its = Running(its.arg(at(its_port)).arg(&grpc).stderr(Stdio::null()).spawn()?);
    let in_front = |port: u16| rich.at(Front { rest: format!("http://{}", at(port)), ..rich.front.clone() });
    let gateways = [("grpc-gateway (Go)", in_front(its_port)), ("lastro gateway", in_front(our_port))];
    for (name, gateway) in &gateways {
        until_it_answers(gateway).await.with_context(|| format!("{name} does not answer"))?;
    }
    let mut figures = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for turn in [round % 2, (round + 1) % 2] {
            let (name, gateway) = &gateways[turn];
            let calls = load::measure(gateway, Kind::GetOverRest, 64, span).await?;
            println!("round {}: {}, 64 callers: {name}: {calls}", round + 1, Kind::GetOverRest.name());
            figures[turn].push(calls);
        }
    }
    let [its, ours] = figures.map(|calls| report::median(calls.iter().map(Calls::per_second)));
    report::ratio("reads of an account over REST, lastro gateway / grpc-gateway", ours, its);
    Ok(())
}

async fn until_it_answers(gateway: &Rich) -> Result<()> {
    for _ in 0..100 {
        if load::one_at_a_time(gateway, Kind::GetOverRest, 1, Duration::from_millis(100)).await.is_ok() {
            return Ok(());
        }
    }
    anyhow::bail!("nothing within 10 s")
}
