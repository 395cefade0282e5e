//! An adversary of projections: whatever happens on the way, reports end as they are when they are made from scratch, row by row. Events are written by
//! transactions that are held open while later ones commit, that are rolled back and written again, and that cross; some are no events at all. Redis is
//! killed, emptied and restarted, its streams are trimmed below what has been read, and get entries twice and in any order. One replica is killed, the other one
//! is paused for longer than it may keep what it was given, and all tables are made anew in the middle.
//!
//! And reports that join a large ledger with an empty Redis have all of it.
//!
//! Ignored in a plain run: `make test-projections`. Events by LASTRO_PROJECTION_EVENTS, 20,000 if nothing is said, and operations of the large ledger by
//! LASTRO_LEDGER_OPERATIONS, 1,000,000; LASTRO_SEED repeats what is written and done.

mod generate;
mod orders;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lastro_database::{Database, all};
use lastro_events::{Event, EventStore};
use lastro_tests::{Stack, stack};
use lastro_transactions::{ACCOUNT_EVENTS, EVENTS};
use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use sea_orm::FromQueryResult;
use tokio::time::sleep;
use uuid::Uuid;

use self::generate::{ACCOUNTS, Expected, POISONED, Stream, Written, generate};
use crate::cli::lastro;
use crate::readers::setting;
use crate::{block_on, failed};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("projections::equal_those_from_scratch", || failed(block_on(equal_those_from_scratch()))).with_ignored_flag(true),
        Trial::test("projections::join_a_large_ledger", || failed(block_on(join_a_large_ledger()))).with_ignored_flag(true),
    ]
}

const WRITERS: usize = 8;
/// Streams of which one transaction has events, on average.
const STREAMS_AT_ONCE: usize = 10;
/// For about so long events are written, however many there are.
const SPAN: Duration = Duration::from_secs(20);
/// Longer than reports take for a million operations.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(900);
/// Orders beside them: one for so many other events. Each has three events and more.
const ORDERS_ONE_IN: usize = 10;

/// Writes streams as many callers at once do: each event in one of many transactions, some of which are held open, and some rolled back first.
async fn write(database: Database, mut streams: Vec<Stream>, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let transactions = (streams.len() / STREAMS_AT_ONCE).max(1);
    // Twice the mean, and some transactions are for the rest of a stream.
    let pause_ms_max = u64::try_from(SPAN.as_millis())? / transactions as u64;
    streams.reverse();
    while !streams.is_empty() {
        // Some transactions have one event of many streams, some many of a few.
        let mut taken = streams.split_off(streams.len().saturating_sub(random.random_range(1..2 * STREAMS_AT_ONCE)));
        taken.reverse();
        let mut parts: Vec<(EventStore, Vec<Event>)> = Vec::new();
        for mut stream in taken {
            let count = if random.random_bool(0.5) { stream.events.len() } else { random.random_range(1..=stream.events.len()) };
            let later = stream.events.split_off(count);
            parts.push((stream.store, stream.events));
            if !later.is_empty() {
                streams.push(Stream { store: stream.store, events: later });
            }
        }
        parts.shuffle(&mut random);
        if random.random_bool(0.1) {
            let tx = database.begin().await?;
            for (store, events) in &parts {
                store.insert(&tx, events).await?;
            }
            tx.rollback().await?;
        }
        let tx = database.begin().await?;
        for (store, events) in &parts {
            store.insert(&tx, events).await?;
        }
        if random.random_bool(0.03) {
            sleep(Duration::from_millis(random.random_range(100..1_500))).await;
        }
        tx.commit().await?;
        sleep(Duration::from_millis(random.random_range(0..=pause_ms_max))).await;
    }
    Ok(())
}

/// What is done to Redis, again and again, until it is told to stop.
async fn harm_redis(rig: Arc<Stack>, stop: Arc<AtomicBool>, stays_up: Arc<AtomicBool>, seed: u64) -> Result<u32> {
    let (mut random, mut harmed) = (StdRng::seed_from_u64(seed), 0);
    while !stop.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(random.random_range(200..1_200))).await;
        let choice = random.random_range(0..8);
        if choice < 2 && !stays_up.load(Ordering::Relaxed) {
            tokio::task::block_in_place(|| {
                let mut redis = rig.redis.lock().expect("not poisoned");
                if choice == 0 {
                    redis.lose_everything()?;
                } else {
                    redis.stop();
                }
                std::thread::sleep(Duration::from_millis(300));
                redis.resume()
            })?;
        } else {
            // It may be on its way back.
            let _ = harm_streams(&rig, choice, &mut random).await;
        }
        harmed += 1;
    }
    Ok(harmed)
}

async fn harm_streams(rig: &Stack, choice: u32, random: &mut StdRng) -> Result<()> {
    let url = rig.redis.lock().expect("not poisoned").url();
    let mut redis = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    if choice <= 2 {
        return Ok(redis::cmd("FLUSHALL").query_async(&mut redis).await?);
    }
    for stream in
        ["transactions", "accounts", "orders"].iter().flat_map(|topic| (0..4).map(move |shard| format!("lastro:{{{topic}}}:stream:{shard}")))
    {
        if choice < 5 {
            redis::cmd("XTRIM").arg(&stream).arg("MAXLEN").arg(random.random_range(0..5)).query_async::<()>(&mut redis).await?;
            continue;
        }
        let entries: Vec<(String, Vec<(String, Vec<u8>)>)> =
            redis::cmd("XREVRANGE").arg(&stream).arg("+").arg("-").arg("COUNT").arg(50).query_async(&mut redis).await?;
        let mut again: Vec<_> = entries.into_iter().map(|(_, fields)| fields).collect();
        again.shuffle(random);
        for fields in again {
            let mut add = redis::cmd("XADD");
            add.arg(&stream).arg("*");
            for (name, value) in &fields {
                add.arg(name).arg(value);
            }
            add.query_async::<()>(&mut redis).await?;
        }
    }
    Ok(())
}

/// One replica is killed, the other one is paused for longer than it may keep what it was given.
async fn harm_replicas(rig: Arc<Stack>, stop: Arc<AtomicBool>, seed: u64) -> Result<u32> {
    let (mut random, mut harmed) = (StdRng::seed_from_u64(seed), 0);
    while !stop.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(random.random_range(500..2_500))).await;
        if random.random_bool(0.7) {
            rig.kill("reports-1")?;
            sleep(Duration::from_millis(random.random_range(0..400))).await;
            rig.spawn("reports-1")?;
        } else {
            rig.signal("reports-2", "STOP")?;
            sleep(Duration::from_secs(random.random_range(3..12))).await;
            rig.signal("reports-2", "CONT")?;
        }
        harmed += 1;
    }
    Ok(harmed)
}

#[derive(FromQueryResult)]
struct Line {
    line: String,
}

/// Every row of every projection.
async fn rows(reports: &Database) -> Result<BTreeMap<&'static str, Vec<String>>> {
    let mut found = BTreeMap::new();
    for (table, columns) in [
        ("accounts", "t.*"),
        ("account_heads", "t.*"),
        ("early_postings", "t.*"),
        ("entries", "t.*"),
        ("daily_balances", "t.*"),
        ("operations", "t.*"),
        ("operation_days", "t.*"),
        ("orders", "t.*"),
        ("order_items", "t.*"),
        ("order_words", "t.*"),
        ("order_days", "t.*"),
        ("saga_times", "t.*"),
        ("sales", "t.*"),
        ("inbox_parked", "t.topic, t.aggregate_id, t.version"),
        ("dead_events", "t.topic, t.aggregate_id, t.version, t.hash"),
    ] {
        let sql = format!("SELECT r::text AS line FROM (SELECT {columns} FROM {table} t) r ORDER BY 1");
        let lines: Vec<Line> = all(reports.reader(), &sql, []).await?;
        found.insert(table, lines.into_iter().map(|line| line.line).collect());
    }
    Ok(found)
}

async fn count(reports: &Database, sql: &str) -> Result<i64> {
    lastro_tests::reader::count(reports, sql).await
}

/// That reports tell what was generated: nothing is skipped, nothing counted twice.
async fn compare(reports: &Database, expected: &Expected) -> Result<()> {
    #[derive(FromQueryResult, PartialEq, Eq, Debug)]
    struct Head {
        account_id: Uuid,
        version: i64,
        balance: i64,
        ahead: i64,
    }
    let heads: Vec<Head> =
        all(reports.reader(), "SELECT account_id, version, balance, ahead FROM account_heads WHERE version > 0 ORDER BY account_id", []).await?;
    let wanted = expected.heads.iter().filter(|(_, (version, _))| *version > 0);
    let wanted: Vec<Head> = wanted.map(|(id, (version, balance))| Head { account_id: *id, version: *version, balance: *balance, ahead: 0 }).collect();
    ensure!(heads == wanted, "heads of accounts: {heads:?}, and not {wanted:?}");
    #[derive(FromQueryResult, PartialEq, Eq, Debug)]
    struct Day {
        account_id: Uuid,
        day: i64,
        credits: i64,
        debits: i64,
    }
    let sql = "SELECT account_id, day, sum(credits_billions * 1000000000 + credits_rest)::bigint AS credits, \
               sum(debits_billions * 1000000000 + debits_rest)::bigint AS debits FROM daily_balances GROUP BY account_id, day ORDER BY 1, 2";
    let days: Vec<Day> = all(reports.reader(), sql, []).await?;
    let day = |((account_id, day), (credits, debits)): (&(Uuid, i64), &(i64, i64))| Day {
        account_id: *account_id,
        day: *day,
        credits: *credits,
        debits: *debits,
    };
    let wanted: Vec<Day> = expected.days.iter().map(day).collect();
    let differ = days.iter().zip(&wanted).find(|(day, wanted)| day != wanted);
    ensure!(days.len() == wanted.len() && differ.is_none(), "{} days and not {}: {differ:?}", days.len(), wanted.len());
    for (name, wanted) in ["accepted", "completed", "rejected", "released"].iter().zip(expected.counts) {
        let sql = format!(
            "SELECT coalesce(sum({name}), 0)::bigint AS count FROM operation_days WHERE owner_id = '00000000-0000-0000-0000-000000000000' AND kind = 3"
        );
        let found = count(reports, &sql).await?;
        ensure!(found == wanted, "{name}: {found}, and not {wanted}");
    }
    let dead: Vec<Line> = all(reports.reader(), "SELECT DISTINCT aggregate_id::text AS line FROM dead_events", []).await?;
    let dead: BTreeSet<Uuid> = dead.iter().filter_map(|line| Uuid::parse_str(&line.line).ok()).collect();
    ensure!(dead == expected.poisoned, "what is no event is parked, and nothing else: {dead:?}, and not {:?}", expected.poisoned);
    Ok(())
}

fn replay(url: &str) -> Result<String> {
    let (output, text) = tokio::task::block_in_place(|| lastro(&["replay", "reports", "--database-url", url]))?;
    ensure!(output.status.success(), "{text}");
    Ok(String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned())
}

async fn equal_those_from_scratch() -> Result<()> {
    let (wanted, seed) = (setting("LASTRO_PROJECTION_EVENTS", 20_000), setting("LASTRO_SEED", std::process::id().into()));
    eprintln!("{wanted} events, LASTRO_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let Written { accounts, operations, expected, events } = generate(&mut random, usize::try_from(wanted)?);
    let (orders, expected_orders) = orders::generate(&mut random, usize::try_from(wanted)? / ORDERS_ONE_IN);
    let events_of_orders: usize = orders.iter().map(|stream| stream.events.len()).sum();
    let rig = Arc::new(Stack::start(stack::Options::default())?);
    for name in rig.names().into_iter().filter(|name| ["gateway", "inventory"].iter().any(|other| name.starts_with(other))) {
        rig.kill(&name)?;
    }
    let url = rig.postgres.url();
    let publisher_of_orders = Database::open_postgres(&url.parse()?, "lastro_orders", 4).await?;
    let publisher = Database::open_postgres(&url.parse()?, "lastro_transactions", WRITERS as u32 + 2).await?;
    let reports = Database::open_postgres(&url.parse()?, "lastro_reports", 2).await?;
    let (begun, stop, stop_early) = (Instant::now(), Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let harms = [
        tokio::spawn(harm_redis(rig.clone(), stop.clone(), stop_early.clone(), seed ^ 1)),
        tokio::spawn(harm_replicas(rig.clone(), stop_early.clone(), seed ^ 2)),
    ];
    // One after the other: an account may be opened after something was posted to it is seen.
    let mut shares: Vec<Vec<Stream>> = (0..WRITERS).map(|_| Vec::new()).collect();
    for (number, stream) in operations.into_iter().enumerate() {
        shares[number % WRITERS].push(stream);
    }
    shares.push(accounts);
    let mut writers: Vec<_> = (10..).zip(shares).map(|(number, share)| tokio::spawn(write(publisher.clone(), share, seed ^ number))).collect();
    writers.push(tokio::spawn(write(publisher_of_orders, orders, seed ^ 3)));
    let mut replays = Vec::new();
    for _ in 0..2 {
        sleep(Duration::from_secs(4)).await;
        replays.push(replay(&url)?);
    }
    // A replica that starts, or that Redis was away from, reads everything that it misses. From now on nothing starts: what is lost has to be noticed.
    stop_early.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await??;
    }
    // A while longer, so that all of it is seen by those that are harmed.
    sleep(Duration::from_secs(2)).await;
    stop.store(true, Ordering::Relaxed);
    let mut harmed = Vec::new();
    for harm in harms {
        harmed.push(harm.await??);
    }
    eprintln!("{events} events in {:.1?}: Redis harmed {} times, replicas {} times; meanwhile: {replays:?}", begun.elapsed(), harmed[0], harmed[1]);
    until_all_is_there(&reports, &expected).await?;
    while !orders::are_all_there(&reports, i64::try_from(events_of_orders)?).await? {
        ensure!(begun.elapsed() < GIVEN_UP_AFTER, "orders are missing");
        sleep(Duration::from_millis(100)).await;
    }
    compare(&reports, &expected).await?;
    orders::compare(&reports, &expected_orders).await?;
    let live = rows(&reports).await?;
    for name in ["reports-1", "reports-2"] {
        rig.kill(name)?;
    }
    let said = replay(&url)?;
    let anew = rows(&reports).await?;
    for (table, rows) in &live {
        let differ = rows.iter().zip(&anew[table]).find(|(row, anew)| row != anew);
        ensure!(rows.len() == anew[table].len() && differ.is_none(), "{table}: {} rows, {} anew: {differ:?}", rows.len(), anew[table].len());
    }
    let rows: usize = live.values().map(Vec::len).sum();
    eprintln!("{rows} rows of {} tables are as they are from scratch ({said}); {:.1?} in all", live.len(), begun.elapsed());
    Ok(())
}

/// Both replicas are away while the ledger grows, and Redis is empty when they join.
async fn join_a_large_ledger() -> Result<()> {
    let (wanted, seed) = (setting("LASTRO_LEDGER_OPERATIONS", 1_000_000), setting("LASTRO_SEED", std::process::id().into()));
    eprintln!("{wanted} operations, LASTRO_SEED={seed}");
    let rig = Stack::start(stack::Options::default())?;
    for name in rig.names().into_iter().filter(|name| !["customers-1", "transactions-1", "transactions-2"].contains(&name.as_str())) {
        rig.kill(&name)?;
    }
    let url = rig.postgres.url();
    let publisher = Database::open_postgres(&url.parse()?, "lastro_transactions", WRITERS as u32).await?;
    let reports = Database::open_postgres(&url.parse()?, "lastro_reports", 2).await?;
    let mut random = StdRng::seed_from_u64(seed);
    // A transaction has two events, and a fifth of them one more.
    let Written { accounts, operations, expected, events } = generate(&mut random, usize::try_from(wanted)? * 43 / 20);
    let (begun, count) = (Instant::now(), operations.len());
    let mut streams = accounts.into_iter().chain(operations).peekable();
    while streams.peek().is_some() {
        let tx = publisher.begin().await?;
        let mut by_store: [(EventStore, Vec<Event>); 2] = [(ACCOUNT_EVENTS, Vec::new()), (EVENTS, Vec::new())];
        for stream in streams.by_ref().take(1_000) {
            by_store[usize::from(stream.store == EVENTS)].1.extend(stream.events);
        }
        for (store, events) in by_store {
            store.insert(&tx, &events).await?;
        }
        tx.commit().await?;
    }
    let written = begun.elapsed();
    let url = rig.redis.lock().expect("not poisoned").url();
    let mut redis = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    redis::cmd("FLUSHALL").query_async::<()>(&mut redis).await?;
    let begun = Instant::now();
    for name in ["reports-1", "reports-2"] {
        rig.spawn(name)?;
    }
    until_all_is_there(&reports, &expected).await?;
    let took = begun.elapsed();
    compare(&reports, &expected).await?;
    let rate = events as u128 * 1_000 / took.as_millis().max(1);
    eprintln!(
        "{count} operations, {events} events, written in {written:.1?}; reports with an empty Redis has all of it after {took:.1?}: {rate} events/s"
    );
    Ok(())
}

async fn until_all_is_there(reports: &Database, expected: &Expected) -> Result<()> {
    let since = Instant::now();
    let wanted = [("entries", expected.entries), ("accounts WHERE version > 0", ACCOUNTS as i64), ("dead_events WHERE version = 3", POISONED as i64)];
    for (table, wanted) in wanted {
        let sql = format!("SELECT count(*) AS count FROM {table}");
        loop {
            let found = count(reports, &sql).await.context("reports")?;
            if found >= wanted {
                break;
            }
            ensure!(since.elapsed() < GIVEN_UP_AFTER, "{table}: {found} of {wanted} rows are there");
            sleep(Duration::from_millis(100)).await;
        }
    }
    let open = "SELECT count(*) AS count FROM inbox_parked";
    while count(reports, open).await? > 0 {
        ensure!(since.elapsed() < GIVEN_UP_AFTER, "{} events are parked", count(reports, open).await?);
        sleep(Duration::from_millis(100)).await;
    }
    // What came last of those that have no posting.
    let accepted =
        "SELECT coalesce(sum(accepted), 0)::bigint AS count FROM operation_days WHERE owner_id = '00000000-0000-0000-0000-000000000000' AND kind = 3";
    while count(reports, accepted).await? < expected.counts[0] {
        ensure!(since.elapsed() < GIVEN_UP_AFTER, "accepted: {} of {}", count(reports, accepted).await?, expected.counts[0]);
        sleep(Duration::from_millis(100)).await;
    }
    sleep(Duration::from_secs(1)).await;
    Ok(())
}
