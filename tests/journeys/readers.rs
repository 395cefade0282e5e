//! A reader of the events of a ledger has them all, each once and in order, whatever happens to it and to the bus: it joins a ledger with an empty
//! Redis, is away while streams are trimmed, loses entries, is killed every second, and follows the ledger into another cluster. Ignored in a plain
//! run: `make test-readers`. Operations by LASTRO_READER_OPERATIONS, 200,000 if nothing is said; LASTRO_SEED repeats a run.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lastro_database::Database;
use lastro_proto::transactions::v1::transactions_service_client::TransactionsServiceClient;
use lastro_proto::transactions::v1::{CreateTransactionRequest, transaction::Type};
use lastro_proto::r#type::v1::Money;
use lastro_tests::server::binary;
use lastro_tests::{Postgres, Stack, reader, run, stack};
use libtest_mimic::Trial;
use tonic::Request;
use tonic::transport::Channel;

use crate::faults::two_accounts;
use crate::{block_on, failed};

pub fn trials() -> Vec<Trial> {
    vec![Trial::test("readers::have_everything", || failed(block_on(have_everything()))).with_ignored_flag(true)]
}

pub fn setting(name: &str, default: u64) -> u64 {
    std::env::vars().find(|(key, _)| key == name).and_then(|(_, value)| value.parse().ok()).unwrap_or(default)
}

/// The stack with a ledger, and a reader beside it.
struct Rig {
    stack: Stack,
    /// Where the ledger lives now.
    ledger: Mutex<String>,
    database: Database,
    reader: Mutex<Option<Child>>,
    payer: Payer,
}

/// Somebody who moves cents to and fro.
#[derive(Clone)]
struct Payer {
    channels: Vec<Channel>,
    token: String,
    accounts: [String; 2],
    keys: Arc<AtomicU64>,
}

impl Payer {
    /// Creates so many transactions.
    async fn pay(&self, operations: u64) -> Result<()> {
        const CALLERS: u64 = 64;
        let payers = (0..CALLERS).map(|number| {
            let (payer, share) = (self.clone(), operations / CALLERS + u64::from(number < operations % CALLERS));
            let channel = payer.channels[number as usize % payer.channels.len()].clone();
            tokio::spawn(async move {
                let mut client = TransactionsServiceClient::new(channel);
                for _ in 0..share {
                    let key = payer.keys.fetch_add(1, Ordering::Relaxed);
                    let side = (key % 2) as usize;
                    let message = CreateTransactionRequest {
                        external_id: format!("r{key}"),
                        r#type: Type::Transfer as i32,
                        source_account_id: Some(payer.accounts[side].clone()),
                        destination_account_id: Some(payer.accounts[1 - side].clone()),
                        amount: Some(Money { currency_code: "BRL".to_owned(), amount: "0.01".to_owned() }),
                        ..CreateTransactionRequest::default()
                    };
                    let mut request = Request::new(message);
                    request.metadata_mut().insert("authorization", format!("Bearer {}", payer.token).parse()?);
                    client.create_transaction(request).await?;
                }
                anyhow::Ok(())
            })
        });
        for payer in payers.collect::<Vec<_>>() {
            payer.await??;
        }
        Ok(())
    }
}

impl Rig {
    async fn start() -> Result<Self> {
        let stack = Stack::start(stack::Options::default())?;
        let (front, direct) = (stack.front(), stack.direct());
        let (someone, accounts) = two_accounts(&front).await?;
        let channels = vec![direct.channel().await?, direct.channel().await?];
        let payer = Payer { channels, token: someone.token, accounts, keys: Arc::default() };
        let database = reader::open(&stack.postgres.url()).await?;
        Ok(Self { ledger: Mutex::new(stack.postgres.url()), database, reader: Mutex::default(), payer, stack })
    }

    fn redis_url(&self) -> String {
        self.stack.redis.lock().expect("not poisoned").url()
    }

    fn start_reader(&self) -> Result<()> {
        let replicas = ["transactions-1", "transactions-2"].map(|name| self.stack.address(name)).join(",");
        let mut command = Command::new(binary()?.with_file_name("lastro-reader"));
        command.args([self.stack.postgres.url(), self.redis_url(), self.stack.path("certs").display().to_string(), replicas]);
        let child = command.stdin(Stdio::null()).spawn().context("lastro-reader is built with the workspace")?;
        *self.reader.lock().expect("not poisoned") = Some(child);
        Ok(())
    }

    fn kill_reader(&self) {
        if let Some(mut child) = self.reader.lock().expect("not poisoned").take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn signal_reader(&self, signal: &str) -> Result<()> {
        let pid = self.reader.lock().expect("not poisoned").as_ref().map(Child::id).context("a reader")?;
        run(Command::new("kill").args([format!("-{signal}"), pid.to_string()])).map(|_| ())
    }

    /// Waits until the reader has all events that there are, and compares row by row with what the event store says.
    async fn check(&self, what: &str) -> Result<()> {
        let ledger = self.ledger.lock().expect("not poisoned").clone();
        let publisher = Database::open_postgres(&ledger.parse()?, "lastro_transactions", 2).await?;
        let events = reader::count(&publisher, "SELECT count(*) AS count FROM operation_events").await?;
        let (since, has) = (Instant::now(), "SELECT CAST(coalesce(sum(events), 0) AS bigint) AS count FROM seen");
        while reader::count(&self.database, has).await? < events {
            ensure!(since.elapsed() < Duration::from_secs(300), "{what}: {} of {events} events are there", reader::count(&self.database, has).await?);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let took = since.elapsed();
        let (rows, expected) = (reader::rows(&self.database).await?, reader::expected(&publisher).await?);
        let differ = rows.iter().zip(&expected).find(|(row, expected)| row != expected);
        ensure!(rows.len() == expected.len() && differ.is_none(), "{what}: {} rows and not {}; {differ:?}", rows.len(), expected.len());
        ensure!(rows.iter().all(|row| row.events == row.version), "{what}: an event was applied twice");
        for table in ["inbox_parked", "dead_events"] {
            let left = reader::count(&self.database, &format!("SELECT count(*) AS count FROM {table}")).await?;
            ensure!(left == 0, "{what}: {left} rows in {table}");
        }
        publisher.close().await;
        eprintln!("{what}: {} operations, {events} events, row by row; all there after {took:.1?}", rows.len());
        Ok(())
    }

    async fn redis(&self) -> Result<redis::aio::MultiplexedConnection> {
        Ok(redis::Client::open(self.redis_url())?.get_multiplexed_async_connection().await?)
    }

    fn streams() -> [String; 4] {
        [0, 1, 2, 3].map(|shard| format!("lastro:{{transactions}}:stream:{shard}"))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.kill_reader();
    }
}

async fn have_everything() -> Result<()> {
    let (operations, seed) = (setting("LASTRO_READER_OPERATIONS", 200_000), setting("LASTRO_SEED", std::process::id().into()));
    eprintln!("{operations} operations, LASTRO_SEED={seed}");
    let rig = Arc::new(Rig::start().await?);
    rig.payer.pay(operations).await?;

    let mut redis = rig.redis().await?;
    redis::cmd("FLUSHALL").query_async::<()>(&mut redis).await?;
    rig.start_reader()?;
    rig.check("joined a ledger with an empty Redis").await?;

    rig.kill_reader();
    rig.payer.pay(operations / 10).await?;
    for stream in Rig::streams() {
        redis::cmd("XTRIM").arg(stream).arg("MAXLEN").arg(5).query_async::<()>(&mut redis).await?;
    }
    rig.start_reader()?;
    rig.check("was away while streams were trimmed below its place").await?;

    rig.signal_reader("STOP")?;
    rig.payer.pay(operations / 20).await?;
    let deleted = delete_some(&rig, &mut redis, seed).await?;
    rig.signal_reader("CONT")?;
    rig.check(&format!("lost {deleted} entries in the middle")).await?;

    let (stop, killed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let killer = tokio::spawn({
        let (rig, stop, killed) = (rig.clone(), stop.clone(), killed.clone());
        async move {
            while !stop.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_secs(1)).await;
                rig.kill_reader();
                rig.start_reader()?;
                killed.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        }
    });
    redis::cmd("FLUSHALL").query_async::<()>(&mut redis).await?;
    rig.payer.pay(operations / 10).await?;
    rig.check("killed -9 every second").await?;
    move_to_another_cluster(&rig).await?;
    rig.check("after dump and restore into another cluster, killed every second").await?;
    rig.payer.pay(operations / 20).await?;
    rig.check("after more in the new cluster").await?;
    stop.store(true, Ordering::Relaxed);
    killer.await??;
    ensure!(killed.load(Ordering::Relaxed) > 2, "it was killed {killed:?} times");
    Ok(())
}

/// Deletes one of about twenty entries from the middle of each stream.
async fn delete_some(rig: &Rig, redis: &mut redis::aio::MultiplexedConnection, seed: u64) -> Result<u64> {
    let (mut deleted, mut state) = (0, seed | 1);
    // What the relay has still to publish comes later, and whole.
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(rig.reader.lock().expect("not poisoned").is_some(), "a reader that is stopped");
    for stream in Rig::streams() {
        let entries: Vec<(String, redis::Value)> =
            redis::cmd("XREVRANGE").arg(&stream).arg("+").arg("-").arg("COUNT").arg(400).query_async(redis).await?;
        for (id, _) in entries {
            // A linear congruential generator: Knuth, MMIX.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if (state >> 33) % 20 == 0 {
                redis::cmd("XDEL").arg(&stream).arg(id).query_async::<()>(redis).await?;
                deleted += 1;
            }
        }
    }
    Ok(deleted)
}

/// As an operator does who restores a backup on new machines: services stopped, everything dumped, restored elsewhere, services started.
async fn move_to_another_cluster(rig: &Rig) -> Result<()> {
    let services: Vec<String> = rig.stack.names().into_iter().filter(|name| !name.starts_with("gateway")).collect();
    services.iter().try_for_each(|name| rig.stack.kill(name))?;
    let (new, dump) = (Postgres::start()?, rig.stack.path("dump.sql"));
    let host = ["-h", "127.0.0.1", "-U", "postgres", "-p"];
    let (from, to) = (rig.stack.postgres.port.to_string(), new.port.to_string());
    run(Command::new(lastro_tests::postgres::bin("pg_dumpall")?).args(host).arg(&from).arg("-f").arg(&dump))?;
    run(Command::new(lastro_tests::postgres::bin("psql")?).args(host).arg(&to).args(["-q", "-d", "postgres", "-f"]).arg(&dump))?;
    let moved = Database::open_postgres(&new.url().parse()?, "lastro_transactions", 1).await?;
    let ahead =
        "SELECT CASE WHEN max(xid::text::bigint) > pg_current_xact_id()::text::bigint THEN 1 ELSE 0 END::bigint AS count FROM operation_events";
    let ahead = reader::count(&moved, ahead).await?;
    moved.close().await;
    ensure!(ahead == 1, "the new cluster is to have lower transaction ids; make more operations");
    *rig.ledger.lock().expect("not poisoned") = new.url();
    rig.stack.move_to(new)?;
    services.iter().try_for_each(|name| rig.stack.spawn(name))?;
    tokio::task::block_in_place(|| rig.stack.until_ready())
}
