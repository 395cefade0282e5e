//! Sagas whose calls fail. The faults are made from the saga's own definition: each call of each step and of each undo is refused, finds nobody, loses its
//! answer, is made twice, comes late, and the process is killed before and after it. However it goes, every order ends, or is visibly stuck where its undo was
//! made to fail; money and pieces add up, and nothing is kept for anybody.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use lastro_orders::{Direction, Step, methods_of_step};
use lastro_tests::client::Someone;
use lastro_tests::server::faulty_binary;
use lastro_tests::stack::Options;
use lastro_tests::{Api, Front, Postgres, Server, Stack};
use libtest_mimic::Trial;
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use reqwest::Method;
use serde_json::{Value, json};

use crate::inventory::Shop;
use crate::market::new_order;
use crate::{block_on, failed};

/// In `make test-long` all of them.
pub fn trials() -> Vec<Trial> {
    let trial =
        |name: &str, place: PlaceKind| Trial::test(format!("broken_sagas::{name}"), move || failed(block_on(run(place)))).with_ignored_flag(true);
    vec![
        trial("on_sqlite_with_one_replica", PlaceKind::Sqlite),
        trial("on_postgresql_with_one_replica", PlaceKind::Postgres),
        trial("on_postgresql_with_two_replicas", PlaceKind::TwoReplicas),
    ]
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Refuses,
    Away,
    LosesAnswer,
    Repeats,
    ComesLate,
    KilledBefore,
    KilledAfter,
    /// Until another replica has gone on with the saga; then it asks, as if nothing had happened.
    PausedBefore,
}

impl Fault {
    const ALL: [Self; 8] =
        [Self::Refuses, Self::Away, Self::LosesAnswer, Self::Repeats, Self::ComesLate, Self::KilledBefore, Self::KilledAfter, Self::PausedBefore];

    /// As src/bin/faulty.rs has it.
    const fn name(self) -> &'static str {
        match self {
            Self::Refuses => "refuses",
            Self::Away => "away",
            Self::LosesAnswer => "loses_answer",
            Self::Repeats => "repeats",
            Self::ComesLate => "comes_late",
            Self::KilledBefore => "killed_before",
            Self::KilledAfter => "killed_after",
            Self::PausedBefore => "paused_before",
        }
    }

    /// Whether nobody else is served meanwhile.
    const fn is_of_the_process(self) -> bool {
        matches!(self, Self::KilledBefore | Self::KilledAfter | Self::PausedBefore)
    }

    /// How often in a row: the mesh hides one, a saga three, and more than that makes it give up.
    fn how_often(self, direction: Direction) -> &'static [usize] {
        match (self, direction) {
            // An undo that is refused three times has failed.
            (Self::Refuses, Direction::Undo) => &[1, 3],
            (Self::Away | Self::LosesAnswer, _) => &[1, 3, 12],
            _ => &[1],
        }
    }
}

/// One call that fails so, so often.
#[derive(Debug, Clone, Copy)]
struct Case {
    step: Step,
    direction: Direction,
    method: &'static str,
    fault: Fault,
    times: usize,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for step in Step::ALL {
        for direction in [Direction::Do, Direction::Undo] {
            for method in methods_of_step(step, direction) {
                for fault in Fault::ALL {
                    cases.extend(fault.how_often(direction).iter().map(|times| Case { step, direction, method, fault, times: *times }));
                }
            }
        }
    }
    cases
}

impl Case {
    /// What makes the saga come to the call: an undo is made where a later step is refused, and that of the last one where the order is cancelled.
    fn trigger(&self) -> Option<&'static str> {
        match (self.step, self.direction) {
            (_, Direction::Do) | (Step::Confirm, Direction::Undo) => None,
            (Step::Reserve, Direction::Undo) => methods_of_step(Step::Pay, Direction::Do).first().copied(),
            (Step::Pay, Direction::Undo) => methods_of_step(Step::Confirm, Direction::Do).first().copied(),
        }
    }

    fn is_cancelled(&self) -> bool {
        (self.step, self.direction) == (Step::Confirm, Direction::Undo)
    }

    /// How an order of it may end.
    fn may_end(&self) -> &'static [&'static str] {
        match (self.direction, self.fault) {
            (Direction::Undo, _) if self.is_cancelled() => &["CANCELLED"],
            (Direction::Undo, _) | (Direction::Do, Fault::Refuses) => &["FAILED"],
            (Direction::Do, Fault::Repeats | Fault::KilledBefore | Fault::KilledAfter | Fault::PausedBefore) => &["COMPLETED"],
            // As long as nobody answers it may be tried again, or given up.
            (Direction::Do, Fault::Away | Fault::LosesAnswer | Fault::ComesLate) => &["COMPLETED", "FAILED"],
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PlaceKind {
    Sqlite,
    Postgres,
    TwoReplicas,
}

/// Where it runs, with the program that fails as it is told.
enum Place {
    One { server: Box<Server>, flags: Vec<String>, _stores: Option<Postgres>, folder: tempfile::TempDir },
    Many(Box<Stack>),
}

impl Place {
    fn start(kind: PlaceKind, faults: &Path) -> Result<Self> {
        if kind == PlaceKind::TwoReplicas {
            let environment =
                vec![("LASTRO_FAULTS".to_owned(), faults.display().to_string()), ("LASTRO_SAGA_LEASE_MS".to_owned(), "1000".to_owned())];
            let options = Options { orders: Some(faulty_binary()?), environment, ..Options::default() };
            return Ok(Self::Many(Box::new(Stack::start(options)?)));
        }
        let folder = tempfile::tempdir()?;
        let stores = if kind == PlaceKind::Postgres { Some(Postgres::start()?) } else { None };
        let mut flags = vec!["--saga-lease-ms".to_owned(), "1000".to_owned()];
        flags.extend(stores.iter().flat_map(|postgres| ["--database-url".to_owned(), postgres.url()]));
        let server = Self::start_one(None, folder.path(), &flags, faults)?;
        Ok(Self::One { server: Box::new(server), flags, _stores: stores, folder })
    }

    fn start_one(before: Option<&Server>, folder: &Path, flags: &[String], faults: &Path) -> Result<Server> {
        let environment = [("LASTRO_FAULTS", faults.as_os_str())];
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        match before {
            Some(server) => server.start_binary_again(&faulty_binary()?, &environment, &flags),
            None => Server::start_binary_in(&faulty_binary()?, &environment, &folder.join("data"), &flags),
        }
    }

    fn front(&self) -> Front {
        match self {
            Self::One { server, .. } => server.front(),
            Self::Many(stack) => stack.front(),
        }
    }

    /// Starts again what was killed.
    fn revive(&mut self, faults: &Path) -> Result<()> {
        match self {
            Self::One { server, flags, folder, .. } => {
                if server.has_ended()? {
                    **server = Self::start_one(Some(server), folder.path(), flags, faults)?;
                }
                Ok(())
            }
            Self::Many(stack) => stack.revive().map(|_| ()),
        }
    }
}

/// A case while it is tried.
struct Attempt {
    case: Case,
    buyer: Someone,
    account: String,
    quantity: i64,
    order: String,
}

async fn run(kind: PlaceKind) -> Result<()> {
    let seed = environment("LASTRO_SAGA_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let share = environment("LASTRO_SAGA_SHARE").unwrap_or(100);
    let mut cases = cases();
    // Only another replica goes on with the sagas of one that is paused.
    cases.retain(|case| case.fault != Fault::PausedBefore || kind == PlaceKind::TwoReplicas);
    let all = cases.len();
    cases.shuffle(&mut rand::rngs::StdRng::seed_from_u64(seed));
    cases.truncate((all * usize::try_from(share)?).div_ceil(100));
    eprintln!("sagas, {kind:?}: LASTRO_SAGA_SEED={seed}, {} of {all} cases", cases.len());
    let faults = tempfile::tempdir()?;
    let mut place = Place::start(kind, faults.path())?;
    let front = place.front();
    let shop = Shop::open(&front).await?;
    const PIECES: i64 = 100_000;
    for store in ["a", "b"] {
        ensure!(shop.adjust(&shop.product, store, PIECES / 2, &format!("{} {store}", shop.product)).await?.status == 200);
    }
    let api = front.api();
    let (killing, others): (Vec<Case>, Vec<Case>) = cases.into_iter().partition(|case| case.fault.is_of_the_process());
    let mut tried = Vec::new();
    for some in few_at_once(others) {
        let attempts = join_all(some.iter().enumerate().map(|(index, case)| begin(&api, &shop, *case, faults.path(), index as i64 + 1))).await;
        for attempt in attempts {
            tried.push(attempt?);
        }
        let began = tried.len() - some.len();
        let ended = join_all(tried[began..].iter().map(|attempt| end(&api, &shop, attempt, faults.path(), None))).await;
        ended.into_iter().collect::<Result<Vec<()>>>()?;
    }
    for case in killing {
        let attempt = begin_and_revive(&mut place, &api, &shop, case, faults.path()).await?;
        end(&api, &shop, &attempt, faults.path(), Some(&mut place)).await?;
        tried.push(attempt);
    }
    add_up(&api, &shop, &tried, PIECES).await?;
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    for attempt in &tried {
        *ends.entry(status_of(&api, attempt).await?).or_default() += 1;
    }
    eprintln!("sagas, {kind:?}: {} orders: {ends:?}", tried.len());
    Ok(())
}

/// Twelve at once. What is made to fail closes the way to the others, who wait until it is open again: of those that fail so often that the mesh gives up,
/// two are in each dozen.
fn few_at_once(cases: Vec<Case>) -> Vec<Vec<Case>> {
    let (mut often, mut seldom): (Vec<Case>, Vec<Case>) = cases.into_iter().partition(|case| case.times > 3);
    let mut dozens = Vec::new();
    while !(often.is_empty() && seldom.is_empty()) {
        let mut dozen = often.split_off(often.len().saturating_sub(2));
        dozen.extend(seldom.split_off(seldom.len().saturating_sub(12 - dozen.len())));
        dozens.push(dozen);
    }
    dozens
}

fn environment(name: &str) -> Option<u64> {
    std::env::vars().find(|(known, _)| known == name).and_then(|(_, value)| value.parse().ok())
}

fn plan_of(case: Case) -> String {
    let trigger = case.trigger().map(|method| format!("{method} refuses 1\n")).unwrap_or_default();
    format!("{trigger}{} {} {}\n", case.method, case.fault.name(), case.times)
}

async fn someone(api: &Api, shop: &Shop) -> Result<(Someone, String)> {
    let buyer = api.someone().await?;
    let account = api.account(&buyer.token, "BRL").await?;
    api.deposit(&shop.administrator, &account, "BRL", "1000.00").await?;
    Ok((buyer, account))
}

/// Places an order whose call fails.
async fn begin(api: &Api, shop: &Shop, case: Case, faults: &Path, quantity: i64) -> Result<Attempt> {
    let (buyer, account) = someone(api, shop).await?;
    std::fs::write(faults.join(&buyer.id), plan_of(case))?;
    let placed = api.post("/api/v1/orders", Some(&buyer.token), new_order("one", &[(&shop.product, quantity)], &account)).await?;
    Ok(Attempt { case, order: placed.text("id").with_context(|| format!("{case:?}"))?, buyer, account, quantity })
}

/// As [`begin`]; the process may be killed before it answers.
async fn begin_and_revive(place: &mut Place, api: &Api, shop: &Shop, case: Case, faults: &Path) -> Result<Attempt> {
    let quantity = 3;
    let (buyer, account) = someone(api, shop).await?;
    std::fs::write(faults.join(&buyer.id), plan_of(case))?;
    let since = Instant::now();
    loop {
        let placed = api.post("/api/v1/orders", Some(&buyer.token), new_order("one", &[(&shop.product, quantity)], &account)).await;
        if let Ok(order) = placed.and_then(|placed| placed.text("id")) {
            return Ok(Attempt { case, buyer, account, quantity, order });
        }
        ensure!(since.elapsed() < Duration::from_secs(30), "it cannot be placed: {case:?}");
        place.revive(faults)?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How long an order may take to end: a probe of a closed way is made every 5 s, and each may meet one more failure.
const ENDS_WITHIN: Duration = Duration::from_secs(180);

/// Until the order has ended as it may; where its undo was made to fail, it is seen to be stuck first, and an administrator goes on with it.
async fn end(api: &Api, shop: &Shop, attempt: &Attempt, faults: &Path, mut place: Option<&mut Place>) -> Result<()> {
    let (case, since) = (attempt.case, Instant::now());
    let (mut was_cancelled, mut was_stuck) = (false, false);
    loop {
        ensure!(since.elapsed() < ENDS_WITHIN, "it does not end: {case:?} {:?}", saga_of(api, attempt).await);
        if let Some(place) = place.as_deref_mut() {
            place.revive(faults)?;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        // Whoever is killed answers nobody.
        let Ok(saga) = saga_of(api, attempt).await else { continue };
        match saga["state"].as_str() {
            Some("COMPLETED") if case.is_cancelled() && !was_cancelled => {
                let path = format!("/api/v1/orders/{}", attempt.order);
                was_cancelled = api.json(Method::DELETE, &path, Some(&attempt.buyer.token), &[], None).await.is_ok_and(|told| told.status == 202);
            }
            Some("FAILED") => {
                let failed = saga["steps"].as_array().into_iter().flatten().find(|step| step["direction"] == "UNDO" && step["state"] == "FAILED");
                ensure!(failed.is_some_and(|step| step["lastError"] != "" && step["attempts"] == 3), "{case:?} {saga}");
                was_stuck = true;
                let resumed = json!({ "action": "RETRY" });
                api.post(&format!("/api/v1/sagas/{}:resume", attempt.order), Some(&shop.administrator), resumed).await?;
            }
            Some("COMPLETED" | "COMPENSATED") => break,
            _ => {}
        }
    }
    let status = status_of(api, attempt).await?;
    ensure!(case.may_end().contains(&status.as_str()), "{case:?} ended {status}: {:?}", saga_of(api, attempt).await);
    let is_to_be_stuck = case.direction == Direction::Undo && case.fault == Fault::Refuses && case.times == 3;
    ensure!(was_stuck == is_to_be_stuck, "{case:?} was stuck: {was_stuck}");
    // It was this call that failed, and so.
    let hits = std::fs::read_to_string(hits_file(faults, attempt)).unwrap_or_default();
    let hit = format!("{} {}", case.method, case.fault.name());
    ensure!(hits.lines().any(|line| line == hit), "{case:?} was not hit: {hits:?} {:?}", saga_of(api, attempt).await);
    if case.fault != Fault::PausedBefore {
        return Ok(());
    }
    // Another replica has ended the saga. Whoever wakes up now and asks has lost its lease, and is told so.
    std::fs::write(faults.join(format!("{}.taken_over", attempt.buyer.id)), "")?;
    loop {
        let hits = std::fs::read_to_string(hits_file(faults, attempt)).unwrap_or_default();
        if let Some(told) = hits.lines().find_map(|line| line.strip_prefix(&format!("{} told ", case.method))) {
            ensure!(told == "STALE_EPOCH", "{case:?} was told {told}");
            return Ok(());
        }
        ensure!(since.elapsed() < ENDS_WITHIN, "{case:?} does not wake up: {hits:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn hits_file(faults: &Path, attempt: &Attempt) -> PathBuf {
    faults.join(format!("{}.hits", attempt.buyer.id))
}

async fn saga_of(api: &Api, attempt: &Attempt) -> Result<Value> {
    let saga = api.get(&format!("/api/v1/orders/{}/saga", attempt.order), Some(&attempt.buyer.token)).await?;
    ensure!(saga.status == 200, "{saga:?}");
    Ok(saga.body)
}

async fn status_of(api: &Api, attempt: &Attempt) -> Result<String> {
    api.get(&format!("/api/v1/orders/{}", attempt.order), Some(&attempt.buyer.token)).await?.text("status")
}

/// Who has bought something has paid for it, once; nobody else has paid; what is not sold is there, and kept for nobody.
async fn add_up(api: &Api, shop: &Shop, tried: &[Attempt], pieces: i64) -> Result<()> {
    // What comes late has come.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut sold = 0;
    for attempt in tried {
        let status = status_of(api, attempt).await?;
        let bought = if status == "COMPLETED" { attempt.quantity } else { 0 };
        sold += bought;
        let left = api.posted(&attempt.buyer.token, &attempt.account).await?;
        ensure!(left == format!("{}.00", 1000 - 10 * bought), "{:?} {status}: {left}", attempt.case);
    }
    let merchant = api.get(&format!("/api/v1/accounts/{}", shop.account), Some(&shop.administrator)).await?;
    ensure!(merchant.body["posted"]["amount"] == json!(format!("{}.00", 10 * sold)), "{sold} are sold: {merchant:?}");
    let since = Instant::now();
    loop {
        let there = shop.pieces(&shop.product, "").await?;
        let (on_hand, reserved) = there.iter().fold((0, 0), |sum, (_, on_hand, reserved)| (sum.0 + on_hand, sum.1 + reserved));
        if (on_hand, reserved) == (pieces - sold, 0) {
            return Ok(());
        }
        // A cache may be a moment old.
        ensure!(since.elapsed() < Duration::from_secs(3), "{sold} are sold of {pieces}: {there:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
