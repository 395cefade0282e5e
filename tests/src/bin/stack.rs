//! `make stack`: the stack of compose without Docker, for whoever has none.
#![allow(clippy::print_stdout, reason = "it tells where it listens")]

use anyhow::Result;
use lastro_tests::Stack;
use lastro_tests::stack::Options;

#[tokio::main]
async fn main() -> Result<()> {
    let stack = Stack::start(Options::default())?;
    let (front, direct) = (stack.front(), stack.direct());
    println!("the stack is up, until Ctrl-C:");
    println!("  REST  {}", front.rest);
    println!("  gRPC  {}", front.grpc_address());
    println!("  files {} (certs/ca.pem, admin.json, logs)", stack.path("").display());
    for name in stack.names() {
        println!("  {name:<15} {}  operations http://{}", stack.address(&name), stack.ops(&name));
    }
    println!();
    println!("To load it from another terminal:");
    let (files, address) = (stack.path(""), front.grpc_address().to_owned());
    println!("  LASTRO_LOCAL={} LASTRO_ADDRESS={address} LASTRO_DIRECT={} make load", files.display(), direct.grpc_address());
    tokio::signal::ctrl_c().await?;
    Ok(())
}
