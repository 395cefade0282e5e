//! Faults of the stack under load through nginx, half of it REST, half gRPC. Ignored in a plain run: `make test-ha`. Callers do as they
//! are told: what was not answered is asked again with the same key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lastro_proto::transactions::v1::CreateTransactionRequest;
use lastro_proto::transactions::v1::transaction::Type;
use lastro_proto::transactions::v1::transactions_service_client::TransactionsServiceClient;
use lastro_proto::r#type::v1::Money;
use lastro_tests::client::Someone;
use lastro_tests::server::binary;
use lastro_tests::stack::Options;
use lastro_tests::{Api, Front, Stack, run};
use libtest_mimic::Trial;
use serde_json::json;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::faults::{check_promises, two_accounts};
use crate::ledger::Ledger;
use crate::{block_on, failed};

/// What a caller gives itself for one call.
const DEADLINE: Duration = Duration::from_secs(5);
const CALLERS: usize = 16;

pub fn trials() -> Vec<Trial> {
    vec![Trial::test("ha::faults_under_load", || failed(block_on(faults_under_load()))).with_ignored_flag(true)]
}

/// How one call ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    Accepted(String),
    /// UNAVAILABLE with RetryInfo, or a 503 problem; and how it was explained.
    Refused(String),
    /// The caller's deadline passed: it was told so, or noticed itself.
    Late,
    /// GOAWAY without an error, and the call not processed: HTTP/2's way to say "on another connection, please". nginx says so when it is
    /// reloaded; grpc-go repeats such a call by itself, tonic's client leaves that to its caller.
    Elsewhere,
    /// Anything else: what no caller should see.
    Broken(String),
}

struct Load {
    stop: Arc<AtomicBool>,
    callers: Vec<JoinHandle<Vec<(String, Outcome, Duration)>>>,
}

pub async fn over_rest(api: &Api, someone: &Someone, key: &str, accounts: [&str; 2]) -> Outcome {
    let body = Api::transfer(key, accounts[0], accounts[1], "0.01");
    match tokio::time::timeout(DEADLINE + Duration::from_millis(500), api.post("/api/v1/transactions", Some(&someone.token), body)).await {
        Err(_) => Outcome::Late,
        Ok(Err(error)) => Outcome::Broken(format!("{error:?}")),
        Ok(Ok(answer)) => match (answer.status, answer.body["reason"].as_str()) {
            (200..=202, _) => answer.text("id").map_or_else(|error| Outcome::Broken(error.to_string()), Outcome::Accepted),
            (503, Some("UNAVAILABLE")) if !answer.header("retry-after").is_empty() => Outcome::Refused(format!("REST: {}", answer.body["detail"])),
            (504, Some("DEADLINE_EXCEEDED")) => Outcome::Late,
            _ => Outcome::Broken(format!("{answer:?}")),
        },
    }
}

pub async fn over_grpc(channel: &Channel, someone: &Someone, key: &str, accounts: [&str; 2]) -> Outcome {
    let Ok(request) = transfer_request(someone, key, accounts, DEADLINE) else { return Outcome::Broken("a token".to_owned()) };
    match TransactionsServiceClient::new(channel.clone()).create_transaction(request).await {
        Ok(made) => Outcome::Accepted(made.into_inner().id),
        Err(status) if is_refusal(&status) => Outcome::Refused(format!("gRPC: {}", status.message())),
        Err(status) if status.code() == Code::DeadlineExceeded => Outcome::Late,
        // tonic's client calls its own deadline CANCELLED, and so it calls a request that it never sent since the connection was closing.
        Err(status) if status.code() == Code::Cancelled && status.message() == "operation was canceled" => Outcome::Elsewhere,
        Err(status) if status.code() == Code::Cancelled => Outcome::Late,
        Err(status) if format!("{status:?}").contains("GoAway(b\"\", NO_ERROR, Remote)") => Outcome::Elsewhere,
        Err(status) => Outcome::Broken(format!("{status:?}")),
    }
}

/// One cent from the first account to the second.
pub fn transfer_request(someone: &Someone, key: &str, accounts: [&str; 2], deadline: Duration) -> Result<Request<CreateTransactionRequest>> {
    let mut request = Request::new(CreateTransactionRequest {
        external_id: key.to_owned(),
        r#type: Type::Transfer as i32,
        source_account_id: Some(accounts[0].to_owned()),
        destination_account_id: Some(accounts[1].to_owned()),
        amount: Some(Money { currency_code: "BRL".to_owned(), amount: "0.01".to_owned() }),
        ..CreateTransactionRequest::default()
    });
    request.set_timeout(deadline);
    request.metadata_mut().insert("authorization", format!("Bearer {}", someone.token).parse()?);
    Ok(request)
}

fn is_refusal(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.get_error_details().retry_info().is_some()
}

impl Load {
    async fn start(front: &Front, someone: &Someone, accounts: &[String; 2], keys: &Arc<AtomicU64>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut callers = Vec::new();
        for number in 0..CALLERS {
            let (api, channel) = (front.api(), front.channel().await?);
            let (someone, accounts, keys, stop) = (someone.clone(), accounts.clone(), keys.clone(), stop.clone());
            callers.push(tokio::spawn(async move {
                let (mut outcomes, from, to) = (Vec::new(), &accounts[number / 2 % 2], &accounts[(number / 2 + 1) % 2]);
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("h{}", keys.fetch_add(1, Ordering::Relaxed));
                    loop {
                        let started = Instant::now();
                        let outcome = match number % 2 {
                            0 => over_rest(&api, &someone, &key, [from, to]).await,
                            _ => over_grpc(&channel, &someone, &key, [from, to]).await,
                        };
                        let accepted = matches!(outcome, Outcome::Accepted(_));
                        outcomes.push((key.clone(), outcome, started.elapsed()));
                        if accepted || stop.load(Ordering::Relaxed) {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
                outcomes
            }));
        }
        Ok(Self { stop, callers })
    }

    async fn stop(self) -> Result<Vec<(String, Outcome, Duration)>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for caller in self.callers {
            all.extend(caller.await?);
        }
        Ok(all)
    }
}

type Scenario = (&'static str, fn(&Stack) -> Result<()>);

fn pause(seconds: u64) {
    std::thread::sleep(Duration::from_secs(seconds));
}

fn each_service(stack: &Stack, fault: impl Fn(&Stack, &str) -> Result<()>) -> Result<()> {
    for name in ["customers-1", "transactions-1", "gateway-1"] {
        fault(stack, name)?;
        pause(1);
    }
    Ok(())
}

const SCENARIOS: [Scenario; 6] = [
    ("one replica of each service killed", |stack| {
        each_service(stack, |stack, name| {
            stack.kill(name)?;
            pause(2);
            stack.spawn(name)?;
            stack.until_one_is_ready(name)
        })
    }),
    ("one replica of each service frozen for 10 s", |stack| {
        each_service(stack, |stack, name| {
            stack.signal(name, "STOP")?;
            pause(10);
            stack.signal(name, "CONT")
        })
    }),
    ("every replica restarted, one after the other", |stack| stack.names().iter().try_for_each(|name| stack.restart(name))),
    ("PostgreSQL stopped for 10 s", |stack| {
        stack.postgres.stop("fast")?;
        pause(10);
        stack.postgres.resume()
    }),
    ("Redis stopped for 5 s and emptied", |stack| {
        let mut redis = stack.redis.lock().map_err(|_| anyhow::anyhow!("another test failed"))?;
        redis.lose_everything()?;
        pause(5);
        redis.resume()
    }),
    ("nginx reloaded three times", |stack| {
        (0..3).try_for_each(|_| {
            stack.reload_nginx()?;
            pause(1);
            Ok(())
        })
    }),
];

async fn faults_under_load() -> Result<()> {
    let stack = Arc::new(Stack::start(Options::default())?);
    let front = stack.front();
    let (someone, accounts) = two_accounts(&front).await?;
    let keys = Arc::new(AtomicU64::new(0));
    let mut wrong = Vec::new();
    let only = std::env::vars().find(|(key, _)| key == "LASTRO_HA_ONLY").map(|(_, value)| value);
    for (what, fault) in SCENARIOS.into_iter().filter(|(what, _)| only.as_ref().is_none_or(|only| what.contains(only))) {
        let load = Load::start(&front, &someone, &accounts, &keys).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let faulty = stack.clone();
        tokio::task::spawn_blocking(move || fault(&faulty)).await??;
        stack.until_ready()?;
        // It heals by itself: the last second of load is as good as the first.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let outcomes = load.stop().await?;
        let promised: Vec<(String, String)> = outcomes
            .iter()
            .filter_map(|(key, outcome, _)| match outcome {
                Outcome::Accepted(id) => Some((key.clone(), id.clone())),
                _ => None,
            })
            .collect();
        let (mut late, mut elsewhere, mut refused, mut broken) = (0, 0, BTreeMap::<String, u32>::new(), BTreeMap::<String, u32>::new());
        for (_, outcome, _) in &outcomes {
            match outcome {
                Outcome::Accepted(_) => {}
                Outcome::Refused(why) => *refused.entry(why.clone()).or_default() += 1,
                Outcome::Late => late += 1,
                Outcome::Elsewhere => elsewhere += 1,
                Outcome::Broken(how) => *broken.entry(how.chars().take(300).collect()).or_default() += 1,
            }
        }
        let slowest = outcomes.iter().map(|(_, _, elapsed)| *elapsed).max().unwrap_or_default();
        let failures = outcomes.len() - promised.len();
        let per_thousand = failures * 1000 / outcomes.len().max(1);
        eprintln!(
            "{what}: {} calls, {failures} not accepted ({}.{} %): {} UNAVAILABLE, {late} at their deadline, {elsewhere} sent to another connection, {} otherwise; slowest {slowest:.2?}",
            outcomes.len(),
            per_thousand / 10,
            per_thousand % 10,
            refused.values().sum::<u32>(),
            broken.values().sum::<u32>()
        );
        for (why, times) in &refused {
            eprintln!("  {times} × {why}");
        }
        for (how, times) in &broken {
            eprintln!("  {times} × {how}");
            wrong.push(format!("{what}: {how}"));
        }
        if late > 0 {
            wrong.push(format!("{what}: {late} calls ended at their deadline, and were not told UNAVAILABLE before"));
        }
        if slowest > DEADLINE + Duration::from_secs(1) {
            wrong.push(format!("{what}: an answer took {slowest:?}"));
        }
        check_promises(&front.api(), &someone, &accounts, &promised).await?;
        Ledger::open(Some(&stack.postgres.url()), &stack.path("data")).await?.check().await?;
    }
    if only.is_none_or(|only| only == "keys") {
        keys_rotate(&stack, &front, &someone).await?;
    }
    ensure!(wrong.is_empty(), "what no caller should see: {wrong:#?}");
    Ok(())
}

/// The key id in a token's header.
fn kid(token: &str) -> Result<String> {
    jsonwebtoken::decode_header(token)?.kid.ok_or_else(|| anyhow::anyhow!("a token without a key id"))
}

async fn keys_rotate(stack: &Stack, front: &Front, someone: &Someone) -> Result<()> {
    let rotate = || {
        let url = stack.postgres.url();
        run(std::process::Command::new(binary()?).args(["keys", "rotate", "--database-url", &url, "--sign-after", "15", "--retire-after", "4"]))
    };
    let said = rotate()?;
    ensure!(said.lines().count() == 2 && rotate().is_err(), "a second rotation waits for the first: {said}");
    let (api, started, old) = (front.api(), Instant::now(), kid(&someone.token)?);
    let login = async || -> Result<String> {
        let answer = api.post("/api/v1/auth/login", None, json!({ "email": someone.email, "password": lastro_tests::client::PASSWORD })).await?;
        answer.text("accessToken")
    };
    // Until it signs, nobody sees a difference; then both replicas use it, and every service takes both kinds of token.
    while kid(&login().await?)? == old {
        ensure!(started.elapsed() < Duration::from_secs(25), "the new key does not sign");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    ensure!(started.elapsed() > Duration::from_secs(13), "it signs before everybody can know it");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for _ in 0..8 {
        let token = login().await?;
        ensure!(kid(&token)? != old, "two replicas of customers sign with different keys");
        for path in ["/api/v1/users/me", "/api/v1/accounts"] {
            ensure!(api.get(path, Some(&token)).await?.status == 200, "a token of the new key is refused");
        }
    }
    ensure!(api.get("/api/v1/accounts", Some(&someone.token)).await?.status == 200, "the old key retired too early");
    // Retired: services forget it when they next ask, and what they verified within a minute.
    let since = Instant::now();
    while api.get("/api/v1/users/me", Some(&someone.token)).await?.status == 200 {
        ensure!(since.elapsed() < Duration::from_secs(90), "the old key never retires");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    eprintln!("the signing key was rotated: no login and no call failed");
    Ok(())
}
