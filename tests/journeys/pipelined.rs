//! Statements that go out together, on a real server: what an error takes along, and which connections are used again.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lastro_database::pipelined::{self, Column, Connection, Pool, copy_statement};
use lastro_database::{Database, Kind};
use lastro_tests::Postgres;
use libtest_mimic::Trial;
use uuid::Uuid;

use crate::{block_on, failed};

pub fn trials() -> Vec<Trial> {
    vec![Trial::test("pipelined", || {
        failed(block_on(async {
            let postgres = Postgres::start()?;
            let database = Database::open_postgres(&postgres.url().parse()?, "pipelined", 4).await?;
            lastro_database::execute(database.writer(), "CREATE TABLE t (id bigint PRIMARY KEY, name text, bytes bytea, other uuid)", []).await?;
            let pool = database.pipelined().context("a pool")?;
            values_come_back_as_they_went(pool).await?;
            more_than_a_socket_holds(pool).await?;
            an_error_takes_everything_along(pool).await?;
            what_the_server_ended_is_not_used_again(pool).await?;
            what_was_left_in_the_middle_is_not_used_again(pool).await?;
            no_answer_is_an_answer_in_the_end(pool).await?;
            anyhow::ensure!(pipelined::pool(&"postgres://nobody@127.0.0.1:1".parse()?, "none", 5)?.get().await.is_err(), "nobody listens there");
            Ok(())
        }))
    })]
}

async fn run(connection: &mut Connection, statements: &[&str]) -> Result<Vec<pipelined::Row>, lastro_database::Error> {
    let mut prepared = Vec::new();
    for sql in statements {
        prepared.push(connection.prepare(sql).await?);
    }
    let mut pipeline = connection.pipeline();
    for statement in &prepared {
        pipeline.execute(statement, &[]);
    }
    pipeline.send().await
}

async fn count(connection: &mut Connection) -> Result<i64> {
    Ok(run(connection, &["SELECT count(*) FROM t"]).await?.first().context("a row")?.get(0)?)
}

async fn values_come_back_as_they_went(pool: &Pool) -> Result<()> {
    let connection = &mut *pool.get().await?;
    let (ids, names) = (vec![i64::MIN, 0, i64::MAX], vec![Some("ação"), Some(""), None]);
    let (bytes, others) = (vec![Some(vec![0_u8, 255]), Some(Vec::new()), None], vec![Some(Uuid::nil()), Some(Uuid::max()), None]);
    let sql = "INSERT INTO t SELECT * FROM unnest($1::bigint[], $2::text[], $3::bytea[], $4::uuid[])";
    let (insert, select) = (connection.prepare(sql).await?, connection.prepare("SELECT id, name, bytes, other FROM t ORDER BY id").await?);
    let mut pipeline = connection.pipeline();
    pipeline.execute(&insert, &[&ids, &names, &bytes, &others]);
    // No row at all is well too.
    pipeline.execute(&insert, &[&Vec::<i64>::new(), &Vec::<String>::new(), &Vec::<Vec<u8>>::new(), &Vec::<Uuid>::new()]);
    pipeline.execute(&select, &[]);
    let rows = pipeline.send().await?;
    anyhow::ensure!(rows.len() == 3, "{rows:?}");
    for (index, row) in rows.iter().enumerate() {
        anyhow::ensure!(row.get::<i64>(0)? == ids[index] && row.get::<Option<String>>(1)?.as_deref() == names[index], "{row:?}");
        anyhow::ensure!(row.get::<Option<Vec<u8>>>(2)? == bytes[index] && row.get::<Option<Uuid>>(3)? == others[index], "{row:?}");
    }
    anyhow::ensure!(rows[0].get::<bool>(0).is_err() && rows[2].get::<String>(1).is_err() && rows[0].get::<i64>(4).is_err(), "no such value");
    let wrong = connection.pipeline().send().await.map(|rows| rows.len());
    anyhow::ensure!(matches!(wrong, Ok(0)), "nothing asked, nothing answered: {wrong:?}");
    let mut pipeline = connection.pipeline();
    pipeline.execute(&insert, &[&ids]);
    anyhow::ensure!(pipeline.send().await.is_err() && connection.is_idle(), "a mistake of ours is found before anything is sent");
    run(connection, &["DELETE FROM t"]).await?;
    Ok(())
}

const ID: Column<i64> = Column { name: "id", write: |id, field| field.bigint(*id) };

async fn more_than_a_socket_holds(pool: &Pool) -> Result<()> {
    const ROWS: i64 = 20_000;
    let connection = &mut *pool.get().await?;
    let columns: &[Column<i64>] =
        &[ID, Column { name: "name", write: |_, field| field.optional(None) }, Column { name: "bytes", write: |_, field| field.bytes(&[7; 1000]) }];
    let copy = connection.prepare(&copy_statement("t", columns)).await?;
    let (mut pipeline, ids) = (connection.pipeline(), (0..ROWS).collect::<Vec<_>>());
    pipeline.copy(&copy, columns, &ids);
    pipeline.send().await?;
    anyhow::ensure!(count(connection).await? == ROWS && connection.is_idle());
    run(connection, &["DELETE FROM t"]).await?;
    Ok(())
}

/// COMMIT goes out before anybody knows whether what it commits went well.
async fn an_error_takes_everything_along(pool: &Pool) -> Result<()> {
    let connection = &mut *pool.get().await?;
    let [begin, commit] = [connection.prepare("BEGIN").await?, connection.prepare("COMMIT").await?];
    let (first, last) = (connection.prepare("INSERT INTO t (id) VALUES (1)").await?, connection.prepare("INSERT INTO t (id) VALUES (99)").await?);
    let copy = connection.prepare(&copy_statement("t", &[ID])).await?;
    // In each, something fails at another place: a statement before a COPY, a COPY in its rows, a COPY in its form, a statement after.
    for place in 0..4 {
        let mut pipeline = connection.pipeline();
        pipeline.execute(&begin, &[]);
        pipeline.execute(&first, &[]);
        if place == 0 {
            pipeline.execute(&first, &[]);
        }
        let columns: &[Column<i64>] = if place == 2 { &[ID, ID] } else { &[ID] };
        pipeline.copy(&copy, columns, &[2_i64, if place == 1 { 2 } else { 3 }]);
        if place == 3 {
            pipeline.execute(&first, &[]);
        }
        pipeline.copy(&copy, &[ID], &[4_i64]);
        pipeline.execute(&last, &[]);
        pipeline.execute(&commit, &[]);
        let error = pipeline.send().await.err().context("it must fail")?;
        anyhow::ensure!(error.kind == if place == 2 { Kind::Other } else { Kind::Unique }, "{place}: {error}");
        anyhow::ensure!(connection.has_failed() && !connection.is_idle(), "{place}: the transaction is still open, and lost");
        run(connection, &["ROLLBACK"]).await?;
        anyhow::ensure!(connection.is_idle() && count(connection).await? == 0, "{place}: something was committed");
    }
    Ok(())
}

async fn what_the_server_ended_is_not_used_again(pool: &Pool) -> Result<()> {
    let mut ended = pool.get().await?;
    let session = run(&mut ended, &["SELECT pg_backend_pid()::bigint"]).await?[0].get::<i64>(0)?;
    let mut other = pool.get().await?;
    run(&mut other, &[&format!("SELECT pg_terminate_backend({session})")]).await?;
    let since = Instant::now();
    while ended.is_idle() {
        anyhow::ensure!(since.elapsed() < Duration::from_secs(5), "the end of a session goes unseen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let error = run(&mut ended, &["SELECT 1"]).await.err().context("it has ended")?;
    anyhow::ensure!(error.kind == Kind::Unavailable, "{error}");
    drop((ended, other));
    let all = [pool.get().await?, pool.get().await?, pool.get().await?, pool.get().await?, pool.get().await?];
    for mut connection in all {
        anyhow::ensure!(run(&mut connection, &["SELECT pg_backend_pid()::bigint"]).await?[0].get::<i64>(0)? != session);
    }
    Ok(())
}

async fn what_was_left_in_the_middle_is_not_used_again(pool: &Pool) -> Result<()> {
    let mut connection = pool.get().await?;
    let left = tokio::time::timeout(Duration::from_millis(50), run(&mut connection, &["SELECT pg_sleep(0.3)::text"])).await;
    anyhow::ensure!(left.is_err() && !connection.is_idle());
    tokio::time::sleep(Duration::from_millis(400)).await;
    anyhow::ensure!(!connection.is_idle(), "its answer came meanwhile, and is not that of the next one");
    Ok(())
}

/// On a paused clock: it goes on as soon as there is nothing to do but wait.
async fn no_answer_is_an_answer_in_the_end(pool: &Pool) -> Result<()> {
    let mut connection = pool.get().await?;
    let sleep = connection.prepare("SELECT pg_sleep(4)::text").await?;
    let waited = std::thread::scope(|scope| {
        let wait = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
            let mut pipeline = connection.pipeline();
            pipeline.execute(&sleep, &[]);
            anyhow::Ok(runtime.block_on(pipeline.send()).err())
        };
        scope.spawn(wait).join().expect("no panic")
    })?;
    anyhow::ensure!(waited.as_ref().is_some_and(|error| error.kind == Kind::Unavailable), "{waited:?}");
    anyhow::ensure!(!connection.is_idle());
    Ok(())
}
