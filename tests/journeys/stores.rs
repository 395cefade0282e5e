//! PostgreSQL as it is told to be: by one URL for both drivers, and while it takes no writes.

use std::time::{Duration, Instant};

use anyhow::Result;
use lastro_tests::stack::Registered;
use lastro_tests::{Api, Front, Postgres, Server};
use libtest_mimic::Trial;
use sea_orm::ConnectionTrait as _;
use serde_json::json;
use sqlx::{Connection as _, Row as _};

use crate::faults::two_accounts;
use crate::{block_on, failed};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("stores::one_url_one_reading", || failed(block_on(one_url_one_reading()))),
        Trial::test("stores::an_interrupted_migration_is_done_anew", || failed(block_on(an_interrupted_migration_is_done_anew()))),
        Trial::test("stores::a_database_that_takes_no_writes", || failed(block_on(a_database_that_takes_no_writes()))),
    ]
}

async fn sessions(postgres: &Postgres) -> Result<[sqlx::PgConnection; 2]> {
    let connect = async |name: &str| sqlx::PgConnection::connect(&format!("{}/{name}", postgres.url())).await;
    Ok([connect("lastro_customers").await?, connect("lastro_transactions").await?])
}

async fn operations(session: &mut sqlx::PgConnection, schema: &str) -> Result<i64> {
    let sql = format!("SELECT count(*) FROM {schema}.operations");
    Ok(sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_one(session).await?.try_get(0)?)
}

async fn one_url_one_reading() -> Result<()> {
    let (folder, postgres) = (tempfile::tempdir()?, Postgres::start()?);
    let start = |name: &str, url: &str| Server::start(&folder.path().join(name), &["--database-url", url]);
    let first = start("first", &postgres.url())?;
    let [_, mut transactions] = sessions(&postgres).await?;
    two_accounts(&first.front()).await?;
    let before = operations(&mut transactions, "public").await?;

    // Another installation, in a schema of its own: all of its money is there, and none elsewhere.
    for service in Registered::all()?.into_iter().filter(|service| !service.roles.is_empty()) {
        let mut session = sqlx::PgConnection::connect(&format!("{}/lastro_{}", postgres.url(), service.name)).await?;
        sqlx::raw_sql("CREATE SCHEMA tenant").execute(&mut session).await?;
    }
    let tenant = start("tenant", &format!("{}?options=-c%20search_path%3Dtenant", postgres.url()))?;
    let (someone, accounts) = two_accounts(&tenant.front()).await?;
    let moved = tenant.api().transact(&someone.token, Api::transfer("t", &accounts[0], &accounts[1], "1.00")).await?;
    assert_eq!(moved.text("state")?, "COMPLETED");
    assert_eq!((operations(&mut transactions, "public").await?, operations(&mut transactions, "tenant").await?), (before, 3));

    // By a Unix socket, as the user and the database say.
    let socket = start("socket", &format!("postgres://postgres@/anything?host={}&port={}", postgres.socket_folder(), postgres.port))?;
    // The administrator is the first one's, who has its password.
    two_accounts(&Front { admin_file: first.front().admin_file, ..socket.front() }).await?;
    assert_eq!(operations(&mut transactions, "public").await?, before + 2);

    // What one of the two drivers cannot do is refused by name, at once, and without the password.
    for (parameter, named) in [
        ("sslrootcert=/x", "sslrootcert"),
        ("sslmode=verify-full", "sslmode"),
        ("target_session_attrs=read-write", "target_session_attrs"),
        ("client_encoding=LATIN1", "client_encoding"),
        ("options=-c%20statement_timeout%3D0", "statement_timeout"),
    ] {
        let url = format!("postgres://postgres:hidden@127.0.0.1:{}?{parameter}", postgres.port);
        let refused = start("refused", &url).map(|_| ()).expect_err(parameter).to_string();
        assert!(refused.contains(named) && !refused.contains("hidden"), "{refused}");
    }
    Ok(())
}

async fn a_database_that_takes_no_writes() -> Result<()> {
    let (folder, postgres) = (tempfile::tempdir()?, Postgres::start()?);
    let server = Server::start(&folder.path().join("data"), &["--database-url", &postgres.url()])?;
    let (someone, accounts) = two_accounts(&server.front()).await?;
    let api = server.api();
    let mut session = sqlx::PgConnection::connect(&format!("{}/postgres", postgres.url())).await?;
    let ready = async || anyhow::Ok(api.get("/readyz", None).await?.status);
    let until_ready_is = async |status: u16| {
        let since = Instant::now();
        while ready().await? != status {
            anyhow::ensure!(since.elapsed() < Duration::from_secs(10), "/readyz does not become {status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    };
    let pay = async |key: String| api.transact(&someone.token, Api::transfer(&key, &accounts[0], &accounts[1], "0.01")).await;
    let login = async || {
        let body = json!({ "email": someone.email, "password": lastro_tests::client::PASSWORD });
        api.post("/api/v1/auth/login", None, body).await
    };
    // For every session at once, as a standby is; and for those alone that begin meanwhile, which remember it.
    let everybody = ["ALTER SYSTEM SET default_transaction_read_only = on", "ALTER SYSTEM RESET default_transaction_read_only"];
    let newcomers = [
        "ALTER DATABASE lastro_transactions SET default_transaction_read_only = on; ALTER DATABASE lastro_customers SET default_transaction_read_only = on; \
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lastro'",
        "ALTER DATABASE lastro_transactions RESET default_transaction_read_only; ALTER DATABASE lastro_customers RESET default_transaction_read_only",
    ];
    for (round, [on, off]) in [everybody, newcomers].into_iter().enumerate() {
        for statement in on.split(';') {
            sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut session).await?;
        }
        sqlx::raw_sql("SELECT pg_reload_conf()").execute(&mut session).await?;
        until_ready_is(503).await?;
        for number in 0..6 {
            for answer in [pay(format!("closed {round} {number}")).await?, login().await?] {
                assert_eq!(answer.status, 503, "{answer:?}");
                assert!(answer.body["reason"] == "UNAVAILABLE" && !answer.header("retry-after").is_empty(), "{answer:?}");
            }
        }
        // What is read is still answered.
        assert!([200, 503].contains(&api.get("/api/v1/accounts", Some(&someone.token)).await?.status));
        for statement in off.split(';') {
            sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut session).await?;
        }
        sqlx::raw_sql("SELECT pg_reload_conf()").execute(&mut session).await?;
        until_ready_is(200).await?;
        let since = Instant::now();
        // A breaker may be open for a moment, and closes after a few good calls; from then on nothing remembers.
        let mut good = 0;
        while good < 6 {
            let heals = pay(format!("open {round} {good}")).await?.status < 300 && login().await?.status == 200;
            good = if heals { good + 1 } else { 0 };
            assert!(since.elapsed() < Duration::from_secs(12), "it does not heal");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let calls = (0..60).map(|number| async move { if number % 3 == 0 { login().await } else { pay(format!("again {round} {number}")).await } });
        for answer in futures_util::future::join_all(calls).await {
            let answer = answer?;
            assert!([200, 201].contains(&answer.status), "{answer:?}");
        }
    }
    Ok(())
}

/// A migration that is interrupted is as if it had not begun, on SQLite too: the next start does all of it.
async fn an_interrupted_migration_is_done_anew() -> Result<()> {
    use sea_orm_migration::MigratorTrait as _;
    let folder = tempfile::tempdir()?;
    let database = lastro_database::Database::open_sqlite(&folder.path().join("transactions.db")).await?;
    lastro_transactions::Migrator::up(database.writer(), Some(7)).await?;
    database.writer().execute_unprepared("INSERT INTO balances VALUES (x'00', 5, 0, 1, false, false)").await?;
    // Half of the way something is there that must not be.
    database.writer().execute_unprepared("CREATE TABLE operation_parties (unwanted INTEGER)").await?;
    let migrator = lastro_migrations::Migrator::of::<lastro_transactions::Migrator>();
    anyhow::ensure!(migrator.run(&database).await.is_err(), "it fails");
    database.writer().execute_unprepared("DROP TABLE operation_parties").await?;
    migrator.run(&database).await?;
    let kept: Vec<Posted> = lastro_database::all(database.reader(), "SELECT posted FROM balances WHERE floor = 0 AND credit_limit = 0", []).await?;
    anyhow::ensure!(kept.len() == 1 && kept[0].posted == 5 && migrator.missing(&database).await?.is_empty());
    Ok(())
}

#[derive(sea_orm::FromQueryResult)]
struct Posted {
    posted: i64,
}
