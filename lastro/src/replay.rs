//! `lastro replay`: makes the tables of a service anew from the event stores, beside those that it works with, and puts them in their place while it
//! works. It is read, and goes on, all the time.

use std::collections::HashMap;
use std::fs::File;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use lastro_database::shadow::{self, Place};
use lastro_database::{Database, PostgresUrl};
use lastro_events::bus::Bus;
use lastro_events::bus::embedded::EmbeddedBus;
use lastro_events::replay::{Projector, hold_all_turns};
use lastro_events::source::Near;
use lastro_events::{EventStore, Topic};
use lastro_service::{Replay, Replaying, Service, Settings};

use crate::cli::ReplaySettings;
use crate::data_dir::{create_private, lock_file};
use crate::print;
use crate::services::{publisher_of, rights_of};

/// Connections to each database.
const CONNECTIONS: u32 = 4;
/// The new tables have caught up when so few events have come since they were read last.
const FEW: usize = 1_000;
/// Where they never do, because more comes than is applied, writers are held up for longer instead.
const ROUNDS_MAX: u32 = 20;

/// The publishers' event stores, by topic.
type Stores = HashMap<&'static str, (EventStore, Database)>;

/// Where the service's tables are, and the new ones.
struct Work {
    service: &'static Service,
    live: Database,
    new: Database,
    place: Place,
    stores: Stores,
}

/// Makes the tables of a service anew.
pub async fn replay(settings: ReplaySettings) -> Result<()> {
    let service = settings.service;
    let replay = service.replay.as_ref().with_context(|| format!("{} is not made from events", service.name))?;
    match settings.database_url {
        Some(url) => on_postgres(service, replay, settings.own, &url).await,
        None => in_folder(service, replay, settings.own, &settings.data).await,
    }
}

async fn on_postgres(service: &'static Service, replay: &Replay, settings: Settings, url: &PostgresUrl) -> Result<()> {
    let name = service.database_name();
    let live = Database::connect_postgres(url, &name, CONNECTIONS).with_context(|| format!("the database {name} cannot be opened"))?;
    let missing = service.migrator.missing(&live).await.with_context(|| format!("the database {name} cannot be read"))?;
    ensure!(missing.is_empty(), "the database {name} is of an earlier version; run `lastro migrate` first");
    let lock = lastro_migrations::try_lock_replay(&live).await?;
    let lock = lock.with_context(|| format!("the tables of {} are being made anew already; wait for that", service.name))?;
    let mut stores = Stores::new();
    for (publisher, store) in service.reads.iter().filter_map(|topic| publisher_of(topic)) {
        let name = publisher.database_name();
        let database = Database::connect_postgres(url, &name, CONNECTIONS).with_context(|| format!("the database {name} cannot be opened"))?;
        stores.insert(store.topic, (store, database));
    }
    let new = Database::make_shadow_postgres(url, &name, CONNECTIONS).await.context("the new tables cannot be begun")?;
    service.migrator.run(&new).await.context("the new tables cannot be made")?;
    if lastro_migrations::is_other_role(&new, &name).await? {
        lastro_migrations::grant(&new, &name, &rights_of(service)).await.with_context(|| format!("the rights of {name} cannot be granted"))?;
    }
    let work = Work { service, live, new, place: Place::Schema, stores };
    work.run(replay, settings).await?;
    lock.release().await;
    work.close().await;
    Ok(())
}

/// Beside `lastro up`, which may run on the folder.
async fn in_folder(service: &'static Service, replay: &Replay, settings: Settings, data: &Path) -> Result<()> {
    let live = open_there(data, service.name).await?;
    let missing = service.migrator.missing(&live).await.with_context(|| format!("{} cannot be read", file_of(data, service.name).display()))?;
    ensure!(missing.is_empty(), "the tables of {} are of an earlier version; start `lastro up` with this one first", service.name);
    let _lock: File = lock_file(&data.join(format!("{}.replay.lock", service.name)))?
        .with_context(|| format!("the tables of {} are being made anew already; wait for that", service.name))?;
    let mut stores = Stores::new();
    for (publisher, store) in service.reads.iter().filter_map(|topic| publisher_of(topic)) {
        stores.insert(store.topic, (store, open_there(data, publisher.name).await?));
    }
    let file = data.join(format!("{}.replay.db", service.name));
    remove(&file)?;
    create_private(&file)?;
    let new = Database::open_sqlite(&file).await.with_context(|| format!("{} cannot be made", file.display()))?;
    service.migrator.run(&new).await.context("the new tables cannot be made")?;
    let work = Work { service, live, new, place: Place::File(file.clone()), stores };
    work.run(replay, settings).await?;
    work.close().await;
    remove(&file)
}

fn file_of(data: &Path, service: &str) -> PathBuf {
    data.join(format!("{service}.db"))
}

/// The database of a service in the data folder of `lastro up`, which may run.
pub async fn open_there(data: &Path, service: &str) -> Result<Database> {
    let file = file_of(data, service);
    ensure!(file.exists(), "{} is not there; --data names the folder of `lastro up`, --database-url a PostgreSQL server", file.display());
    Database::open_sqlite(&file).await.with_context(|| format!("{} cannot be opened", file.display()))
}

/// Removes an SQLite file with what belongs to it, whatever of it is there.
fn remove(file: &Path) -> Result<()> {
    for end in ["", "-wal", "-shm"] {
        let mut path = file.as_os_str().to_owned();
        path.push(end);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("{} cannot be removed", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

impl Work {
    async fn run(&self, replay: &Replay, settings: Settings) -> Result<()> {
        let begun = Instant::now();
        let mut total = 0;
        for (store, publisher) in self.stores.values() {
            total += store.stored(publisher).await.with_context(|| format!("the events of {} cannot be read", store.topic))?;
        }
        let topic = |(name, (store, publisher)): (&&'static str, &(EventStore, Database))| {
            let source = Near::source(*store, publisher);
            (*name, Topic { name: store.topic, reader: self.service.name, source, bus: Bus::Embedded(EmbeddedBus::default()) })
        };
        let replaying =
            Replaying { live: self.live.clone(), new: self.new.clone(), settings, topics: self.stores.iter().map(topic).collect::<HashMap<_, _>>() };
        let projectors = (replay.start)(replaying).await?;
        let progress = Progress::of(total);
        self.fill(&projectors, &progress).await;
        self.exchange(&projectors, &progress).await.context("the new tables cannot be put in the place of the old ones; run this again")?;
        let (events, seconds) = (progress.end(), begun.elapsed().as_secs_f64());
        print::line(format!("{} is made anew from {events} events, in {seconds:.1} s", self.service.name));
        Ok(())
    }

    /// Reads until few events have come since.
    async fn fill(&self, projectors: &[Box<dyn Projector>], progress: &Progress) {
        for _ in 0..ROUNDS_MAX {
            let before = progress.done();
            for projector in projectors {
                projector.read_to_end(&|events| progress.add(events)).await;
            }
            if progress.done() - before < FEW as i64 {
                break;
            }
        }
    }

    /// Keeps everybody from writing, reads what has come since, and puts the new tables in their place.
    async fn exchange(&self, projectors: &[Box<dyn Projector>], progress: &Progress) -> Result<()> {
        let held = shadow::hold(&self.live, &self.place).await?;
        if let Some(tx) = held.transaction() {
            hold_all_turns(tx, self.service.reads).await?;
        }
        for projector in projectors {
            projector.read_to_end(&|events| progress.add(events)).await;
            if let Some((store, publisher)) = self.stores.get(projector.topic()) {
                projector.read_committed(store, publisher).await?;
            }
        }
        Ok(held.exchange().await?)
    }

    async fn close(self) {
        self.new.close().await;
        self.live.close().await;
        for (_, database) in self.stores.into_values() {
            database.close().await;
        }
    }
}

/// How far it has come: a bar on a terminal, else a line for each tenth.
struct Progress {
    total: i64,
    done: AtomicI64,
    bar: Option<ProgressBar>,
}

impl Progress {
    fn of(total: i64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total.unsigned_abs());
            let style = ProgressStyle::with_template("{bar:40} {human_pos} of {human_len} events  {per_sec}  {eta} left");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { total, done: AtomicI64::new(0), bar }
    }

    fn done(&self) -> i64 {
        self.done.load(Ordering::Relaxed)
    }

    fn add(&self, events: usize) {
        let before = self.done.fetch_add(events as i64, Ordering::Relaxed);
        let after = before + events as i64;
        let tenths = |done: i64| if self.total > 0 { (done * 10 / self.total).min(10) } else { 0 };
        match &self.bar {
            Some(bar) => bar.set_position(after.unsigned_abs()),
            None if tenths(after) > tenths(before) => print::line(format!("{} % of {} events", tenths(after) * 10, self.total)),
            None => {}
        }
    }

    fn end(&self) -> i64 {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.done()
    }
}
