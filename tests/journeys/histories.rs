//! What 32 clients saw on two replicas while those were killed -9, checked for linearizability by porcupine, which none of us wrote (`tests/histories`): no
//! update is lost, no read goes back. Ignored in a plain run: `make test-histories`. LASTRO_HISTORY_SECONDS says how long, LASTRO_HISTORY_SEED which.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lastro_mesh::clock;
use lastro_tests::client::Someone;
use lastro_tests::stack::Options;
use lastro_tests::{Answer, Api, Stack, run, workspace};
use libtest_mimic::Trial;
use reqwest::Method;
use serde_json::{Value, json};

use crate::ledger::Ledger;
use crate::{block_on, failed};

const GROUPS: usize = 8;
const CLIENTS_OF_A_GROUP: usize = 4;
const ACCOUNTS: [&str; 4] = ["a", "b", "c", "d"];
/// What each account begins with, in minor units.
const BEGIN: i64 = 10_000;
/// So that the check of a group ends.
const OPERATIONS_MAX: usize = 1200;

pub fn trials() -> Vec<Trial> {
    vec![Trial::test("histories::are_linearizable", || failed(are_linearizable())).with_ignored_flag(true)]
}

fn setting(name: &str) -> Option<u64> {
    std::env::vars().find(|(key, _)| key == name).and_then(|(_, value)| value.parse().ok())
}

/// The checker, built from the checkout.
fn checker() -> Result<PathBuf> {
    let program = workspace().join("target/test-tools/bin/histories");
    run(Command::new("go").args(["build", "-o"]).arg(&program).arg(".").current_dir(workspace().join("tests/histories")))
        .context("porcupine needs Go and its module proxy")?;
    Ok(program)
}

fn are_linearizable() -> Result<()> {
    let now = clock::now_s().unsigned_abs();
    let (seed, seconds) = (setting("LASTRO_HISTORY_SEED").unwrap_or(now), setting("LASTRO_HISTORY_SECONDS").unwrap_or(40));
    eprintln!("histories: LASTRO_HISTORY_SEED={seed}, {seconds} s");
    let checker = checker()?;
    let stack = Arc::new(Stack::start(Options::default())?);
    let lines = block_on(record(&stack, seed, Duration::from_secs(seconds)))?;
    let file = workspace().join(format!("target/history-{seed}.jsonl"));
    std::fs::write(&file, lines)?;
    let output = Command::new(checker).arg(&file).output()?;
    eprint!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    anyhow::ensure!(output.status.success(), "LASTRO_HISTORY_SEED={seed}: {} is not linearizable, or cannot be checked", file.display());
    std::fs::remove_file(file)?;
    block_on(async { Ledger::open(Some(&stack.postgres.url()), &stack.path("data")).await?.check().await })
}

/// Splitmix64: the same seed, the same choices.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % sides as u64) as usize
    }
}

/// What the clients of a group share: somebody's four accounts, and what was made of them.
struct Group {
    name: String,
    someone: Someone,
    /// Their ids, in the order of [`ACCOUNTS`].
    ids: Vec<String>,
    /// Keys and ids of what was answered.
    holds: Mutex<Vec<(String, String)>>,
    completed: Mutex<Vec<(String, String)>>,
    seen: Mutex<Vec<(String, String)>>,
}

async fn record(stack: &Arc<Stack>, seed: u64, span: Duration) -> Result<String> {
    let (front, mut groups) = (stack.front(), Vec::new());
    let (api, administrator) = (front.api(), front.administrator().await?);
    for number in 0..GROUPS {
        let someone = api.someone().await?;
        let mut ids = Vec::new();
        for _ in ACCOUNTS {
            let id = api.account(&someone.token, "BRL").await?;
            api.deposit(&administrator, &id, "BRL", &format!("{}.00", BEGIN / 100)).await?;
            ids.push(id);
        }
        let name = format!("g{number}");
        groups.push(Arc::new(Group { name, someone, ids, holds: Mutex::default(), completed: Mutex::default(), seen: Mutex::default() }));
    }
    let (stop, began) = (Arc::new(AtomicBool::new(false)), Instant::now());
    let mut clients = Vec::new();
    for (number, group) in groups.iter().flat_map(|group| std::iter::repeat_n(group, CLIENTS_OF_A_GROUP)).enumerate() {
        let client =
            Client { number, api: front.api(), group: group.clone(), dice: Dice(seed ^ (number as u64) << 32), began, lines: String::new(), keys: 0 };
        clients.push(tokio::spawn(client.work(stop.clone())));
    }
    let killer = tokio::spawn(kill_replicas(stack.clone(), Dice(seed), stop.clone()));
    tokio::time::sleep(span).await;
    stop.store(true, Ordering::Relaxed);
    let killed = killer.await??;
    let mut lines = String::new();
    for group in &groups {
        writeln!(
            lines,
            "{}",
            json!({ "group": group.name, "init": ACCOUNTS.map(|name| (name, BEGIN)).into_iter().collect::<std::collections::BTreeMap<_, _>>() })
        )?;
    }
    let mut operations = 0;
    for client in clients {
        let recorded = client.await??;
        operations += recorded.lines().count();
        lines.push_str(&recorded);
    }
    eprintln!("histories: {operations} operations of 32 clients, replicas killed {killed} times");
    anyhow::ensure!(killed > 0 && operations > 100, "the test has to reach something");
    Ok(lines)
}

/// One replica of transactions after the other, and now and then a gateway.
async fn kill_replicas(stack: Arc<Stack>, mut dice: Dice, stop: Arc<AtomicBool>) -> Result<u32> {
    let mut killed = 0;
    let replicas = ["transactions-1", "transactions-2", "gateway-1", "transactions-1", "transactions-2", "gateway-2"];
    while !stop.load(Ordering::Relaxed) {
        let name = replicas[killed as usize % replicas.len()];
        tokio::time::sleep(Duration::from_millis(500 + dice.roll(1000) as u64)).await;
        stack.kill(name)?;
        killed += 1;
        tokio::time::sleep(Duration::from_millis(dice.roll(600) as u64)).await;
        stack.spawn(name)?;
        let (waiting, since) = (stack.clone(), Instant::now());
        tokio::task::spawn_blocking(move || waiting.until_one_is_ready(name)).await??;
        anyhow::ensure!(since.elapsed() < Duration::from_secs(30), "{name} is not ready again");
    }
    Ok(killed)
}

struct Client {
    number: usize,
    api: Api,
    group: Arc<Group>,
    dice: Dice,
    began: Instant,
    lines: String,
    keys: u32,
}

/// In minor units.
fn money(minor: i64) -> Value {
    json!({ "currencyCode": "BRL", "amount": format!("{}.{:02}", minor / 100, minor % 100) })
}

fn minor(money: &Value) -> Result<i64> {
    Ok(money["amount"].as_str().with_context(|| format!("{money}"))?.replace('.', "").parse()?)
}

impl Client {
    async fn work(mut self, stop: Arc<AtomicBool>) -> Result<String> {
        for _ in 0..OPERATIONS_MAX {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            self.operation().await?;
        }
        Ok(self.lines)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn key(&mut self) -> String {
        self.keys += 1;
        format!("{}-{}", self.number, self.keys)
    }

    /// Asks, with the same key, until somebody knows: an answer, or a refusal that is one.
    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        loop {
            let asked = self.api.json(method.clone(), path, Some(&self.group.someone.token), &[("prefer", "wait=2")], body.cloned());
            match tokio::time::timeout(Duration::from_secs(5), asked).await {
                Ok(Ok(answer)) if answer.status < 500 && !["PENDING", "PROCESSING"].contains(&answer.body["state"].as_str().unwrap_or_default()) => {
                    return answer;
                }
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn write(&mut self, call: u64, kind: &str, of: Value) {
        let mut line = json!({ "group": self.group.name, "client": self.number, "call": call, "return": self.now(), "kind": kind });
        let (Some(line), Value::Object(of)) = (line.as_object_mut(), of) else { return };
        line.extend(of);
        let _ = writeln!(self.lines, "{}", Value::Object(std::mem::take(line)));
    }

    async fn operation(&mut self) -> Result<()> {
        match self.dice.roll(100) {
            0..35 => self.submit(false).await,
            35..50 => self.submit(true).await,
            50..62 => self.resolve().await,
            62..67 => self.reverse().await,
            67..92 => self.read_account().await,
            _ => self.read_transaction().await,
        }
    }

    /// A transfer or a hold, of one leg or several.
    async fn submit(&mut self, hold: bool) -> Result<()> {
        let (key, count) = (self.key(), if self.dice.roll(3) == 0 { 2 + self.dice.roll(2) } else { 1 });
        let legs: Vec<(usize, usize, i64)> = (0..count)
            .map(|_| {
                let from = self.dice.roll(ACCOUNTS.len());
                (from, (from + 1 + self.dice.roll(ACCOUNTS.len() - 1)) % ACCOUNTS.len(), 1 + self.dice.roll(4000) as i64)
            })
            .collect();
        let id = |account: usize| self.group.ids[account].clone();
        let of = |(from, to, amount): &(usize, usize, i64)| json!({ "sourceAccountId": id(*from), "destinationAccountId": id(*to), "amount": money(*amount) });
        let mut body = if count == 1 { of(&legs[0]) } else { json!({ "legs": legs.iter().map(of).collect::<Vec<_>>() }) };
        (body["externalId"], body["type"], body["hold"]) = (json!(key), json!("TRANSFER"), json!(hold));
        let call = self.now();
        let answer = self.ask(Method::POST, "/api/v1/transactions", Some(&body)).await;
        let state = answer.text("state").with_context(|| format!("{answer:?}"))?;
        let told = legs.iter().map(|(from, to, amount)| json!({ "from": ACCOUNTS[*from], "to": ACCOUNTS[*to], "amount": amount }));
        let mut line = json!({ "id": key, "legs": told.collect::<Vec<_>>(), "result": state });
        self.add_outcome(&mut line, &answer.body)?;
        self.write(call, if hold { "hold" } else { "transfer" }, line);
        let entry = (key, answer.text("id")?);
        let push = |list: &Mutex<Vec<_>>| list.lock().expect("no panics").push(entry.clone());
        match state.as_str() {
            "AUTHORIZED" => push(&self.group.holds),
            "COMPLETED" => push(&self.group.completed),
            _ => {}
        }
        push(&self.group.seen);
        Ok(())
    }

    /// The leg that was refused, or the postings.
    fn add_outcome(&self, line: &mut Value, told: &Value) -> Result<()> {
        match line["result"].as_str() {
            Some("REJECTED") => line["rejectedLeg"] = json!(told["rejectedLeg"].as_u64().unwrap_or(0)),
            Some("COMPLETED") => {
                let name = |id: &Value| self.group.ids.iter().position(|own| id == own).map(|place| ACCOUNTS[place]);
                let mut postings = Vec::new();
                for one in told["postings"].as_array().into_iter().flatten() {
                    let (amount, after) = (minor(&one["amount"])?, minor(&one["balanceAfter"])?);
                    postings.push(json!({ "account": name(&one["accountId"]), "amount": amount, "balanceAfter": after }));
                }
                line["postings"] = json!(postings);
            }
            _ => {}
        }
        Ok(())
    }

    fn pick(&mut self, list: impl Fn(&Group) -> &Mutex<Vec<(String, String)>>) -> Option<(String, String)> {
        let known = list(&self.group).lock().expect("no panics").clone();
        // The newest ones, about which clients race.
        let recent = &known[known.len().saturating_sub(8)..];
        (!recent.is_empty()).then(|| recent[self.dice.roll(recent.len())].clone())
    }

    async fn resolve(&mut self) -> Result<()> {
        let Some((hold, id)) = self.pick(|group| &group.holds) else { return Ok(()) };
        let (verb, key) = (if self.dice.roll(3) == 0 { "void" } else { "capture" }, self.key());
        let call = self.now();
        let answer = self.ask(Method::POST, &format!("/api/v1/transactions/{id}:{verb}"), Some(&json!({ "externalId": key }))).await;
        let result = if answer.status == 200 { answer.text("state")? } else { answer.text("reason").with_context(|| format!("{answer:?}"))? };
        let mut line = json!({ "id": hold, "result": result });
        if verb == "capture" {
            line["amount"] = json!(0);
            self.add_outcome(&mut line, &answer.body)?;
        }
        self.write(call, verb, line);
        if result == "COMPLETED" {
            self.group.completed.lock().expect("no panics").push((hold, id));
        }
        Ok(())
    }

    async fn reverse(&mut self) -> Result<()> {
        let Some((of, id)) = self.pick(|group| &group.completed) else { return Ok(()) };
        let (key, call) = (self.key(), self.now());
        let answer = self.ask(Method::POST, &format!("/api/v1/transactions/{id}:reverse"), Some(&json!({ "externalId": key }))).await;
        let result = if answer.status <= 201 { answer.text("state")? } else { answer.text("reason").with_context(|| format!("{answer:?}"))? };
        let mut line = json!({ "of": of, "id": key, "result": result });
        self.add_outcome(&mut line, &answer.body)?;
        self.write(call, "reverse", line);
        Ok(())
    }

    async fn read_account(&mut self) -> Result<()> {
        let (account, call) = (self.dice.roll(ACCOUNTS.len()), self.now());
        let answer = self.ask(Method::GET, &format!("/api/v1/accounts/{}", self.group.ids[account]), None).await;
        let line = json!({ "account": ACCOUNTS[account], "posted": minor(&answer.body["posted"])?, "held": minor(&answer.body["held"])? });
        self.write(call, "read_account", line);
        Ok(())
    }

    async fn read_transaction(&mut self) -> Result<()> {
        let Some((key, id)) = self.pick(|group| &group.seen) else { return Ok(()) };
        let call = self.now();
        let answer = self.ask(Method::GET, &format!("/api/v1/transactions/{id}"), None).await;
        let line = json!({ "id": key, "state": answer.text("state")? });
        self.write(call, "read_transaction", line);
        Ok(())
    }
}
