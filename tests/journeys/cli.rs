//! The command line, as somebody meets it who makes mistakes.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use anyhow::Result;
use lastro_tests::Server;
use lastro_tests::server::binary;
use libtest_mimic::Trial;

use crate::{block_on, failed};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("cli::second_start_on_the_same_folder", || failed(second_start_on_the_same_folder())),
        Trial::test("cli::all_mistakes_at_once", || failed(all_mistakes_at_once())),
        Trial::test("cli::taken_ports_and_unreachable_databases", || failed(taken_ports_and_unreachable_databases())),
        Trial::test("cli::a_restart_keeps_everything_and_prints_no_password", || {
            failed(block_on(a_restart_keeps_everything_and_prints_no_password()))
        }),
        Trial::test("cli::services_say_all_that_is_wrong", || failed(services_say_all_that_is_wrong())),
        Trial::test("cli::proto_writes_what_a_client_needs", || failed(proto_writes_what_a_client_needs())),
    ]
}

fn lastro(arguments: &[&str]) -> Result<(Output, String)> {
    let output = Command::new(binary()?).args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output, text))
}

const FREE: [&str; 6] = ["--rest", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--ops", "127.0.0.1:0"];

fn second_start_on_the_same_folder() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let _first = Server::start(&data, &[])?;
    let (output, text) = lastro(&[&["up", "--data", data.to_str().expect("utf-8")][..], &FREE].concat())?;
    assert!(!output.status.success());
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("in use by another lastro"), "{text}");
    for entry in std::fs::read_dir(&data)? {
        let entry = entry?;
        assert_eq!(entry.metadata()?.permissions().mode() & 0o777, 0o600, "{}", entry.path().display());
    }
    assert_eq!(std::fs::metadata(&data)?.permissions().mode() & 0o777, 0o700);
    Ok(())
}

fn all_mistakes_at_once() -> Result<()> {
    let (output, text) = lastro(&["up", "--rest", "here", "--access-token-ttl", "0", "--database-url", "mysql://secret@x", "--reflection", "maybe"])?;
    assert!(!output.status.success());
    for part in
        ["--rest \"here\"", "--access-token-ttl 0: must be between 1 and 86400", "--database-url: must begin with postgres://", "--reflection"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("secret"), "a URL may hold a password");
    Ok(())
}

fn services_say_all_that_is_wrong() -> Result<()> {
    let nothing = lastro(&["transactions"])?.1;
    for part in [
        "--customers: is needed",
        "--tls-cert",
        "--tls-key",
        "--tls-ca",
        "--tls-policy",
        "--database-url or --database-url-file",
        "--redis-url or --redis-url-file",
    ] {
        assert!(nothing.contains(part), "{part} in {nothing}");
    }
    // Plain text stays on this machine, in and out.
    let stores = ["--database-url", "postgres://x@127.0.0.1:1", "--redis-url", "redis://127.0.0.1:1", "--plaintext", "true"];
    for (service, addresses, said) in [
        ("customers", &["--grpc", "0.0.0.0:0"][..], "listen in plain text on loopback"),
        ("transactions", &["--grpc", "127.0.0.1:0", "--customers", "192.0.2.1:50051"], "192.0.2.1:50051 is not on this machine"),
        ("transactions", &["--customers", "customers"], "\"customers\" is not host:port"),
    ] {
        let (output, text) = lastro(&[&[service][..], &stores, addresses].concat())?;
        assert!(!output.status.success() && text.contains(said), "{said} in {text}");
    }
    // A secret comes once, and from a file that can be read.
    let (_, text) =
        lastro(&["customers", "--database-url", "postgres://u:secret@h", "--database-url-file", "/nowhere", "--redis-url-file", "/nowhere"])?;
    assert!(text.contains("give one of them") && text.contains("--redis-url-file /nowhere") && !text.contains("secret"), "{text}");
    let missing = lastro(&["migrate"])?.1;
    assert!(missing.contains("--database-url"), "{missing}");
    Ok(())
}

fn taken_ports_and_unreachable_databases() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let data = folder.path().join("data");
    let data = data.to_str().expect("utf-8");
    let (output, text) = lastro(&["up", "--data", data, "--rest", &address, "--grpc", "127.0.0.1:0", "--ops", "127.0.0.1:0"])?;
    assert!(!output.status.success() && text.contains(&format!("--rest {address} cannot be listened on")), "{text}");
    let nobody = format!("postgres://nobody:secret@127.0.0.1:{}", lastro_tests::free_port());
    let (output, text) = lastro(&[&["up", "--data", data, "--database-url", &nobody][..], &FREE].concat())?;
    assert!(!output.status.success() && text.contains("lastro_customers cannot be opened") && !text.contains("secret"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    Ok(())
}

async fn a_restart_keeps_everything_and_prints_no_password() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let mut first = Server::start(&data, &[])?;
    let administrator = first.administrator().await?;
    let someone = first.api().someone().await?;
    let account = first.api().account(&someone.token, "BRL").await?;
    first.api().deposit(&administrator, &account, "BRL", "3.00").await?;
    let password = std::fs::read_to_string(data.join("admin.json"))?;
    first.terminate()?;
    let second = first.start_again(&[])?;
    assert_eq!(std::fs::read_to_string(data.join("admin.json"))?, password);
    assert!(!second.banner.contains("password"), "{}", second.banner);
    // The token of before still holds: keys are kept.
    assert_eq!(second.api().posted(&someone.token, &account).await?, "3.00");
    Ok(())
}

fn proto_writes_what_a_client_needs() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (output, text) = lastro(&["proto", folder.path().to_str().expect("utf-8")])?;
    assert!(output.status.success(), "{text}");
    for file in ["descriptors.bin", "lastro/transactions/v1/transactions.proto", "google/api/annotations.proto", "buf/validate/validate.proto"] {
        assert!(folder.path().join(file).metadata()?.len() > 0, "{file}");
    }
    assert!(!folder.path().join("lastro/internal").exists());
    Ok(())
}
