//! The flow of events, on both buses and both databases: one suite.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use lastro_database::{Database, Transaction};
use lastro_events::bus::Bus;
use lastro_events::bus::embedded::EmbeddedBus;
use lastro_events::bus::redis_streams::RedisBus;
use lastro_events::consumer::Failure;
use lastro_events::inbox::{Inbox, Outcome};
use lastro_events::relay::Relay;
use lastro_events::source::Near;
use lastro_events::{Consumer, Event, EventStore, Handler, NewEvent, Topic, dead_letters};
use lastro_tests::{Postgres, Redis};
use libtest_mimic::Trial;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{block_on, failed};

const STORE: EventStore = EventStore { table: "operation_events", topic: "test", message: "test" };
const GROUP: &str = "suite";
/// The least that an operator may say.
const TOPIC_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    EmbeddedOnSqlite,
    EmbeddedOnPostgres,
    RedisOnPostgres,
    RedisOnSqlite,
}

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for kind in [Kind::EmbeddedOnSqlite, Kind::EmbeddedOnPostgres, Kind::RedisOnPostgres, Kind::RedisOnSqlite] {
        // One world for all, since starting it costs more than they do.
        trials.push(Trial::test(format!("bus::{kind:?}"), move || {
            failed(block_on(async {
                let mut rig = Rig::start(kind).await?;
                out_of_order_twice_and_late(&rig).await?;
                everything_arrives_once_and_in_order(&rig).await?;
                commits_that_cross(&rig).await?;
                what_keeps_failing_takes_its_aggregate_along_and_nobody_else(&rig).await?;
                what_is_foreign_is_put_aside(&rig).await?;
                a_group_that_is_set_forward(&rig).await?;
                a_stream_that_is_deleted(&rig).await?;
                entries_that_are_deleted(&rig).await?;
                a_reader_that_was_away(&rig).await?;
                redis_is_bounded_by_bytes(&rig).await?;
                the_lag_tells(&mut rig).await?;
                a_bus_that_loses_everything(&mut rig).await
            }))
        }));
    }
    trials
}

/// One publisher and one consumer on one database.
struct Rig {
    database: Database,
    bus: Bus,
    seen: Seen,
    stop: CancellationToken,
    /// Stops the consumer alone.
    stop_consumer: Mutex<CancellationToken>,
    redis: Option<Redis>,
    relay: Option<Arc<Relay>>,
    postgres: Option<Postgres>,
    _folder: tempfile::TempDir,
}

/// What was applied, by aggregate: versions and ids.
#[derive(Clone, Default)]
struct Seen {
    seen: Arc<Mutex<HashMap<Uuid, Vec<(i64, Uuid)>>>>,
    /// Whether poison does no harm any more.
    antidote: Arc<AtomicBool>,
}

impl Seen {
    fn of(&self, aggregate: Uuid) -> Vec<i64> {
        let seen = self.seen.lock().expect("not poisoned");
        seen.get(&aggregate).map(|seen| seen.iter().map(|(version, _)| *version).collect()).unwrap_or_default()
    }

    /// The id of the event that was applied last.
    fn last_of(&self, aggregate: Uuid) -> Option<Uuid> {
        self.seen.lock().expect("not poisoned").get(&aggregate)?.last().map(|(_, id)| *id)
    }

    async fn wait_for(&self, aggregate: Uuid, versions: std::ops::RangeInclusive<i64>) -> Result<()> {
        let (since, expected) = (Instant::now(), versions.collect::<Vec<_>>());
        while self.of(aggregate) != expected {
            anyhow::ensure!(since.elapsed() < Duration::from_secs(20), "{:?} is not {expected:?}", self.of(aggregate));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Handler for Seen {
    async fn apply(&self, _: &Transaction, events: &[Event]) -> Result<(), Failure> {
        let is_poison = |event: &&Event| event.payload == b"poison" && !self.antidote.load(Ordering::Relaxed);
        events.iter().find(is_poison).map_or(Ok(()), |_| Err(Failure::Event("poison".to_owned())))
    }

    fn applied(&self, events: &[Event]) {
        let mut seen = self.seen.lock().expect("not poisoned");
        events.iter().for_each(|event| seen.entry(event.aggregate_id).or_default().push((event.version, event.id)));
    }
}

impl Rig {
    async fn start(kind: Kind) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (database, postgres) = if matches!(kind, Kind::EmbeddedOnSqlite | Kind::RedisOnSqlite) {
            (Database::open_sqlite(&folder.path().join("test.db")).await?, None)
        } else {
            let postgres = Postgres::start()?;
            (Database::open_postgres(&postgres.url().parse()?, "bus", 16).await?, Some(postgres))
        };
        lastro_transactions::SERVICE.migrator.run(&database).await?;
        let (stop, seen) = (CancellationToken::new(), Seen::default());
        let (mut redis, mut relay) = (None, None);
        let bus = if matches!(kind, Kind::RedisOnPostgres | Kind::RedisOnSqlite) {
            let server = redis.insert(Redis::start()?);
            let bus = RedisBus::new(&server.url(), TOPIC_BYTES_MAX)?;
            let relay = relay.insert(Arc::new(Relay::new(STORE, &database, &bus)));
            let (publishing, stopped) = (relay.clone(), stop.clone());
            tokio::spawn(async move { publishing.run(stopped).await });
            Bus::Redis(bus)
        } else {
            Bus::Embedded(EmbeddedBus::default())
        };
        let rig = Self { database, bus, seen, stop, stop_consumer: Mutex::default(), redis, relay, postgres, _folder: folder };
        rig.start_consumer();
        Ok(rig)
    }

    fn start_consumer(&self) {
        let topic = Topic { name: STORE.topic, reader: GROUP, source: Near::source(STORE, &self.database), bus: self.bus.clone() };
        let consumer = Consumer::new(topic, &self.database, self.seen.clone());
        let stop = self.stop.child_token();
        *self.stop_consumer.lock().expect("not poisoned") = stop.clone();
        tokio::spawn(async move { consumer.run(stop).await });
    }

    async fn stop_consumer(&self) {
        self.stop_consumer.lock().expect("not poisoned").cancel();
        tokio::time::sleep(Duration::from_millis(700)).await;
    }

    async fn publish(&self, aggregate: Uuid, payload: &[u8]) -> Result<Event> {
        let tx = self.database.begin().await?;
        let event = STORE.append(&tx, aggregate, new_event(payload)).await?;
        tx.commit().await?;
        self.bus.wake(STORE.topic);
        Ok(event)
    }

    /// A connection to Redis, where that is the bus.
    async fn redis(&self) -> Result<Option<redis::aio::MultiplexedConnection>> {
        let Some(server) = &self.redis else { return Ok(None) };
        Ok(Some(redis::Client::open(server.url())?.get_multiplexed_async_connection().await?))
    }

    async fn count(&self, sql: &str) -> Result<i64> {
        let row: Option<Count> = lastro_database::one(self.database.reader(), sql, []).await?;
        Ok(row.map_or(0, |row| row.count))
    }

    async fn wait_for_count(&self, sql: &str, expected: i64) -> Result<()> {
        let since = Instant::now();
        while self.count(sql).await? != expected {
            anyhow::ensure!(since.elapsed() < Duration::from_secs(20), "{sql}: {} and not {expected}", self.count(sql).await?);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

#[derive(sea_orm::FromQueryResult)]
struct Count {
    count: i64,
}

/// The key of a stream.
fn stream_key(shard: u128) -> String {
    format!("lastro:{{{}}}:stream:{shard}", STORE.topic)
}

/// The key of an aggregate's stream.
fn stream_of(aggregate: Uuid) -> String {
    stream_key(aggregate.as_u128() % 4)
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn new_event(payload: &[u8]) -> NewEvent {
    NewEvent {
        id: Uuid::now_v7(),
        kind: "HAPPENED",
        payload: if payload.is_empty() { Uuid::new_v4().as_bytes().to_vec() } else { payload.to_vec() },
        correlation_id: "test".to_owned(),
        causation_id: None,
        recorded_us: lastro_mesh::clock::now_us(),
    }
}

async fn out_of_order_twice_and_late(rig: &Rig) -> Result<()> {
    // Another topic, so that the bus does not deliver them as well.
    let (topic, aggregate, seen) = ("by hand", Uuid::now_v7(), Seen::default());
    let mut previous = lastro_events::event::GENESIS;
    let events: Vec<Event> = (1..=5)
        .map(|version| {
            let event = new_event(b"").at(aggregate, version, &previous);
            previous = event.hash;
            event
        })
        .collect();
    let inbox = Inbox { database: &rig.database, topic, group: GROUP, handler: &seen };
    let apply = async |versions: &[usize]| {
        let delivered: Vec<Event> = versions.iter().map(|version| events[version - 1].clone()).collect();
        inbox.apply(&delivered, None).await.map_err(|failed| anyhow::anyhow!("{failed:?}"))
    };
    let outcome = |applied, duplicates, parked| Outcome { applied, duplicates, parked, dead: 0 };
    assert_eq!(apply(&[3]).await?, outcome(0, 0, 1));
    assert_eq!(apply(&[2, 3]).await?, outcome(0, 1, 1), "the third is parked already");
    assert_eq!(apply(&[1]).await?, outcome(3, 0, 0));
    assert_eq!(apply(&[2, 2, 1]).await?, outcome(0, 3, 0));
    assert_eq!(apply(&[5]).await?, outcome(0, 0, 1));
    assert_eq!(apply(&[4, 5]).await?, outcome(2, 1, 0));
    assert_eq!(seen.of(aggregate), [1, 2, 3, 4, 5]);
    assert_eq!(rig.count("SELECT count(*) AS count FROM inbox_parked WHERE topic = 'by hand'").await?, 0);
    Ok(())
}

async fn everything_arrives_once_and_in_order(rig: &Rig) -> Result<()> {
    let aggregates: Vec<Uuid> = (0..7).map(|_| Uuid::now_v7()).collect();
    for _ in 0..30 {
        for aggregate in &aggregates {
            rig.publish(*aggregate, b"").await?;
        }
    }
    for aggregate in aggregates {
        rig.seen.wait_for(aggregate, 1..=30).await?;
    }
    Ok(())
}

/// A transaction that began first and commits last: whoever reads on from an id would never see its event.
async fn commits_that_cross(rig: &Rig) -> Result<()> {
    if !rig.database.is_postgres() {
        return Ok(()); // One writer: commits cannot cross.
    }
    for _ in 0..5 {
        let (slow, quick) = (Uuid::now_v7(), Uuid::now_v7());
        let late = rig.database.begin().await?;
        STORE.append(&late, slow, new_event(b"")).await?;
        rig.publish(quick, b"").await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        late.commit().await?;
        rig.bus.wake(STORE.topic);
        rig.seen.wait_for(slow, 1..=1).await?;
        rig.seen.wait_for(quick, 1..=1).await?;
    }
    Ok(())
}

/// In one batch with others before, behind and between, and with a parked event that fails when the one before it comes.
async fn what_keeps_failing_takes_its_aggregate_along_and_nobody_else(rig: &Rig) -> Result<()> {
    let (bad, good) = (Uuid::now_v7(), [Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7()]);
    rig.stop_consumer().await;
    for (aggregate, payload) in [(good[0], b"".as_slice()), (bad, b""), (good[1], b""), (bad, b"poison"), (good[2], b""), (bad, b""), (good[0], b"")]
    {
        rig.publish(aggregate, payload).await?;
    }
    rig.start_consumer();
    rig.seen.wait_for(good[0], 1..=2).await?;
    rig.seen.wait_for(good[1], 1..=1).await?;
    rig.seen.wait_for(good[2], 1..=1).await?;
    rig.wait_for_count("SELECT count(*) AS count FROM dead_events", 2).await?;
    rig.publish(bad, b"").await?;
    rig.wait_for_count("SELECT count(*) AS count FROM dead_events", 3).await?;
    let dead = dead_letters::list(&rig.database, None, 10).await?;
    assert_eq!(dead.iter().map(|one| (one.aggregate_id, one.version)).collect::<Vec<_>>(), [(bad, 2), (bad, 3), (bad, 4)]);
    assert!(dead[0].error == "poison" && dead[0].dead_us > 0, "{dead:?}");
    assert_eq!(rig.seen.of(bad), [1]);
    // An operator has it tried again, in vain and then not.
    assert_eq!(dead_letters::retry(&rig.database, STORE.topic, bad).await?, 3);
    rig.wait_for_count("SELECT count(*) AS count FROM dead_events", 0).await?;
    rig.wait_for_count("SELECT count(*) AS count FROM dead_events", 3).await?;
    rig.seen.antidote.store(true, Ordering::Relaxed);
    assert_eq!(dead_letters::retry(&rig.database, STORE.topic, bad).await?, 3);
    rig.seen.wait_for(bad, 1..=4).await?;
    rig.wait_for_count("SELECT count(*) AS count FROM inbox_parked", 0).await
}

/// Entries that are no events, events that the relay did not add, and events of another relay whose publisher does not know them.
async fn what_is_foreign_is_put_aside(rig: &Rig) -> Result<()> {
    let Some(mut redis) = rig.redis().await? else { return Ok(()) };
    let aggregate = Uuid::now_v7();
    rig.publish(aggregate, b"").await?;
    rig.seen.wait_for(aggregate, 1..=1).await?;
    redis::cmd("XADD").arg(stream_of(aggregate)).arg("*").arg("not").arg("ours").query_async::<()>(&mut redis).await?;
    for _ in 0..3 {
        rig.publish(aggregate, b"").await?;
    }
    rig.seen.wait_for(aggregate, 1..=4).await?;
    // The next event of a known aggregate, by somebody who is not the relay: it must not take the place of the true one.
    let forged = new_event(b"").at(aggregate, 5, &lastro_events::event::GENESIS);
    add_to_redis(&mut redis, "*", &forged).await?;
    let fifth = rig.publish(aggregate, b"").await?;
    rig.seen.wait_for(aggregate, 1..=5).await?;
    assert_eq!(rig.seen.last_of(aggregate), Some(fifth.id));
    // Two installations share a Redis: the other one's relay counts as ours does. Of an aggregate that nobody here knows, ahead of its stream.
    let stranger = new_event(b"").at(Uuid::now_v7(), 7, &lastro_events::event::GENESIS);
    let marker_key = format!("lastro:{{{}}}:marker", STORE.topic);
    let marker: String = redis::cmd("GET").arg(&marker_key).query_async(&mut redis).await?;
    let mut parts: Vec<String> = marker.split(' ').map(str::to_owned).collect();
    let shard = (stranger.aggregate_id.as_u128() % 4) as usize;
    let added = parts[2 + shard].parse::<u64>()? + 1;
    parts[2 + shard] = added.to_string();
    redis::cmd("SET").arg(&marker_key).arg(parts.join(" ")).query_async::<()>(&mut redis).await?;
    add_to_redis(&mut redis, &format!("{}-{added}", parts[1]), &stranger).await?;
    rig.wait_for_count("SELECT count(*) AS count FROM dead_events", 1).await?;
    rig.wait_for_count("SELECT count(*) AS count FROM inbox_parked", 0).await?;
    rig.publish(aggregate, b"").await?;
    rig.seen.wait_for(aggregate, 1..=6).await
}

/// Adds an event to its stream as the relay would.
async fn add_to_redis(redis: &mut redis::aio::MultiplexedConnection, id: &str, event: &Event) -> Result<()> {
    let mut command = redis::cmd("XADD");
    command.arg(stream_of(event.aggregate_id)).arg(id).arg("id").arg(event.id.as_bytes()).arg("aggregate").arg(event.aggregate_id.as_bytes());
    command.arg("version").arg(event.version).arg("kind").arg(&event.kind).arg("payload").arg(&event.payload).arg("correlation").arg("x");
    command.arg("causation").arg(Uuid::nil().as_bytes()).arg("recorded").arg(1).arg("digest").arg(&event.digest).arg("hash").arg(&event.hash);
    Ok(command.query_async::<()>(redis).await?)
}

/// Set forward by somebody while entries wait: the group was given nothing by that.
async fn a_group_that_is_set_forward(rig: &Rig) -> Result<()> {
    let Some(mut redis) = rig.redis().await? else { return Ok(()) };
    rig.stop_consumer().await;
    let aggregates: Vec<Uuid> = (0..8).map(|_| Uuid::now_v7()).collect();
    for aggregate in &aggregates {
        rig.publish(*aggregate, b"").await?;
    }
    wait_for_lag(rig, Duration::from_secs(10), |lag| lag == 0.0).await?;
    for shard in 0..4 {
        redis::cmd("XGROUP").arg("SETID").arg(stream_key(shard)).arg(GROUP).arg("$").query_async::<()>(&mut redis).await?;
    }
    rig.start_consumer();
    for aggregate in &aggregates {
        rig.seen.wait_for(*aggregate, 1..=1).await?;
    }
    Ok(())
}

/// One stream of four is deleted while its reader runs and while it does not.
async fn a_stream_that_is_deleted(rig: &Rig) -> Result<()> {
    let Some(mut redis) = rig.redis().await? else { return Ok(()) };
    let aggregates: Vec<Uuid> = (0..8).map(|_| Uuid::now_v7()).collect();
    for is_running in [true, false] {
        if !is_running {
            rig.stop_consumer().await;
        }
        for aggregate in aggregates.iter().chain(&aggregates) {
            rig.publish(*aggregate, b"").await?;
        }
        redis::cmd("DEL").arg(stream_of(aggregates[0])).query_async::<()>(&mut redis).await?;
        for aggregate in &aggregates {
            rig.publish(*aggregate, b"").await?;
        }
        if !is_running {
            rig.start_consumer();
        }
        for aggregate in &aggregates {
            rig.seen.wait_for(*aggregate, 1..=if is_running { 3 } else { 6 }).await?;
        }
    }
    Ok(())
}

/// The last event of an aggregate, so that no gap tells of it, and one with a later one.
async fn entries_that_are_deleted(rig: &Rig) -> Result<()> {
    let Some(mut redis) = rig.redis().await? else { return Ok(()) };
    rig.stop_consumer().await;
    let aggregates = [Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7()];
    for aggregate in aggregates.iter().chain(&aggregates[..2]).chain(&aggregates[..1]) {
        rig.publish(*aggregate, b"").await?;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    for shard in 0..4 {
        let stream = stream_key(shard);
        let last: Vec<(String, redis::Value)> =
            redis::cmd("XREVRANGE").arg(&stream).arg("+").arg("-").arg("COUNT").arg(3).query_async(&mut redis).await?;
        // The last one and the third last one: at the end, and in the middle.
        for (id, _) in last.into_iter().step_by(2) {
            redis::cmd("XDEL").arg(&stream).arg(id).query_async::<()>(&mut redis).await?;
        }
    }
    rig.start_consumer();
    for (aggregate, events) in aggregates.into_iter().zip([3, 2, 1]) {
        rig.seen.wait_for(aggregate, 1..=events).await?;
    }
    // And while it runs.
    let aggregate = Uuid::now_v7();
    rig.publish(aggregate, b"").await?;
    rig.seen.wait_for(aggregate, 1..=1).await
}

/// Streams are trimmed below its place meanwhile, or what it had taken and not acknowledged is.
async fn a_reader_that_was_away(rig: &Rig) -> Result<()> {
    rig.stop_consumer().await;
    let aggregates: Vec<Uuid> = (0..20).map(|_| Uuid::now_v7()).collect();
    for aggregate in aggregates.iter().chain(&aggregates) {
        rig.publish(*aggregate, b"").await?;
    }
    if let Some(mut redis) = rig.redis().await? {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for shard in 0..4 {
            let stream = stream_key(shard);
            let mut read = redis::cmd("XREADGROUP");
            read.arg("GROUP").arg(GROUP).arg("somebody that died").arg("COUNT").arg(3).arg("STREAMS").arg(&stream).arg(">");
            // Where the streams have begun anew meanwhile, there is no group.
            let _ = read.query_async::<redis::Value>(&mut redis).await;
            redis::cmd("XTRIM").arg(&stream).arg("MAXLEN").arg(1).query_async::<()>(&mut redis).await?;
        }
    }
    rig.start_consumer();
    for aggregate in aggregates {
        rig.seen.wait_for(aggregate, 1..=2).await?;
    }
    Ok(())
}

/// By large events, of which few entries take much.
async fn redis_is_bounded_by_bytes(rig: &Rig) -> Result<()> {
    let Some(mut redis) = rig.redis().await? else { return Ok(()) };
    rig.stop_consumer().await;
    let aggregates: Vec<Uuid> = (0..50).map(|_| Uuid::now_v7()).collect();
    for round in 0..20_u8 {
        let tx = rig.database.begin().await?;
        let large = |aggregate: &Uuid| (*aggregate, new_event(&[aggregate.as_bytes().as_slice(), &vec![round; 20_000]].concat()));
        STORE.append_all(&tx, aggregates.iter().map(large).collect()).await?;
        tx.commit().await?;
        rig.bus.wake(STORE.topic);
    }
    // 20 MB were published.
    wait_for_lag(rig, Duration::from_secs(20), |lag| lag == 0.0).await?;
    let mut bytes = 0;
    for shard in 0..4 {
        let stream = stream_key(shard);
        bytes +=
            redis::cmd("MEMORY").arg("USAGE").arg(stream).arg("SAMPLES").arg(0).query_async::<Option<u64>>(&mut redis).await?.unwrap_or_default();
    }
    anyhow::ensure!(bytes < 2 * TOPIC_BYTES_MAX, "redis keeps {bytes} bytes of the topic");
    rig.start_consumer();
    for aggregate in aggregates {
        rig.seen.wait_for(aggregate, 1..=20).await?;
    }
    Ok(())
}

/// Of the relay, in seconds, as its metric shows it.
async fn lag(rig: &Rig) -> Result<f64> {
    let Some(relay) = &rig.relay else { return Ok(0.0) };
    Ok(relay.lag().await?.as_secs_f64())
}

async fn wait_for_lag(rig: &Rig, within: Duration, is_so: impl Fn(f64) -> bool) -> Result<()> {
    let since = Instant::now();
    while !is_so(lag(rig).await?) {
        anyhow::ensure!(since.elapsed() < within, "the lag is {}", lag(rig).await?);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// A frozen Redis, an old open transaction and an emptied Redis each show within 2 s.
async fn the_lag_tells(rig: &mut Rig) -> Result<()> {
    if rig.relay.is_none() {
        return Ok(());
    }
    let (two_seconds, aggregate) = (Duration::from_secs(2), Uuid::now_v7());
    wait_for_lag(rig, two_seconds, |lag| lag == 0.0).await?;
    let redis = rig.redis.as_ref().expect("a relay has one");
    redis.signal("STOP")?;
    rig.publish(aggregate, b"").await?;
    wait_for_lag(rig, two_seconds, |lag| lag > 0.5).await?;
    redis.signal("CONT")?;
    wait_for_lag(rig, Duration::from_secs(10), |lag| lag == 0.0).await?;
    if rig.database.is_postgres() {
        let url = rig.postgres.as_ref().expect("PostgreSQL").url();
        let other = Database::open_postgres(&url.parse()?, "bus", 1).await?;
        let old = other.begin().await?;
        // It takes a transaction id, and does nothing more.
        lastro_database::execute(&old, "SET LOCAL idle_in_transaction_session_timeout = 0", []).await?;
        lastro_database::execute(&old, "SELECT pg_current_xact_id()", []).await?;
        rig.publish(aggregate, b"").await?;
        wait_for_lag(rig, two_seconds, |lag| lag > 0.5).await?;
        old.rollback().await?;
        wait_for_lag(rig, Duration::from_secs(10), |lag| lag == 0.0).await?;
    }
    rig.seen.wait_for(aggregate, if rig.database.is_postgres() { 1..=2 } else { 1..=1 }).await?;
    let mut connection = rig.redis().await?.expect("Redis");
    redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await?;
    wait_for_lag(rig, two_seconds, |lag| lag > 0.0).await?;
    wait_for_lag(rig, Duration::from_secs(10), |lag| lag == 0.0).await
}

async fn a_bus_that_loses_everything(rig: &mut Rig) -> Result<()> {
    let aggregate = Uuid::now_v7();
    rig.publish(aggregate, b"").await?;
    rig.seen.wait_for(aggregate, 1..=1).await?;
    let Some(mut redis) = rig.redis.take() else {
        return Ok(()); // The embedded bus is the event tables: what it has cannot be lost apart from them.
    };
    redis.stop();
    rig.publish(aggregate, b"").await?;
    rig.seen.wait_for(aggregate, 1..=2).await?;
    redis.lose_everything()?;
    rig.publish(aggregate, b"").await?;
    redis.resume()?;
    rig.seen.wait_for(aggregate, 1..=3).await?;
    rig.publish(aggregate, b"").await?;
    rig.seen.wait_for(aggregate, 1..=4).await?;
    // Emptied while it runs, with something published and not yet consumed or not.
    let mut connection = redis::Client::open(redis.url())?.get_multiplexed_async_connection().await?;
    rig.publish(aggregate, b"").await?;
    redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await?;
    rig.publish(aggregate, b"").await?;
    rig.seen.wait_for(aggregate, 1..=6).await
}
