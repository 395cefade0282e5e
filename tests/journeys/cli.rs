//! The command line, as somebody meets it who makes mistakes.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result};
use lastro_tests::client::PASSWORD;
use lastro_tests::server::binary;
use lastro_tests::{Api, Server};
use libtest_mimic::Trial;
use reqwest::Method;
use sea_orm::ConnectionTrait as _;
use serde_json::json;

use crate::ledger::Ledger;
use crate::pipeline::Rig;
use crate::{block_on, failed};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("cli::second_start_on_the_same_folder", || failed(second_start_on_the_same_folder())),
        Trial::test("cli::all_mistakes_at_once", || failed(all_mistakes_at_once())),
        Trial::test("cli::taken_ports_and_unreachable_databases", || failed(taken_ports_and_unreachable_databases())),
        Trial::test("cli::a_restart_keeps_everything_and_prints_no_password", || {
            failed(block_on(a_restart_keeps_everything_and_prints_no_password()))
        }),
        Trial::test("cli::a_forgotten_password_has_a_way_back", || failed(block_on(a_forgotten_password_has_a_way_back()))),
        Trial::test("cli::a_forgotten_password_has_a_way_back_on_postgres", || {
            failed(Rig::start(true).and_then(|rig| block_on(a_forgotten_password_has_a_way_back_on_postgres(&rig))))
        }),
        Trial::test("cli::dead_letters_are_listed_and_tried_again", || failed(block_on(dead_letters_are_listed_and_tried_again()))),
        Trial::test("cli::services_say_all_that_is_wrong", || failed(services_say_all_that_is_wrong())),
        Trial::test("cli::proto_writes_what_a_client_needs", || failed(proto_writes_what_a_client_needs())),
    ]
}

pub fn lastro(arguments: &[&str]) -> Result<(Output, String)> {
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

fn admin_file(path: &Path) -> Result<(String, String)> {
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(path)?)?;
    assert_eq!(std::fs::metadata(path)?.permissions().mode() & 0o777, 0o600);
    let text = |name: &str| anyhow::Ok(kept[name].as_str().with_context(|| format!("{name} in {kept}"))?.to_owned());
    Ok((text("email")?, text("password")?))
}

async fn login(api: &Api, email: &str, password: &str) -> Result<u16> {
    Ok(api.post("/api/v1/auth/login", None, json!({ "email": email, "password": password })).await?.status)
}

/// The administrator changed the password and forgot it. With `lastro up` stopped there is a new one, and what was before is over.
async fn a_forgotten_password_has_a_way_back() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let path = data.to_str().context("utf-8")?;
    let (output, text) = lastro(&["admin", "reset", "--data", path])?;
    assert!(!output.status.success() && text.contains("customers.db is not there"), "{text}");
    let mut server = Server::start(&data, &[])?;
    let token = server.administrator().await?;
    let (email, first) = admin_file(&data.join("admin.json"))?;
    let changed = json!({ "currentPassword": first, "newPassword": "forgotten at once" });
    assert_eq!(server.api().post("/api/v1/users/me:changePassword", Some(&token), changed).await?.status, 200);
    let session = server.api().post("/api/v1/auth/login", None, json!({ "email": email, "password": "forgotten at once" })).await?;
    let token = session.text("accessToken")?;
    for _ in 0..11 {
        login(&server.api(), &email, "wrong").await?;
    }
    assert_eq!(login(&server.api(), &email, "wrong").await?, 429);
    let (output, text) = lastro(&["admin", "reset", "--data", path])?;
    assert!(!output.status.success() && text.contains("in use by another lastro"), "{text}");
    server.terminate()?;
    let (output, text) = lastro(&["admin", "reset", "--data", path])?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && told.contains(&email) && told.contains("admin.json"), "{told}{text}");
    let (same, second) = admin_file(&data.join("admin.json"))?;
    assert!(same == email && second != first && !told.contains(&second));
    let server = Server::start(&data, &[])?;
    assert_eq!(login(&server.api(), &email, &first).await?, 401);
    assert_eq!(login(&server.api(), &email, "forgotten at once").await?, 401);
    assert_eq!(server.api().get("/api/v1/users/me", Some(&token)).await?.status, 401, "sessions of before are over");
    assert_eq!(login(&server.api(), &email, &second).await?, 200);
    Ok(())
}

/// transactions cannot note a new user, since its table refuses; once it takes rows again, an operator has the event tried again.
async fn dead_letters_are_listed_and_tried_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let of = ["--service", "transactions", "--data", data.to_str().context("utf-8")?];
    let dead_letters = |arguments: &[&str]| -> Result<(bool, String)> {
        let (output, text) = lastro(&[&["dead-letters"][..], arguments, &of].concat())?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned() + &text))
    };
    let mut server = Server::start(&data, &[])?;
    let ledger = Ledger::open(None, &data).await?;
    let since = std::time::Instant::now();
    while ledger.count("SELECT count(*) AS count FROM owners").await? < 1 {
        anyhow::ensure!(since.elapsed().as_secs() < 20, "the event of the administrator is applied");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    ledger
        .transactions
        .writer()
        .execute_unprepared("CREATE TRIGGER refuse BEFORE INSERT ON owners BEGIN SELECT RAISE(ABORT, 'no rows today'); END")
        .await?;
    let someone = server.api().someone().await?;
    let since = std::time::Instant::now();
    while ledger.count("SELECT count(*) AS count FROM dead_events").await? < 1 {
        anyhow::ensure!(since.elapsed().as_secs() < 20, "the event becomes a dead letter");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let (done, text) = dead_letters(&["list"])?;
    assert!(!done && text.contains("in use by another lastro"), "{text}");
    server.terminate()?;
    let (done, text) = dead_letters(&["list"])?;
    assert!(done && text.contains(&someone.id) && text.contains("no rows today") && text.contains("USER_CREATED"), "{text}");
    for (wrong, said) in [(["retry", "customers", "x"], "must be a UUID"), (["retry", "others", &someone.id], "no such dead letters")] {
        let (done, text) = dead_letters(&wrong)?;
        assert!(!done && text.contains(said), "{text}");
    }
    ledger.transactions.writer().execute_unprepared("DROP TRIGGER refuse").await?;
    let (done, text) = dead_letters(&["retry", "customers", &someone.id])?;
    assert!(done, "{text}");
    let _server = Server::start(&data, &[])?;
    while ledger.count("SELECT count(*) AS count FROM owners").await? < 2 || ledger.count("SELECT count(*) AS count FROM inbox_parked").await? > 0 {
        anyhow::ensure!(since.elapsed().as_secs() < 40, "it is applied");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(ledger.count("SELECT count(*) AS count FROM dead_events").await?, 0);
    Ok(())
}

/// On PostgreSQL everything goes on meanwhile. Where there are several administrators, it has to be said which one.
async fn a_forgotten_password_has_a_way_back_on_postgres(rig: &Rig) -> Result<()> {
    let (api, token) = (rig.server.api(), rig.server.administrator().await?);
    let url = rig.postgres.as_ref().context("on PostgreSQL")?.url();
    let other = api.someone().await?;
    let roles = json!({ "roles": ["USER", "ADMIN"] });
    let answer = api.json(Method::PATCH, &format!("/api/v1/users/{}", other.id), Some(&token), &[], Some(roles)).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let file = rig.server.data.join("reset.json");
    let reset =
        |more: &[&str]| lastro(&[&["admin", "reset", "--database-url", &url, "--admin-file", file.to_str().unwrap_or_default()][..], more].concat());
    let (output, text) = reset(&[])?;
    assert!(!output.status.success() && text.contains("--email") && text.contains(&other.email), "{text}");
    std::fs::write(&file, r#"{"email":"first@example.com","password":"known only here"}"#)?;
    let (output, text) = reset(&["--email", &other.email])?;
    assert!(!output.status.success() && text.contains("holds the password of first@example.com"), "{text}");
    std::fs::remove_file(&file)?;
    let (output, text) = reset(&["--email", "nobody@example.com"])?;
    assert!(!output.status.success() && text.contains("no administrator") && !file.exists(), "{text}");
    let session = api.post("/api/v1/auth/login", None, json!({ "email": other.email, "password": PASSWORD })).await?;
    let other_token = session.text("accessToken")?;
    let (output, text) = reset(&["--email", &other.email.to_uppercase()])?;
    assert!(output.status.success(), "{text}");
    let (email, password) = admin_file(&file)?;
    assert_eq!((email.as_str(), login(&api, &email, &password).await?, login(&api, &email, PASSWORD).await?), (other.email.as_str(), 200, 401));
    for path in ["/api/v1/users/me", "/api/v1/accounts"] {
        let since = std::time::Instant::now();
        while api.get(path, Some(&other_token)).await?.status != 401 {
            anyhow::ensure!(since.elapsed().as_secs() < 5, "{path} still takes a token of before");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    assert_eq!(api.get("/api/v1/users/me", Some(&token)).await?.status, 200, "nobody else's session ends");
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
