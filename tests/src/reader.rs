//! A reader of the events of transactions, as a read side would be: one row an operation, in a database of its own.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use lastro_database::rows::{Type, insert_rows};
use lastro_database::{Database, Error, Transaction, all};
use lastro_events::bus::Bus;
use lastro_events::bus::embedded::EmbeddedBus;
use lastro_events::consumer::Failure;
use lastro_events::inbox::Progress;
use lastro_events::{Consumer, Event, EventStore, Handler, NewEvent, Source, Topic};
use sea_orm_migration::prelude::*;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// What it reads.
pub const STORE: EventStore =
    EventStore { table: "operation_events", topic: "transactions", message: "lastro.transactions.events.v1.OperationEvent" };
const GROUP: &str = "reader";

/// What it knows of an operation.
#[derive(Debug, Clone, PartialEq, Eq, sea_orm::FromQueryResult)]
pub struct Row {
    /// The operation.
    pub id: Uuid,
    /// Of its last event.
    pub version: i64,
    /// How many events were applied: as many as the version says, unless one was applied twice or left out.
    pub events: i64,
    /// Of its last event.
    pub hash: Vec<u8>,
}

/// Writes one row an operation, which is also where its version is kept.
pub struct Reader;

impl Handler for Reader {
    async fn apply(&self, tx: &Transaction, events: &[Event]) -> Result<(), Failure> {
        let mut rows: Vec<(Uuid, i64, i64, &Event)> = Vec::new();
        for event in events {
            match rows.last_mut().filter(|(id, ..)| *id == event.aggregate_id) {
                Some((_, version, count, last)) if event.version == *version + 1 => (*version, *count, *last) = (event.version, *count + 1, event),
                Some(_) => return Err(Failure::Event(format!("the version {} does not follow", event.version))),
                None => rows.push((event.aggregate_id, event.version, 1, event)),
            }
        }
        let operations = rows.len() as u64;
        let values = |(id, version, count, last): (Uuid, i64, i64, &Event)| vec![id.into(), version.into(), count.into(), last.hash.to_vec().into()];
        let columns = [("id", Type::Uuid), ("version", Type::BigInt), ("events", Type::BigInt), ("hash", Type::Bytes)];
        let follows = "ON CONFLICT (id) DO UPDATE SET version = excluded.version, events = seen.events + excluded.events, hash = excluded.hash \
                       WHERE seen.version + excluded.events = excluded.version";
        let written = insert_rows(tx, "seen", &columns, follows, rows.into_iter().map(values).collect()).await?;
        Ok(Error::expect_rows(operations, written)?)
    }

    fn progress(&self) -> Progress {
        Progress::Own { table: "seen", id: "id", version: "version" }
    }
}

struct Tables;

#[async_trait::async_trait]
impl MigratorTrait for Tables {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(Migration)]
    }
}

struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &'static str {
        "m0001_seen"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let seen = "CREATE TABLE seen (id {uuid} PRIMARY KEY, version {bigint} NOT NULL, events {bigint} NOT NULL, hash {bytes} NOT NULL){strict}";
        lastro_migrations::run_statements(manager, &[seen]).await?;
        lastro_migrations::reader_tables(manager).await
    }
}

/// Opens a reader's database: on the PostgreSQL server of a URL, or in a file.
pub async fn open(place: &str) -> Result<Database> {
    let database = match place.strip_prefix("postgres://") {
        Some(_) => Database::open_postgres(&place.parse()?, "lastro_reader", 8).await?,
        None => Database::open_sqlite(Path::new(place)).await?,
    };
    lastro_migrations::Migrator::of::<Tables>().run(&database).await?;
    Ok(database)
}

/// Reads until told to stop.
pub async fn run(database: &Database, source: Source, bus: Bus, stop: CancellationToken) {
    Consumer::new(Topic { name: STORE.topic, reader: GROUP, source, bus }, database, Reader).run(stop).await;
}

/// Everything that a reader has, by id.
pub async fn rows(database: &Database) -> Result<Vec<Row>> {
    Ok(all(database.reader(), "SELECT id, version, events, hash FROM seen ORDER BY id", []).await?)
}

/// What a reader should have, made from the event store itself.
pub async fn expected(publisher: &Database) -> Result<Vec<Row>> {
    let sql = "SELECT e.aggregate_id AS id, e.version, (SELECT count(*) FROM operation_events c WHERE c.aggregate_id = e.aggregate_id) AS events, e.hash \
               FROM operation_events e WHERE e.version = (SELECT max(m.version) FROM operation_events m WHERE m.aggregate_id = e.aggregate_id) ORDER BY id";
    Ok(all(publisher.writer(), sql, []).await?)
}

/// How many events a database has, or a reader has applied.
pub async fn count(database: &Database, sql: &str) -> Result<i64> {
    #[derive(sea_orm::FromQueryResult)]
    struct Count {
        count: i64,
    }
    let rows: Vec<Count> = all(database.reader(), sql, []).await?;
    Ok(rows.first().map_or(0, |row| row.count))
}

/// Appends two events for each of so many operations, of the size that transfers have.
pub async fn write_events(publisher: &Database, operations: usize) -> Result<()> {
    let mut left = operations;
    while left > 0 {
        let ids: Vec<Uuid> = (0..left.min(2000)).map(|_| Uuid::now_v7()).collect();
        left -= ids.len();
        let tx = publisher.begin().await?;
        for (kind, bytes) in [("SUBMITTED", 190), ("COMPLETED", 220)] {
            let event = |id: &Uuid| {
                let new = NewEvent {
                    id: Uuid::now_v7(),
                    kind,
                    payload: id.as_bytes().iter().copied().cycle().take(bytes).collect(),
                    correlation_id: id.simple().to_string(),
                    causation_id: None,
                    recorded_us: lastro_mesh::clock::now_us(),
                };
                (*id, new)
            };
            STORE.append_all(&tx, ids.iter().map(event).collect()).await?;
        }
        tx.commit().await?;
    }
    Ok(())
}

/// How long a new reader of a source takes until it has so many events.
pub async fn time_to_read(database: &Database, source: Source, events: i64) -> Result<Duration> {
    let (stop, started) = (CancellationToken::new(), std::time::Instant::now());
    let reading = tokio::spawn({
        let (database, stop) = (database.clone(), stop.clone());
        async move { run(&database, source, Bus::Embedded(EmbeddedBus::default()), stop).await }
    });
    while count(database, "SELECT CAST(coalesce(sum(events), 0) AS bigint) AS count FROM seen").await? < events {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let took = started.elapsed();
    stop.cancel();
    reading.await?;
    Ok(took)
}
