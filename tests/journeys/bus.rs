//! The flow of events, on both buses and both databases: one suite.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use lastro_database::{Database, Transaction};
use lastro_events::bus::Bus;
use lastro_events::bus::embedded::EmbeddedBus;
use lastro_events::bus::redis_streams::RedisBus;
use lastro_events::consumer::Failure;
use lastro_events::inbox::{self, Outcome};
use lastro_events::relay::Relay;
use lastro_events::{Consumer, Event, EventStore, Handler, NewEvent};
use lastro_tests::{Postgres, Redis};
use libtest_mimic::Trial;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{block_on, failed};

const STORE: EventStore = EventStore { table: "operation_events", topic: "test" };

#[derive(Debug, Clone, Copy)]
enum Kind {
    EmbeddedOnSqlite,
    EmbeddedOnPostgres,
    RedisOnPostgres,
}

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for kind in [Kind::EmbeddedOnSqlite, Kind::EmbeddedOnPostgres, Kind::RedisOnPostgres] {
        // One world for all, since starting it costs more than they do.
        trials.push(Trial::test(format!("bus::{kind:?}"), move || {
            failed(block_on(async {
                let mut rig = Rig::start(kind).await?;
                out_of_order_twice_and_late(&rig).await?;
                everything_arrives_once_and_in_order(&rig).await?;
                commits_that_cross(&rig).await?;
                what_keeps_failing_takes_its_aggregate_along(&rig).await?;
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
    redis: Option<Redis>,
    _postgres: Option<Postgres>,
    _folder: tempfile::TempDir,
}

/// What was applied, by aggregate.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<HashMap<Uuid, Vec<i64>>>>);

impl Seen {
    fn of(&self, aggregate: Uuid) -> Vec<i64> {
        self.0.lock().expect("not poisoned").get(&aggregate).cloned().unwrap_or_default()
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
    async fn apply(&self, _: &Transaction, event: &Event) -> Result<(), Failure> {
        if event.payload == b"poison" {
            return Err(Failure::Event("poison".to_owned()));
        }
        Ok(())
    }

    fn applied(&self, event: &Event) {
        self.0.lock().expect("not poisoned").entry(event.aggregate_id).or_default().push(event.version);
    }
}

impl Rig {
    async fn start(kind: Kind) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (database, postgres) = if let Kind::EmbeddedOnSqlite = kind {
            (Database::open_sqlite(&folder.path().join("test.db")).await?, None)
        } else {
            let postgres = Postgres::start()?;
            (Database::open_postgres(&postgres.url().parse()?, "bus", 16).await?, Some(postgres))
        };
        lastro_transactions::SERVICE.migrator.run(&database).await?;
        let (stop, seen) = (CancellationToken::new(), Seen::default());
        let (bus, redis) = if let Kind::RedisOnPostgres = kind {
            let redis = Redis::start()?;
            let bus = RedisBus::new(&redis.url())?;
            tokio::spawn(Relay { store: STORE, database: database.clone(), bus: bus.clone() }.run(stop.clone()));
            (Bus::Redis(bus), Some(redis))
        } else {
            (Bus::Embedded(EmbeddedBus::new(HashMap::from([(STORE.topic, database.clone())]))), None)
        };
        let consumer = Consumer { topic: STORE.topic, database: database.clone(), handler: seen.clone() };
        tokio::spawn(consumer.run(bus.subscribe(STORE, "suite", &database), stop.clone()));
        Ok(Self { database, bus, seen, stop, redis, _postgres: postgres, _folder: folder })
    }

    async fn publish(&self, aggregate: Uuid, payload: &[u8]) -> Result<Event> {
        let tx = self.database.begin().await?;
        let event = STORE.append(&tx, aggregate, new_event(payload)).await?;
        tx.commit().await?;
        self.bus.wake();
        Ok(event)
    }
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
    let apply = async |version: usize| inbox::apply(&rig.database, topic, &events[version - 1], &seen).await;
    assert_eq!(apply(3).await?, Outcome::Parked);
    assert_eq!(apply(2).await?, Outcome::Parked);
    assert_eq!(apply(3).await?, Outcome::Parked);
    assert_eq!(apply(1).await?, Outcome::Applied { parked: 2 });
    assert_eq!(apply(2).await?, Outcome::Duplicate);
    assert_eq!(apply(5).await?, Outcome::Parked);
    assert_eq!(apply(4).await?, Outcome::Applied { parked: 1 });
    assert_eq!(apply(1).await?, Outcome::Duplicate);
    assert_eq!(seen.of(aggregate), [1, 2, 3, 4, 5]);
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
        rig.bus.wake();
        rig.seen.wait_for(slow, 1..=1).await?;
        rig.seen.wait_for(quick, 1..=1).await?;
    }
    Ok(())
}

async fn what_keeps_failing_takes_its_aggregate_along(rig: &Rig) -> Result<()> {
    let (bad, good) = (Uuid::now_v7(), Uuid::now_v7());
    rig.publish(bad, b"").await?;
    rig.publish(bad, b"poison").await?;
    rig.publish(bad, b"").await?;
    rig.publish(good, b"").await?;
    rig.seen.wait_for(good, 1..=1).await?;
    let since = Instant::now();
    loop {
        let rows: Vec<Version> =
            lastro_database::all(rig.database.reader(), "SELECT version FROM dead_events WHERE aggregate_id = $1 ORDER BY version", [bad.into()])
                .await?;
        if rows.iter().map(|row| row.version).eq([2, 3]) {
            break;
        }
        anyhow::ensure!(since.elapsed() < Duration::from_secs(20), "the failing event and the one after it are dead letters");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(rig.seen.of(bad), [1]);
    Ok(())
}

#[derive(sea_orm::FromQueryResult)]
struct Version {
    version: i64,
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
