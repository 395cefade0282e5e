//! Attackers beside payers. An attacker does one thing as fast as it can, from one connection or from 64, from an address of its own, while four others
//! pay over REST, pay over gRPC, log in and read. Ignored in a plain run: `make test-abuse`. Seconds for each attack by LASTRO_ABUSE_SECONDS.
//!
//! It fails when less than 99 % of the others' calls succeed, or when a process grows above the memory limit that compose.yaml gives it. The others'
//! 99th percentile is printed as a ratio beside two quiet runs, and fails only above 10 times and 250 ms in three repetitions.
#![allow(clippy::float_arithmetic, reason = "shares and ratios")]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use lastro_proto::transactions::v1::transactions_service_client::TransactionsServiceClient;
use lastro_proto::transactions::v1::{CreateTransactionRequest, Transaction};
use lastro_tests::client::{PASSWORD, Someone};
use lastro_tests::stack::Options;
use lastro_tests::{Api, Front, Postgres, Server, Stack};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use sqlx::Connection as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;

use crate::faults::two_accounts;
use crate::ha::{Outcome, over_grpc, transfer_request};
use crate::pipeline::{Rig, give_many_operations};
use crate::{block_on, failed};

/// Where attackers come from: what is counted by address is not to be counted for the others.
const ATTACKER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const MIB: u64 = 1 << 20;

pub fn trials() -> Vec<Trial> {
    let on = |target: &str, test: fn() -> Result<()>| Trial::test(format!("abuse::{target}"), move || failed(test())).with_ignored_flag(true);
    vec![
        on("behind_nginx", || Target::stack().and_then(|target| block_on(attack(&target)))),
        on("past_nginx", || Target::one_process().and_then(|target| block_on(attack(&target)))),
        Trial::test("abuse::registrations_have_a_limit_by_address", || {
            failed(Rig::start_with(false, &["--registrations-per-minute", "1", "--registrations-burst", "3"]).and_then(|rig| block_on(limited(&rig))))
        }),
        Trial::test("abuse::a_crowd_closes_the_way_to_nobody", || {
            failed(Rig::start_with(false, &[]).and_then(|rig| block_on(a_crowd_closes_the_way_to_nobody(&rig))))
        }),
        Trial::test("abuse::incomplete_requests_are_bounded", || {
            failed(Rig::start_with(false, &[]).and_then(|rig| block_on(incomplete_requests_are_bounded(&rig))))
        }),
    ]
}

async fn limited(rig: &Rig) -> Result<()> {
    let api = rig.server.api();
    for _ in 0..3 {
        api.someone().await?;
    }
    let refused = register(&api).await?;
    assert_eq!((refused.status, refused.body["reason"].clone()), (429, json!("RATE_LIMITED")), "{refused:?}");
    assert!((1..=60).contains(&refused.header("retry-after").parse::<u64>()?));
    Ok(())
}

async fn register(api: &Api) -> Result<lastro_tests::Answer> {
    let email = format!("r{}@example.com", uuid::Uuid::new_v4().simple());
    api.post("/api/v1/users", None, json!({ "name": "Nobody", "email": email, "password": PASSWORD })).await
}

/// Far more registrations at once than are taken: those that are refused do not count as failures of the service, which others log in with.
async fn a_crowd_closes_the_way_to_nobody(rig: &Rig) -> Result<()> {
    let api = rig.server.api();
    let someone = api.someone().await?;
    for _ in 0..2 {
        let crowd = tokio::spawn({
            let api = api.clone();
            async move { join_all((0..300).map(|_| register(&api))).await }
        });
        let (mut refused, mut logins) = (0, 0);
        while !crowd.is_finished() {
            let login = api.post("/api/v1/auth/login", None, json!({ "email": someone.email, "password": PASSWORD })).await?;
            assert_eq!(login.status, 200, "after {logins} logins: {login:?}");
            logins += 1;
        }
        for answer in crowd.await? {
            let answer = answer?;
            assert!(matches!(answer.status, 201 | 503), "{answer:?}");
            refused += usize::from(answer.status == 503);
        }
        ensure!(refused > 100, "only {refused} of 300 were refused");
    }
    Ok(())
}

/// Forty connections with as many calls as they take, of which the headers come, large ones, and a part of the message: over REST and over gRPC. The
/// process does not grow by what they could fill, whoever comes with a whole request is served, and so is whoever sends one in pieces.
async fn incomplete_requests_are_bounded(rig: &Rig) -> Result<()> {
    let (api, someone, accounts) = rig.someone().await?;
    let resident = || -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", rig.server.pid()))?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).and_then(|rest| rest.trim().strip_suffix(" kB"));
        Ok(kib.context("a resident size")?.trim().parse::<u64>()? / 1024)
    };
    for (authority, path, content_type, part) in [
        (&rig.server.rest, "/api/v1/transactions", "application/json", 60_000),
        (&rig.server.grpc, "/lastro.transactions.v1.TransactionsService/CreateTransaction", "application/grpc", 3_900),
    ] {
        let before = resident()?;
        let attackers: JoinSet<_> = (0..40).map(|_| half_calls(authority.parse(), format!("http://{authority}{path}"), content_type, part)).collect();
        let mut largest = 0;
        for number in 0..20 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            largest = largest.max(resident()?);
            let transfer = Api::transfer(&format!("{content_type} {number}"), &accounts[0], &accounts[1], "0.01");
            let answer = api.transact(&someone.token, transfer).await?;
            assert_eq!(answer.status, 201, "{answer:?}");
        }
        let mut in_pieces = tokio::net::TcpStream::connect(&rig.server.rest).await?;
        let head = "POST /api/v1/auth/login HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{";
        in_pieces.write_all(head.as_bytes()).await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
        in_pieces.write_all(b"}").await?;
        let mut answer = String::new();
        in_pieces.read_to_string(&mut answer).await?;
        ensure!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        drop(attackers);
        eprintln!("{path}: it grew from {before} to {largest} MiB");
        ensure!(largest < before + 250, "{path}: it grew from {before} to {largest} MiB");
    }
    Ok(())
}

/// One connection from an address of its own, with as many calls as it takes.
async fn half_calls(to: Result<SocketAddr, std::net::AddrParseError>, uri: String, content_type: &'static str, part: usize) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((ATTACKER, 0).into())?;
    let (mut sender, connection) = h2::client::handshake(socket.connect(to?).await?).await?;
    let calls = async move {
        let mut held = Vec::new();
        for _ in 0..256 {
            sender = sender.ready().await?;
            let mut request = tonic::codegen::http::Request::post(&uri).header("content-type", content_type).header("te", "trailers");
            for number in 0..60 {
                request = request.header(format!("x-filler-{number}"), "x".repeat(60));
            }
            let (answer, mut body) = sender.send_request(request.body(())?, false)?;
            let _ = body.send_data(vec![0; part].into(), false);
            held.push((answer, body));
        }
        std::future::pending::<()>().await;
        anyhow::Ok(held)
    };
    tokio::select! {
        ended = connection => Ok(ended?),
        _ = calls => Ok(()),
    }
}

/// What is attacked.
struct Target {
    name: &'static str,
    front: Front,
    /// Each process with its memory limit in bytes.
    processes: Vec<(String, u32, u64)>,
    database_url: String,
    running: Running,
}

enum Running {
    Stack { stack: Box<Stack> },
    One { _server: Server, _postgres: Postgres, _folder: tempfile::TempDir },
}

impl Target {
    fn stack() -> Result<Self> {
        let stack = Stack::start(Options { registrations_limited: true, ..Options::default() })?;
        let processes = stack.pids().into_iter().map(|(name, pid)| (name, pid, 256 * MIB)).collect();
        let (front, database_url) = (stack.front(), stack.postgres.url());
        Ok(Self { name: "behind nginx", front, processes, database_url, running: Running::Stack { stack: Box::new(stack) } })
    }

    fn one_process() -> Result<Self> {
        let (folder, postgres) = (tempfile::tempdir()?, Postgres::start()?);
        let database_url = postgres.url();
        let flags = ["--database-url", &database_url, "--registrations-per-minute", "60", "--registrations-burst", "100"];
        let server = Server::start(&folder.path().join("data"), &flags)?;
        // As much as its three services have together.
        let processes = vec![("lastro up".to_owned(), server.pid(), 3 * 256 * MIB)];
        let front = server.front();
        Ok(Self {
            name: "past nginx",
            front,
            processes,
            database_url,
            running: Running::One { _server: server, _postgres: postgres, _folder: folder },
        })
    }

    /// What the processes say of it, for whoever reads that the test has failed.
    fn tell_why(&self) {
        let Running::Stack { stack } = &self.running else { return };
        for (name, ..) in &self.processes {
            let log = stack.log(name).unwrap_or_default();
            let warned: Vec<&str> = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
            eprintln!("{name} has warned {} times, and last:\n{}", warned.len(), warned[warned.len().saturating_sub(15)..].join("\n"));
        }
    }

    /// The largest process by its share of what it may have.
    fn memory(&self) -> Result<Memory> {
        let mut largest = Memory { name: String::new(), bytes: 0, bytes_max: 1 };
        for (name, pid, bytes_max) in &self.processes {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("{name} has ended"))?;
            let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).and_then(|rest| rest.trim().strip_suffix(" kB"));
            let bytes = kib.context("a resident size")?.trim().parse::<u64>()? * 1024;
            if bytes * largest.bytes_max > largest.bytes * bytes_max {
                largest = Memory { name: name.clone(), bytes, bytes_max: *bytes_max };
            }
        }
        Ok(largest)
    }
}

struct Memory {
    name: String,
    bytes: u64,
    bytes_max: u64,
}

/// What an attacker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attack {
    /// Sixty metadata keys that each break a rule, over REST and over gRPC.
    Violations,
    /// Waits for an outcome, guesses passwords, lists: each slow in its own way.
    SlowMix,
    /// Pages of 1,000 of a user with 10,000 accounts and large operations.
    Lists,
    /// Registers users.
    Registrations,
    /// Begins calls and never sends their message.
    NoMessage,
    /// Sends the first half of a large body.
    HalfBodies,
    /// Connects and says nothing.
    Silence,
}

const ATTACKS: [Attack; 7] =
    [Attack::Violations, Attack::SlowMix, Attack::Lists, Attack::Registrations, Attack::NoMessage, Attack::HalfBodies, Attack::Silence];

/// The attacker's own means.
#[derive(Clone)]
struct Attacker {
    front: Front,
    someone: Someone,
    accounts: [String; 2],
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Attacker {
    fn api(&self) -> Result<Api> {
        let mut client = reqwest::Client::builder().local_address(ATTACKER).pool_max_idle_per_host(1).timeout(Duration::from_secs(40));
        if let Some(authority) = &self.front.authority {
            client = client.tls_certs_only([reqwest::Certificate::from_pem(&std::fs::read(authority)?)?]);
        }
        Ok(Api::through(client.build()?, &self.front.rest))
    }

    /// On a thread of its own, as if it were a machine of its own: the others' clients do not wait for its work.
    fn start(self, attack: Attack, connections: usize) -> std::thread::JoinHandle<Result<()>> {
        std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
                let mut attackers: JoinSet<_> = (0..connections).map(|number| self.clone().run(attack, number)).collect();
                self.stopped().await;
                attackers.abort_all();
                while attackers.join_next().await.is_some() {}
                Ok(())
            })
        })
    }

    /// One connection, until told to stop. Whatever it is answered, it goes on.
    async fn run(self, attack: Attack, number: usize) -> Result<()> {
        let api = self.api()?;
        let channel = if attack == Attack::Violations { Some(self.front.channel_from(Some(ATTACKER)).await?) } else { None };
        for call in number.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let token = Some(self.someone.token.as_str());
            match attack {
                Attack::Violations if call % 2 == 0 => {
                    let mut request =
                        transfer_request(&self.someone, &format!("v{call}"), [&self.accounts[0], &self.accounts[1]], Duration::from_secs(5))?;
                    request.get_mut().metadata = (0..60).map(|key| (format!("{key:070}"), "x".to_owned())).collect();
                    if let Some(channel) = &channel {
                        let _ = TransactionsServiceClient::new(channel.clone()).create_transaction(request).await;
                    }
                }
                Attack::Violations => {
                    let metadata: serde_json::Map<String, Value> = (0..60).map(|key| (format!("{key:070}"), json!("x"))).collect();
                    let mut body = Api::transfer(&format!("v{call}"), &self.accounts[0], &self.accounts[1], "0.01");
                    body["metadata"] = metadata.into();
                    let _ = api.post("/api/v1/transactions", token, body).await;
                }
                Attack::SlowMix => {
                    let guess = json!({ "email": self.someone.email, "password": "wrong" });
                    let transfer = Api::transfer(&format!("m{}", uuid::Uuid::new_v4()), &self.accounts[0], &self.accounts[1], "0.01");
                    let _ = match call % 3 {
                        0 => api.post("/api/v1/auth/login", None, guess).await,
                        1 => api.get("/api/v1/transactions?pageSize=1000", token).await,
                        _ => api.json(reqwest::Method::POST, "/api/v1/transactions", token, &[("prefer", "wait=30")], Some(transfer)).await,
                    };
                }
                Attack::Lists => {
                    let _ = api.get("/api/v1/transactions?pageSize=1000", token).await;
                }
                Attack::Registrations => {
                    let _ = register(&api).await;
                }
                Attack::NoMessage => self.calls_without_a_message().await,
                Attack::HalfBodies => self.half_a_body().await,
                Attack::Silence => self.silence().await,
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// As many calls as one connection takes, each with its headers and no message, over gRPC.
    async fn calls_without_a_message(&self) {
        let Ok(channel) = self.front.channel_from(Some(ATTACKER)).await else { return tokio::time::sleep(Duration::from_millis(20)).await };
        let calls = (0..1000).map(|_| {
            let channel = channel.clone();
            async move {
                let mut client = tonic::client::Grpc::new(channel);
                if client.ready().await.is_ok() {
                    let codec = ProstCodec::<CreateTransactionRequest, Transaction>::default();
                    let path = PathAndQuery::from_static("/lastro.transactions.v1.TransactionsService/CreateTransaction");
                    let _ = client.client_streaming(tonic::Request::new(futures_util::stream::pending()), path, codec).await;
                    self.done.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        tokio::select! {
            _ = join_all(calls) => {}
            () = self.stopped() => {}
        }
    }

    async fn stopped(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A body of 200 KB of which 100 KB come.
    async fn half_a_body(&self) {
        let head = format!(
            "POST /api/v1/transactions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: 200000\r\n\r\n",
            self.someone.token
        );
        let _ = self.hold_connection([head.into_bytes(), vec![b' '; 100_000]].concat()).await;
    }

    async fn silence(&self) {
        let _ = self.hold_connection(b"PRI * HTT".to_vec()).await;
    }

    /// Says something, in plain text, and waits until the connection is closed.
    async fn hold_connection(&self, words: Vec<u8>) -> Result<()> {
        let rest = self.front.rest.split_once("://").map_or("", |(_, rest)| rest).replace("localhost", "127.0.0.1");
        let address: SocketAddr = rest.parse()?;
        let hold = async || {
            let socket = TcpSocket::new_v4()?;
            socket.bind((ATTACKER, 0).into())?;
            let mut stream = socket.connect(address).await?;
            stream.write_all(&words).await?;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            anyhow::Ok(())
        };
        tokio::select! {
            held = hold() => held,
            () = self.stopped() => Ok(()),
        }
    }
}

/// How the others fared.
#[derive(Default)]
struct Others {
    took: Vec<Duration>,
    failed: Vec<String>,
}

impl Others {
    fn p99(&self) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        took.get(took.len().saturating_sub(1).min(took.len() * 99 / 100)).copied().unwrap_or_default()
    }

    /// How often each failure was told.
    fn failed_by_kind(&self) -> std::collections::BTreeMap<&str, usize> {
        let mut counts = std::collections::BTreeMap::new();
        self.failed.iter().for_each(|told| *counts.entry(told.as_str()).or_default() += 1);
        counts
    }

    fn succeeded(&self) -> f64 {
        let all = self.took.len() + self.failed.len();
        self.took.len() as f64 / all.max(1) as f64
    }
}

impl fmt::Display for Others {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.took.len() + self.failed.len();
        write!(formatter, "{:.2} % of {all} calls, p99 {:.1} ms", 100.0 * self.succeeded(), self.p99().as_secs_f64() * 1000.0)
    }
}

/// Four others for a while: one pays over REST, one over gRPC, one logs in, one reads.
async fn others(front: &Front, someone: &Someone, accounts: &[String; 2], runs_for: Duration) -> Result<Others> {
    // Its own, since the oldest of a user's sessions end when there are too many.
    let logs_in = front.api().someone().await?;
    let (channel, until) = (front.channel().await?, Instant::now() + runs_for);
    let other = async |kind: usize| {
        let (api, mut fared) = (front.api(), Others::default());
        while Instant::now() < until {
            let (key, started) = (uuid::Uuid::new_v4().to_string(), Instant::now());
            let [from, to] = [&accounts[kind % 2], &accounts[(kind + 1) % 2]];
            let token = Some(someone.token.as_str());
            let told = match kind {
                0 => told(api.post("/api/v1/transactions", token, Api::transfer(&key, from, to, "0.01")).await),
                1 => match over_grpc(&channel, someone, &key, [from, to]).await {
                    Outcome::Accepted(_) => Ok(()),
                    other => Err(format!("{other:?}")),
                },
                2 => told(api.post("/api/v1/auth/login", None, json!({ "email": logs_in.email, "password": PASSWORD })).await),
                _ => told(api.get("/api/v1/transactions?pageSize=20", token).await),
            };
            match told {
                Ok(()) => fared.took.push(started.elapsed()),
                Err(told) => fared.failed.push(format!("{}: {told}", ["pays over REST", "pays over gRPC", "logs in", "reads"][kind])),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        fared
    };
    let mut all = Others::default();
    for fared in join_all((0..4).map(other)).await {
        all.took.extend(fared.took);
        all.failed.extend(fared.failed);
    }
    Ok(all)
}

fn told(answer: Result<lastro_tests::Answer>) -> Result<(), String> {
    match answer {
        Ok(answer) if answer.status < 300 => Ok(()),
        Ok(answer) => Err(format!("{} {}", answer.status, answer.body["detail"])),
        Err(error) => Err(format!("{error:#}")),
    }
}

fn seconds() -> u64 {
    let set = std::env::vars().find(|(key, _)| key == "LASTRO_ABUSE_SECONDS").and_then(|(_, value)| value.parse().ok());
    set.unwrap_or(10)
}

async fn attack(target: &Target) -> Result<()> {
    let runs_for = Duration::from_secs(seconds());
    let (someone, accounts) = two_accounts(&target.front).await?;
    let (attacker, its_accounts) = two_accounts(&target.front).await?;
    let first = target.front.api().transact(&attacker.token, Api::transfer("mine 0", &its_accounts[0], &its_accounts[1], "0.01")).await?;
    ensure!(first.status == 201, "{first:?}");
    let mut hand = sqlx::PgConnection::connect(&format!("{}/lastro_transactions", target.database_url)).await?;
    let large = json!({ "k": "x".repeat(8000) }).to_string();
    sqlx::query("UPDATE operations SET metadata = $1 WHERE external_id = 'mine 0'").bind(large).execute(&mut hand).await?;
    give_many_operations(&mut hand, &attacker.id).await?;

    let mut quiet = Vec::new();
    for _ in 0..2 {
        let fared = others(&target.front, &someone, &accounts, runs_for).await?;
        eprintln!("{}, quiet: {fared}", target.name);
        ensure!(fared.succeeded() >= 0.99, "not even without an attack: {:?}", fared.failed.first());
        quiet.push(fared.p99());
    }
    let quiet = quiet.iter().sum::<Duration>() / 2;
    let only = std::env::vars().find(|(key, _)| key == "LASTRO_ABUSE_ONLY").map(|(_, value)| value);
    for attack in ATTACKS.into_iter().filter(|attack| only.as_deref().is_none_or(|only| only.split(',').any(|one| format!("{attack:?}") == one))) {
        for connections in [1, 64] {
            for repetition in 1.. {
                let (done, stop) = (Arc::default(), Arc::default());
                let attacker = Attacker { front: target.front.clone(), someone: attacker.clone(), accounts: its_accounts.clone(), done, stop };
                let attackers = attacker.clone().start(attack, connections);
                tokio::time::sleep(Duration::from_millis(300)).await;
                let fared = others(&target.front, &someone, &accounts, runs_for).await?;
                let memory = target.memory()?;
                attacker.stop.store(true, Ordering::Relaxed);
                let rate = attacker.done.load(Ordering::Relaxed) as f64 / runs_for.as_secs_f64();
                attackers.join().map_err(|_| anyhow::anyhow!("an attacker panicked"))??;
                let ratio = fared.p99().as_secs_f64() / quiet.as_secs_f64();
                eprintln!(
                    "{}, {attack:?} from {connections} at {rate:.0}/s: the others {fared}, {ratio:.1} × quiet; {} has {} of {} MiB",
                    target.name,
                    memory.name,
                    memory.bytes / MIB,
                    memory.bytes_max / MIB
                );
                if fared.succeeded() < 0.99 {
                    target.tell_why();
                    anyhow::bail!("{attack:?} from {connections}: {:?}", fared.failed_by_kind());
                }
                ensure!(memory.bytes <= memory.bytes_max, "{attack:?} from {connections}: {} has {} MiB", memory.name, memory.bytes / MIB);
                if ratio <= 10.0 || fared.p99() <= Duration::from_millis(250) {
                    break;
                }
                ensure!(repetition < 3, "{attack:?} from {connections}: p99 is {ratio:.1} × quiet, three times in a row");
            }
        }
    }
    Ok(())
}
