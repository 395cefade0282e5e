//! Daily balances, statements and reports of transactions, and reads that see what their caller has just written.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::{join_all, try_join_all};
use lastro_database::{Database, execute};
use lastro_proto::reports::v1::ListDailyBalancesRequest;
use lastro_proto::reports::v1::reports_service_client::ReportsServiceClient;
use lastro_tests::client::{Answer, Someone};
use lastro_tests::{Api, Front, Postgres, Server};
use libtest_mimic::Trial;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Connection as _;
use tokio::time::sleep;
use uuid::Uuid;

use crate::grpc::{channel, with_token};
use crate::provider_events::external_deposit;
use crate::replay::REPLAYS;
use crate::{World, block_on, failed};

const FRESHNESS: &str = "x-lastro-freshness";

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("reports::a_new_account_counts_in_its_currency", || failed(block_on(a_new_account_counts_in_its_currency()))),
        Trial::test("reports::tables_have_bounds", || failed(block_on(tables_have_bounds()))),
        Trial::test("reports::one_who_reads_much_leaves_others", || failed(block_on(one_who_reads_much_leaves_others()))),
    ]
}

/// Somebody with an account, and an administrator who brings money in at any time that counts.
pub struct Bank {
    pub api: Api,
    pub administrator: String,
    pub owner: Someone,
    pub account: String,
}

impl Bank {
    pub async fn open(world: &World) -> Result<Self> {
        Self::at(&world.server).await
    }

    pub async fn at(front: &Front) -> Result<Self> {
        let (api, administrator) = (front.api(), front.administrator().await?);
        let owner = api.someone().await?;
        let account = api.account(&owner.token, "BRL").await?;
        Ok(Self { api, administrator, owner, account })
    }

    pub async fn deposit(&self, amount: &str, effective: Option<&str>) -> Result<Answer> {
        let mut body =
            json!({ "externalId": Uuid::new_v4().to_string(), "type": "DEPOSIT", "destinationAccountId": self.account, "amount": brl(amount) });
        if let Some(effective) = effective {
            body["effectiveTime"] = json!(effective);
        }
        let made = self.api.transact(&self.administrator, body).await?;
        assert_eq!(made.body["state"], "COMPLETED", "{made:?}");
        Ok(made)
    }

    async fn withdraw(&self, amount: &str, effective: Option<&str>) -> Result<Answer> {
        let mut body =
            json!({ "externalId": Uuid::new_v4().to_string(), "type": "WITHDRAWAL", "sourceAccountId": self.account, "amount": brl(amount) });
        if let Some(effective) = effective {
            body["effectiveTime"] = json!(effective);
        }
        self.api.transact(&self.owner.token, body).await
    }

    /// As somebody who has made this write.
    async fn read(&self, path: &str, token: &str, written: &Answer) -> Result<Answer> {
        self.api.json(Method::GET, &format!("/api/v1/reports/{path}"), Some(token), &[(FRESHNESS, written.header(FRESHNESS))], None).await
    }

    /// Date, opening, credits, debits and closing of each day.
    pub async fn days(&self, query: &str, written: &Answer) -> Result<(Vec<[String; 5]>, Answer)> {
        let answer = self.read(&format!("daily-balances?accountId={}&{query}", self.account), &self.owner.token, written).await?;
        assert_eq!(answer.status, 200, "{answer:?}");
        Ok((days_of(&answer)?, answer))
    }
}

fn brl(amount: &str) -> Value {
    json!({ "currencyCode": "BRL", "amount": amount })
}

fn days_of(answer: &Answer) -> Result<Vec<[String; 5]>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let day = |day: &Value| {
        let amount = |name: &str| text(&day[name]["amount"]);
        [text(&day["date"]), amount("opening"), amount("credits"), amount("debits"), amount("closing")]
    };
    Ok(answer.body["days"].as_array().context("days")?.iter().map(day).collect())
}

fn rows(expected: &[[&str; 5]]) -> Vec<[String; 5]> {
    expected.iter().map(|row| row.map(str::to_owned)).collect()
}

pub async fn days_begin_and_end_in_the_ledgers_time_zone(world: &World) -> Result<()> {
    let bank = Bank::open(world).await?;
    // 2018-11-04 had no 00:00 in São Paulo; the last hour of 2019-02-16 came twice.
    for (amount, effective) in [
        ("1", "2018-11-04T02:59:59.999999Z"),
        ("2", "2018-11-04T03:00:00Z"),
        ("4", "2019-02-17T01:59:59Z"),
        ("8", "2019-02-17T02:59:59Z"),
        ("16", "2019-02-17T03:00:00Z"),
    ] {
        bank.deposit(amount, Some(effective)).await?;
    }
    let written = bank.withdraw("5", Some("2019-02-17T12:00:00Z")).await?;
    let (days, answer) = bank.days("from=2018-11-02&to=2018-11-05", &written).await?;
    let expected = [
        ["2018-11-02", "0.00", "0.00", "0.00", "0.00"],
        ["2018-11-03", "0.00", "1.00", "0.00", "1.00"],
        ["2018-11-04", "1.00", "2.00", "0.00", "3.00"],
        ["2018-11-05", "3.00", "0.00", "0.00", "3.00"],
    ];
    assert_eq!((days, &answer.body["timeZone"]), (rows(&expected), &json!("America/Sao_Paulo")));
    let (days, _) = bank.days("from=2019-02-16&to=2019-02-17", &written).await?;
    assert_eq!(days, rows(&[["2019-02-16", "3.00", "12.00", "0.00", "15.00"], ["2019-02-17", "15.00", "16.00", "5.00", "26.00"]]));
    // Without dates the last 30 days.
    let (days, _) = bank.days("", &written).await?;
    assert_eq!((days.len(), days[29][4].as_str()), (30, "26.00"));
    Ok(())
}

pub async fn what_is_backdated_counts_from_its_day_on(world: &World) -> Result<()> {
    let bank = Bank::open(world).await?;
    let written = bank.deposit("100", Some("2026-01-10T12:00:00Z")).await?;
    let query = "from=2026-01-09&to=2026-01-11";
    let (before, published) = bank.days(query, &written).await?;
    let written = bank.deposit("7", Some("2026-01-09T12:00:00Z")).await?;
    let (after, _) = bank.days(query, &written).await?;
    let expected = [
        ["2026-01-09", "0.00", "7.00", "0.00", "7.00"],
        ["2026-01-10", "7.00", "100.00", "0.00", "107.00"],
        ["2026-01-11", "107.00", "0.00", "0.00", "107.00"],
    ];
    assert_eq!(after, rows(&expected));
    // What was published is told again, as often as it is asked for.
    let as_of = published.text("asOfTime")?;
    let (again, told) = bank.days(&format!("{query}&asOf={as_of}"), &written).await?;
    assert_eq!((again, told.text("asOfTime")?), (before, as_of));
    let (nothing, told) = bank.days(&format!("{query}&asOf=2026-01-01T00:00:00Z"), &written).await?;
    assert!(nothing.iter().all(|day| day[4] == "0.00") && told.body["asOfTime"].is_null(), "{told:?}");
    Ok(())
}

pub async fn balances_are_their_owners(world: &World) -> Result<()> {
    let bank = Bank::open(world).await?;
    let second = bank.api.account(&bank.owner.token, "BRL").await?;
    bank.api.account(&bank.owner.token, "USD").await?;
    bank.deposit("10", Some("2026-02-01T12:00:00Z")).await?;
    let moved = bank.api.transact(&bank.owner.token, Api::transfer("t1", &bank.account, &second, "4")).await?;
    let path = format!("daily-balances?accountId={}&from=2026-02-01&to=2026-02-01", bank.account);
    let other = bank.api.someone().await?;
    for (token, status) in [(&bank.owner.token, 200), (&bank.administrator, 200), (&other.token, 404)] {
        assert_eq!(bank.read(&path, token, &moved).await?.status, status);
        assert_eq!(bank.read(&format!("statement?accountId={}", bank.account), token, &moved).await?.status, status);
    }
    // All of one's accounts in a currency together.
    let together = |code: &str| format!("daily-balances?currencyCode={code}&from=2026-02-01&to=2026-02-02");
    let days = days_of(&bank.read(&together("BRL"), &bank.owner.token, &moved).await?)?;
    assert_eq!(days[1], ["2026-02-02", "10.00", "0.00", "0.00", "10.00"].map(str::to_owned));
    assert_eq!(days_of(&bank.read(&together("USD"), &bank.owner.token, &moved).await?)?[1][4], "0.00", "another currency is not in it");
    assert_eq!(days_of(&bank.read(&together("BRL"), &other.token, &moved).await?)?[1][4], "0.00");
    // An account that has nothing is there as soon as it is opened.
    let opened = bank.api.post("/api/v1/accounts", Some(&bank.owner.token), json!({ "currencyCode": "JPY", "displayName": "" })).await?;
    let path = format!("daily-balances?accountId={}&from=2026-02-01&to=2026-02-01", opened.text("id")?);
    assert_eq!(days_of(&bank.read(&path, &bank.owner.token, &opened).await?)?, rows(&[["2026-02-01", "0", "0", "0", "0"]]));
    Ok(())
}

/// Whichever replica is asked, and however often.
pub async fn what_is_cached_is_what_is_there(world: &World) -> Result<()> {
    let bank = Bank::open(world).await?;
    let path = format!("/api/v1/reports/daily-balances?accountId={}&from=2026-02-20&to=2026-02-21", bank.account);
    // That it is not there yet may be cached as well.
    for _ in 0..4 {
        let _ = bank.api.get(&path, Some(&bank.owner.token)).await?;
    }
    for number in 1..=5 {
        let written = bank.deposit("1", Some("2026-02-20T12:00:00Z")).await?;
        bank.days("from=2026-02-20&to=2026-02-20", &written).await?;
        let since = std::time::Instant::now();
        // A replica that did not apply it hears of it.
        for _ in 0..6 {
            let expected = format!("{number}.00");
            while days_of(&bank.api.get(&path, Some(&bank.owner.token)).await?)?[1][4] != expected {
                anyhow::ensure!(since.elapsed() < std::time::Duration::from_secs(3), "what was there before is still answered: {expected}");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
    }
    let other = bank.api.someone().await?;
    assert_eq!(bank.api.get(&path, Some(&other.token)).await?.status, 404, "also of what is cached");
    Ok(())
}

pub async fn a_statement_runs_in_the_order_in_which_entries_count(world: &World) -> Result<()> {
    let _no_replay = REPLAYS.lock().await;
    let bank = Bank::open(world).await?;
    bank.deposit("100", Some("2026-03-02T12:00:00Z")).await?;
    bank.withdraw("30", Some("2026-03-03T12:00:00Z")).await?;
    let written = bank.deposit("5", Some("2026-03-01T12:00:00Z")).await?;
    let statement = async |query: &str| bank.read(&format!("statement?accountId={}{query}", bank.account), &bank.owner.token, &written).await;
    let shown = |answer: &Answer| -> Vec<(String, String)> {
        let amount = |entry: &Value, name: &str| entry[name]["amount"].as_str().unwrap_or_default().to_owned();
        answer.body["entries"].as_array().into_iter().flatten().map(|entry| (amount(entry, "amount"), amount(entry, "balance"))).collect()
    };
    let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(amount, balance)| ((*amount).to_owned(), (*balance).to_owned())).collect::<Vec<_>>();
    let all = statement("").await?;
    assert_eq!(shown(&all), pairs(&[("5.00", "5.00"), ("100.00", "105.00"), ("-30.00", "75.00")]));
    assert_eq!((&all.body["entries"][0]["type"], &all.body["nextPageToken"]), (&json!("DEPOSIT"), &json!("")));
    assert_eq!(shown(&statement("&from=2026-03-02&to=2026-03-02").await?), pairs(&[("100.00", "105.00")]));
    // All pages are of the moment of the first one, whatever is posted meanwhile.
    let first = statement("&pageSize=2").await?;
    assert_eq!(shown(&first), pairs(&[("5.00", "5.00"), ("100.00", "105.00")]));
    let later = bank.deposit("1000", Some("2026-03-01T13:00:00Z")).await?;
    bank.read(&format!("statement?accountId={}", bank.account), &bank.owner.token, &later).await?;
    let token = first.text("nextPageToken")?;
    let elsewhere = statement(&format!("&from=2026-03-02&pageToken={token}")).await?;
    assert_eq!((elsewhere.status, &elsewhere.body["errors"][0]["field"]), (400, &json!("pageToken")), "a token is of one account and its days");
    let second = statement(&format!("&pageSize=2&pageToken={token}")).await?;
    assert_eq!((shown(&second), &second.body["nextPageToken"]), (pairs(&[("-30.00", "75.00")]), &json!("")));
    assert_eq!(second.text("asOfTime")?, first.text("asOfTime")?);
    Ok(())
}

pub async fn transactions_are_counted(world: &World) -> Result<()> {
    let bank = Bank::open(world).await?;
    let to = bank.api.account(&bank.owner.token, "BRL").await?;
    let mut written = vec![bank.deposit("100", None).await?];
    for (key, amount) in [("a", "10"), ("b", "20"), ("c", "1000")] {
        written.push(bank.api.transact(&bank.owner.token, Api::transfer(key, &bank.account, &to, amount)).await?);
    }
    let hold = json!({ "externalId": "h", "type": "TRANSFER", "sourceAccountId": bank.account, "destinationAccountId": to, "amount": brl("5"), "hold": true });
    let held = bank.api.transact(&bank.owner.token, hold).await?;
    let path = format!("/api/v1/transactions/{}:void", held.text("id")?);
    let voided = bank.api.post(&path, Some(&bank.owner.token), json!({ "externalId": "v" })).await?;
    assert_eq!(voided.status, 200, "{voided:?}");
    written.push(voided.clone());
    let tokens = written.iter().map(|answer| answer.header(FRESHNESS)).collect::<Vec<_>>().join(",");
    let answer = bank.api.json(Method::GET, "/api/v1/reports/transactions", Some(&bank.owner.token), &[(FRESHNESS, &tokens)], None).await?;
    let row = &answer.body["rows"][0];
    let counts = ["count", "completed", "rejected", "released"].map(|name| row[name].as_i64().unwrap_or(-1));
    assert_eq!((counts, &row["amount"], &row["successRate"]), ([4, 2, 1, 1], &brl("30.00"), &json!("0.6666")), "{answer:?}");
    assert_eq!((&row["type"], &row["currencyCode"], answer.body["rows"].as_array().map(Vec::len)), (&json!("TRANSFER"), &json!("BRL"), Some(1)));
    assert!(row["processingMsMean"].as_i64().is_some_and(|ms| ms < 60_000), "{answer:?}");
    // An administrator's are everybody's.
    let of_all = bank.read("transactions", &bank.administrator, &voided).await?;
    assert!(of_all.body["rows"].as_array().is_some_and(|rows| rows.iter().any(|row| row["type"] == "DEPOSIT")), "{of_all:?}");
    Ok(())
}

pub async fn a_read_sees_what_its_caller_has_written(world: &World) -> Result<()> {
    let bank = Bank::open(world).await?;
    let mut written = Vec::new();
    for _ in 0..3 {
        written.push(bank.deposit("1", Some("2026-04-01T12:00:00Z")).await?);
    }
    let path = format!("/api/v1/reports/daily-balances?accountId={}&from=2026-04-01&to=2026-04-01", bank.account);
    let read = async |headers: &[(&str, &str)]| bank.api.json(Method::GET, &path, Some(&bank.owner.token), headers, None).await;
    // Several headers, and several tokens in one.
    let tokens: Vec<&str> = written.iter().map(|answer| answer.header(FRESHNESS)).collect();
    assert!(tokens.iter().all(|token| !token.is_empty() && token.len() <= 256), "{tokens:?}");
    for headers in [tokens.iter().map(|token| (FRESHNESS, *token)).collect::<Vec<_>>(), vec![(FRESHNESS, &*tokens.join(", "))]] {
        assert_eq!(days_of(&read(&headers).await?)?[0][4], "3.00");
    }
    // What is seen already waits for nothing, however many ask at once.
    let headers = [(FRESHNESS, tokens[0])];
    for answer in try_join_all((0..40).map(|_| read(&headers))).await? {
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    // What was only accepted is seen, and its postings are not waited for.
    let provider = world.server.provider().await?;
    let accepted =
        bank.api.post("/api/v1/transactions", Some(&provider.token), external_deposit(&Uuid::new_v4().to_string(), &bank.account, "7.00")).await?;
    assert_eq!((accepted.status, accepted.header(FRESHNESS).is_empty()), (202, false), "{accepted:?}");
    assert_eq!(days_of(&read(&[(FRESHNESS, accepted.header(FRESHNESS))]).await?)?[0][4], "3.00");
    // A batch is too large to name each of its transactions.
    let request = |number: usize| {
        json!({ "externalId": format!("{} {number}", bank.account), "type": "DEPOSIT", "destinationAccountId": bank.account, "amount": brl("1"),
                "effectiveTime": "2026-04-01T13:00:00Z" })
    };
    let batch = json!({ "requests": (0..100).map(request).collect::<Vec<_>>(), "wait": "10s" });
    let made = bank.api.post("/api/v1/transactions:batchCreate", Some(&bank.administrator), batch).await?;
    assert!(made.status == 200 && made.header(FRESHNESS).len() <= 256, "{made:?}");
    assert_eq!(days_of(&read(&[(FRESHNESS, made.header(FRESHNESS))]).await?)?[0][4], "103.00");
    // What does not come is not waited for for ever, and only so many wait for it at once.
    let never = later(tokens[0])?;
    let headers = [(FRESHNESS, never.as_str())];
    let answers = try_join_all((0..80).map(|_| read(&headers))).await?;
    assert!(answers.iter().all(|answer| answer.status == 503), "{answers:?}");
    let waited = answers.iter().filter(|answer| answer.body["reason"] == "NOT_FRESH_YET").count();
    let replicas = 1 + usize::from(world.server.authority.is_some());
    assert!((32..=32 * replicas).contains(&waited), "{waited} have waited: {answers:?}");
    // What is no token is refused.
    for malformed in ["x", "AAAA", &tokens[0][1..], &"A".repeat(257)] {
        let refused = read(&[(FRESHNESS, malformed)]).await?;
        assert_eq!((refused.status, &refused.body["errors"][0]["field"]), (400, &json!(FRESHNESS)), "{refused:?}");
    }
    // To methods that wait for nothing it says nothing, however much of it there is; and no service looks broken because of it.
    let flood = [(FRESHNESS, "A".repeat(4_000)), (FRESHNESS, "B".repeat(4_000))];
    let flood: Vec<(&str, &str)> = flood.iter().map(|(name, value)| (*name, value.as_str())).collect();
    for _ in 0..12 {
        let wrong = json!({ "email": "nobody@example.com", "password": "no password" });
        let answer = bank.api.json(Method::POST, "/api/v1/auth/login", None, &flood, Some(wrong)).await?;
        assert!([401, 429].contains(&answer.status), "{answer:?}");
        assert_eq!(read(&flood).await?.status, 400);
    }
    assert_eq!(bank.api.get("/api/v1/users/me", Some(&bank.owner.token)).await?.status, 200);
    let dry_run = json!({ "externalId": "dry", "type": "WITHDRAWAL", "sourceAccountId": bank.account, "amount": brl("1"), "validateOnly": true });
    assert_eq!(bank.api.post("/api/v1/transactions", Some(&bank.owner.token), dry_run).await?.header(FRESHNESS), "");
    Ok(())
}

/// The events of accounts are held up: what was posted to a new one is here before that it was opened.
async fn a_new_account_counts_in_its_currency() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let server = Server::start(&data, &[])?;
    let mut bank = Bank::at(&server.front()).await?;
    let written = bank.deposit("10", None).await?;
    bank.days("", &written).await?;
    let reports = Database::open_sqlite(&data.join("reports.db")).await?;
    execute(reports.writer(), "ALTER TABLE accounts RENAME COLUMN is_system TO is_away", []).await?;
    bank.account = bank.api.account(&bank.owner.token, "BRL").await?;
    let written = bank.deposit("5", None).await?;
    let since = Instant::now();
    while lastro_tests::reader::count(&reports, "SELECT count(*) AS count FROM early_postings").await? == 0 {
        ensure!(since.elapsed() < Duration::from_secs(20), "the deposit does not come");
        sleep(Duration::from_millis(20)).await;
    }
    let read = bank.read("daily-balances?currencyCode=BRL", &bank.owner.token, &written);
    let back = async {
        sleep(Duration::from_secs(1)).await;
        execute(reports.writer(), "ALTER TABLE accounts RENAME COLUMN is_away TO is_system", []).await
    };
    let (read, back) = tokio::join!(read, back);
    back?;
    let read = read?;
    assert_eq!(read.status, 200, "{read:?}");
    assert_eq!(days_of(&read)?[29][4], "15.00");
    assert_eq!(lastro_tests::reader::count(&reports, "SELECT count(*) AS count FROM early_postings").await?, 0);
    Ok(())
}

/// Reads of one caller hang, many at once: those of somebody else are answered all the time.
async fn one_who_reads_much_leaves_others() -> Result<()> {
    let postgres = Postgres::start()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("data"), &["--database-url", &postgres.url()])?;
    let bank = Bank::at(&server.front()).await?;
    let written = bank.deposit("10", None).await?;
    bank.days("", &written).await?;
    let other = bank.api.someone().await?;
    // Of one account at an instant, which no cache answers, and of accounts that no cache has yet.
    let mut paths = vec![format!("{}&asOf=2026-01-01T00:00:00Z", bank.account)];
    for _ in 0..24 {
        paths.push(bank.api.account(&bank.owner.token, "BRL").await?);
    }
    let path = |number: usize| format!("/api/v1/reports/daily-balances?accountId={}", paths[number % paths.len()]);
    let mut session = sqlx::PgConnection::connect(&format!("{}/lastro_reports", postgres.url())).await?;
    sqlx::raw_sql("BEGIN; LOCK TABLE daily_balances IN ACCESS EXCLUSIVE MODE").execute(&mut session).await?;
    let until = Instant::now() + Duration::from_secs(4);
    let many = join_all((0..100).map(|number| {
        let (bank, path) = (&bank, path(number));
        async move {
            while Instant::now() < until {
                let told = bank.api.get(&path, Some(&bank.owner.token)).await?;
                ensure!([404, 429, 503, 504].contains(&told.status), "{told:?}");
            }
            Ok(())
        }
    }));
    let others = async {
        let mut times = 0;
        sleep(Duration::from_millis(300)).await;
        while Instant::now() < until {
            let read = bank.api.get("/api/v1/reports/transactions", Some(&other.token)).await?;
            ensure!(read.status == 200, "{read:?}");
            times += 1;
        }
        Ok(times)
    };
    let (many, others) = tokio::join!(many, others);
    sqlx::raw_sql("ROLLBACK").execute(&mut session).await?;
    many.into_iter().collect::<Result<Vec<()>>>()?;
    let times = others?;
    assert!(times > 5, "{times} reads of others");
    let told = bank.api.get(&path(0), Some(&bank.owner.token)).await?;
    assert_eq!(told.status, 200, "{told:?}");
    Ok(())
}

/// Tables that nobody reads: an address has 16 of them under way, and each is let go after 30 s.
async fn tables_have_bounds() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("data"), &[])?;
    let bank = Bank::at(&server.front()).await?;
    let mut written = bank.deposit("1", None).await?;
    for _ in 0..3 {
        written = bank.deposit("1", None).await?;
    }
    bank.days("", &written).await?;
    // A table is larger than what may be sent before somebody reads.
    let client = reqwest::Client::builder().http2_prior_knowledge().http2_initial_stream_window_size(64).build()?;
    let url = format!("{}/api/v1/reports/statement?accountId={}&pageSize=1", server.front().rest, bank.account);
    let open = async || client.get(&url).bearer_auth(&bank.owner.token).header("accept", "text/csv").send().await;
    let mut unread = Vec::new();
    for number in 0..16 {
        let table = open().await?;
        ensure!(table.status() == 200, "table {number}: {table:?}");
        unread.push(table);
    }
    ensure!(open().await?.status() == 503, "a table too many");
    // One that its reader gives up makes room.
    unread.pop();
    let since = Instant::now();
    loop {
        let table = open().await?;
        if table.status() == 200 {
            unread.push(table);
            break;
        }
        ensure!(since.elapsed() < Duration::from_secs(10), "no room for another one: {table:?}");
        sleep(Duration::from_millis(50)).await;
    }
    sleep(Duration::from_secs(33)).await;
    ensure!(open().await?.status() == 200, "nothing was read for 30 s");
    for table in unread {
        ensure!(table.bytes().await.is_err(), "a table that was let go is not complete");
    }
    Ok(())
}

/// The token of a version that an aggregate will not have: a token ends with it.
fn later(token: &str) -> Result<String> {
    let mut bytes = URL_SAFE_NO_PAD.decode(token)?;
    let last = bytes.last_mut().context("a version")?;
    *last += 100;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

pub async fn bad_reports_are_named(world: &World) -> Result<()> {
    let bank = Bank::open(world).await?;
    let account = &bank.account;
    let written = bank.deposit("1", None).await?;
    bank.days("", &written).await?;
    let with = |query: &str| format!("daily-balances?accountId={account}&{query}");
    let statement = |query: &str| format!("statement?accountId={account}&{query}");
    for (path, field) in [
        (with("from=2026-02-30"), "from"),
        (with("from=2026-1-1"), "from"),
        (with("from=2026-02-02&to=2026-02-01"), "from"),
        (with("from=2025-01-01&to=2026-01-02"), "from"),
        (with("to=tomorrow"), "to"),
        (with("asOf=2999-01-01T00:00:00Z"), "asOf"),
        (with("asOf=yesterday"), "asOf"),
        (with("currencyCode=USD"), "currencyCode"),
        ("daily-balances".to_owned(), "currencyCode"),
        ("daily-balances?currencyCode=brl".to_owned(), "currencyCode"),
        ("daily-balances?currencyCode=XXX".to_owned(), "currencyCode"),
        ("daily-balances?accountId=mine".to_owned(), "accountId"),
        ("statement".to_owned(), "accountId"),
        (statement("pageSize=1001"), "pageSize"),
        (statement("pageToken=AAAA"), "pageToken"),
        (statement("from=2026-02-30"), "from"),
        ("transactions?from=0000-01-01".to_owned(), "from"),
    ] {
        let refused = bank.api.get(&format!("/api/v1/reports/{path}"), Some(&bank.owner.token)).await?;
        assert_eq!((refused.status, &refused.body["errors"][0]["field"]), (400, &json!(field)), "{path}: {refused:?}");
    }
    assert_eq!(
        days_of(&bank.api.get(&format!("/api/v1/reports/{}", with("from=2025-01-01&to=2026-01-01")), Some(&bank.owner.token)).await?)?.len(),
        366
    );
    Ok(())
}

pub async fn tables_for_spreadsheets(world: &World) -> Result<()> {
    let _no_replay = REPLAYS.lock().await;
    let bank = Bank::open(world).await?;
    let mut written = bank.deposit("1", Some("2026-04-01T12:00:00Z")).await?;
    for (amount, description) in [("1000", "=HYPERLINK(\"x\")"), ("0.5", "two\nlines, and \"quotes\""), ("2", "plain")] {
        let body = json!({ "externalId": Uuid::new_v4().to_string(), "type": "DEPOSIT", "destinationAccountId": bank.account, "amount": brl(amount),
            "description": description, "effectiveTime": "2026-04-02T12:00:00Z" });
        written = bank.api.transact(&bank.administrator, body).await?;
        assert_eq!(written.body["state"], "COMPLETED", "{written:?}");
    }
    let table = async |path: &str, accept: &str| {
        let bearer = format!("Bearer {}", bank.owner.token);
        let headers = [("accept", accept), ("authorization", &bearer), (FRESHNESS, written.header(FRESHNESS))];
        bank.api.send(Method::GET, &format!("/api/v1/reports/{path}"), &headers, None).await
    };
    // A page each, all of them in one answer.
    for page_size in [1, 2, 3, 0] {
        let answer = table(&format!("statement?accountId={}&pageSize={page_size}", bank.account), "text/csv").await?;
        let told = (answer.status, answer.header("content-type"), answer.header("content-disposition"), answer.header("vary").contains("accept"));
        assert_eq!(told, (200, "text/csv; charset=utf-8; header=present", "attachment; filename=\"statement.csv\"", true), "{answer:?}");
        let rows: Vec<&str> = answer.body.as_str().context("text")?.split("\r\n").collect();
        assert_eq!(rows[0], "transactionId,type,effectiveTime,recordTime,description,amount,amountCurrencyCode,balance,balanceCurrencyCode");
        let ends = [",,1.00,BRL,1.00,BRL", ",\"'=HYPERLINK(\"\"x\"\")\",1000.00,BRL,1001.00,BRL", ",plain,2.00,BRL,1003.50,BRL"];
        assert!(rows.len() == 6 && rows[5].is_empty() && [1, 2, 4].iter().zip(ends).all(|(row, end)| rows[*row].ends_with(end)), "{rows:#?}");
        assert!(rows[3].ends_with(",\"two\nlines, and \"\"quotes\"\"\",0.50,BRL,1001.50,BRL"), "{rows:#?}");
    }
    let days = table(&format!("daily-balances?accountId={}&from=2026-04-01&to=2026-04-02", bank.account), "text/csv, */*;q=0.5").await?;
    let expected = "date,opening,openingCurrencyCode,credits,creditsCurrencyCode,debits,debitsCurrencyCode,closing,closingCurrencyCode\r\n\
                    2026-04-01,0.00,BRL,1.00,BRL,0.00,BRL,1.00,BRL\r\n2026-04-02,1.00,BRL,1002.50,BRL,0.00,BRL,1003.50,BRL\r\n";
    assert_eq!(days.body, json!(expected));
    let counts = table("transactions?from=2030-01-01&to=2030-01-02", "text/csv").await?;
    let names = "date,type,currencyCode,count,completed,rejected,released,amount,amountCurrencyCode,successRate,processingMsMean\r\n";
    assert_eq!((counts.status, &counts.body), (200, &json!(names)), "names alone where there is nothing");
    // Who asks for JSON, or says nothing of tables, gets JSON; and what is refused is a problem.
    for accept in ["application/json", "*/*", "text/html", "text/csv;q=0.1, application/json"] {
        let answer = table(&format!("statement?accountId={}", bank.account), accept).await?;
        assert_eq!((answer.header("content-type"), answer.body["entries"].as_array().map(Vec::len)), ("application/json", Some(4)), "{accept}");
    }
    let refused = table(&format!("statement?accountId={}", Uuid::new_v4()), "text/csv").await?;
    assert_eq!((refused.status, refused.header("content-type")), (404, "application/problem+json"));
    Ok(())
}

pub async fn reports_over_grpc(world: &World) -> Result<()> {
    let bank = Bank::open(world).await?;
    let written = bank.deposit("12.5", Some("2026-05-01T12:00:00Z")).await?;
    let mut client = ReportsServiceClient::new(channel(world).await?);
    let wanted = ListDailyBalancesRequest {
        account_id: Some(bank.account.clone()),
        from: Some("2026-05-01".to_owned()),
        to: Some("2026-05-01".to_owned()),
        ..ListDailyBalancesRequest::default()
    };
    let mut request = with_token(&bank.owner.token, wanted)?;
    request.metadata_mut().insert(FRESHNESS, written.header(FRESHNESS).parse()?);
    let days = client.list_daily_balances(request).await?.into_inner().days;
    assert_eq!(days[0].closing.as_ref().map(|money| money.amount.as_str()), Some("12.50"));
    Ok(())
}
