//! The demo: a month of a small shop's life, as whoever looks around sees it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lastro_tests::server::{binary, demo_binary};
use lastro_tests::{Api, Server, run};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::{block_on, failed};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("demo::a_month_of_a_small_shop", || failed(block_on(a_month_of_a_small_shop()))),
        Trial::test("demo::it_is_made_whole_or_not_at_all", || failed(it_is_made_whole_or_not_at_all())),
    ]
}

/// Without the settings that the tests' own servers are started with.
fn demo(data: &Path) -> Result<Command> {
    let mut command = Command::new(demo_binary()?);
    for name in lastro::variables_of_up() {
        command.env_remove(name);
    }
    command.arg("--data").arg(data);
    Ok(command)
}

fn summary(data: &Path) -> Result<Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(data.join("demo.json"))?)?)
}

async fn a_month_of_a_small_shop() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (data, again) = (folder.path().join("shop"), folder.path().join("again"));
    let mut second = demo(&again)?.stdout(Stdio::null()).spawn()?;
    let said = run(&mut demo(&data)?)?;
    ensure!(said.contains("Three questions"), "{said}");
    ensure!(second.wait()?.success(), "the second one failed");
    let (first, second) = (summary(&data)?, summary(&again)?);
    for name in ["from", "to", "orders", "completed", "cancelled", "failed", "transactions"] {
        assert_eq!(first[name], second[name], "{name}: the same seed makes the same month");
    }
    let number = |name: &str| first[name].as_u64().unwrap_or_default();
    let told = run(Command::new(binary()?).args(["verify", "reports", "--data"]).arg(&data))?;
    ensure!(told.contains("reports are what the ledger has"), "{told}");

    let server = Server::start(&data, &[])?;
    let api = Api::new(&server.front().rest);
    let login = async |body: Value| api.post("/api/v1/auth/login", None, body).await?.text("accessToken");
    let administrator = login(serde_json::from_str(&std::fs::read_to_string(data.join("admin.json"))?)?).await?;
    let merchant = login(json!({ "email": "aurora@example.com", "password": "correct horse" })).await?;
    let (from, to) = (first["from"].as_str().context("from")?, first["to"].as_str().context("to")?);

    let analytics = api.get(&format!("/api/v1/orders/analytics?from={from}&to={to}"), Some(&administrator)).await?;
    let days = analytics.body["days"].as_array().context("days")?;
    let sum = |name: &str| days.iter().filter_map(|day| day[name].as_u64()).sum::<u64>();
    assert_eq!(days.len(), 30, "something was ordered every day");
    assert_eq!((sum("orders"), sum("cancelled"), sum("failed"), sum("pending")), (number("orders"), number("cancelled"), number("failed"), 0));
    ensure!(sum("failed") > 0 && sum("cancelled") > 0 && sum("shipped") > 0 && sum("delivered") > 0, "a month has all of it: {days:?}");
    let best = &analytics.body["topProducts"][0];
    assert_eq!(best["name"], json!("Caf\u{e9} Mogiana 250 g"), "{analytics:?}");

    // What was sold of the best product is the same in the merchant's own report.
    let sales = format!("/api/v1/reports/sales?accountId={}&from={from}&to={to}", first["merchantAccountId"].as_str().context("account")?);
    let sales = api.get(&sales, Some(&merchant)).await?;
    let rows = sales.body["rows"].as_array().context("rows")?;
    let of_best = rows.iter().filter(|row| row["productId"] == best["productId"]);
    let pieces: i64 = of_best.map(|row| row["sold"].as_i64().unwrap_or_default() - row["returned"].as_i64().unwrap_or_default()).sum();
    assert_eq!(Some(pieces), best["quantity"].as_i64());
    ensure!(rows.iter().any(|row| row["returned"].as_i64() > Some(0)), "something came back");

    // The month is found by its days, and by words.
    let found = async |path: String| {
        let page = api.get(&path, Some(&administrator)).await?;
        anyhow::Ok(page.body["orders"].as_array().with_context(|| format!("{page:?}"))?.len())
    };
    let all = found(format!("/api/v1/orders?pageSize=1000&from={from}&to={to}")).await?;
    assert_eq!(all as u64, number("orders"), "orders of the month");
    assert_eq!(
        found(format!("/api/v1/orders?pageSize=1000&to={from}")).await? as u64,
        days[0]["orders"].as_u64().unwrap_or_default(),
        "orders of its first day"
    );
    ensure!((1..all).contains(&found("/api/v1/orders/search?q=CAFE%20hortela&pageSize=1000".to_owned()).await?), "some have both words");
    // What the market stall took in on a Saturday was entered on the Monday after it.
    let statement = format!("/api/v1/reports/statement?accountId={}&from={from}&to={to}", first["merchantAccountId"].as_str().context("account")?);
    let statement = api.get(&format!("{statement}&pageSize=1000"), Some(&merchant)).await?;
    let late = statement.body["entries"]
        .as_array()
        .context("entries")?
        .iter()
        .find(|entry| entry["description"] == "Market stall")
        .context("a late entry")?;
    ensure!(late["effectiveTime"].as_str() < late["recordTime"].as_str(), "{late}");

    let said = run(&mut demo(&data)?)?;
    ensure!(said.contains("has a shop already") && said.contains("Three questions"), "{said}");
    Ok(())
}

fn it_is_made_whole_or_not_at_all() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("shop");
    let mut interrupted = demo(&data)?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let is_begun = || anyhow::Ok(std::fs::read_dir(folder.path())?.count() > 0);
    let since = Instant::now();
    while !is_begun()? {
        ensure!(since.elapsed() < Duration::from_secs(30), "it does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(1_500));
    run(Command::new("kill").args(["-INT", &interrupted.id().to_string()]))?;
    ensure!(!interrupted.wait()?.success(), "an interrupted one fails");
    assert_eq!(std::fs::read_dir(folder.path())?.count(), 0, "nothing is left of it");
    // A folder with something else in it stays as it is.
    std::fs::create_dir(&data)?;
    std::fs::write(data.join("letter.txt"), "mine")?;
    let refused = demo(&data)?.output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("give another folder with --data"), "{said}");
    assert_eq!(std::fs::read_to_string(data.join("letter.txt"))?, "mine");
    let refused = demo(&folder.path().join("other"))?.env("LASTRO_DATABASE_URL", "postgres://localhost").output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("unset LASTRO_DATABASE_URL"), "{said}");
    Ok(())
}
