//! The operation pipeline under what users do not see: callers that give up, rows that somebody else changes, accounts that are full. Each on a
//! server of its own, since each breaks something on purpose.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::future::join_all;
use futures_util::{StreamExt as _, TryStreamExt as _};
use lastro_database::Database;
use lastro_proto::transactions::v1::CreateTransactionRequest;
use lastro_proto::transactions::v1::transaction::{Settlement, State, Type};
use lastro_proto::transactions::v1::transactions_service_client::TransactionsServiceClient;
use lastro_proto::r#type::v1::Money;
use lastro_tests::client::Someone;
use lastro_tests::{Answer, Api, Postgres, Server};
use libtest_mimic::Trial;
use sea_orm::ConnectionTrait as _;
use serde_json::json;
use sqlx::{Connection as _, Row as _};

use crate::faults::two_accounts;
use crate::grpc::with_token;
use crate::ha::transfer_request;
use crate::ledger::Ledger;
use crate::provider_events::{external_deposit, report};
use crate::{block_on, failed};

pub fn trials() -> Vec<Trial> {
    let on_postgres = |name: &str, journey: fn(Rig) -> Result<()>| {
        Trial::test(format!("pipeline::postgres::{name}"), move || failed(Rig::start(true).and_then(journey)))
    };
    let embedded = |name: &str, journey: fn(Rig) -> Result<()>| {
        Trial::test(format!("pipeline::embedded::{name}"), move || failed(Rig::start(false).and_then(journey)))
    };
    vec![
        on_postgres("what_is_given_up_is_not_stored", |rig| block_on(what_is_given_up_is_not_stored(&rig))),
        on_postgres("what_another_replica_completed_stays", |rig| block_on(what_another_replica_completed_stays(&rig))),
        on_postgres("what_waited_settles_as_its_caller_would_have", |rig| block_on(what_waited_settles_as_its_caller_would_have(&rig))),
        on_postgres("a_list_costs_the_same_whatever_there_is", |rig| block_on(a_list_costs_the_same_whatever_there_is(&rig))),
        on_postgres("full_stripes_are_left_out", |rig| block_on(full_stripes_are_left_out(&rig))),
        embedded("full_stripes_are_left_out", |rig| block_on(full_stripes_are_left_out(&rig))),
        on_postgres("another_unique_violation_ends", |rig| block_on(another_unique_violation_ends(&rig))),
        embedded("another_unique_violation_ends", |rig| block_on(another_unique_violation_ends(&rig))),
        Trial::test("pipeline::postgres::who_waits_takes_no_place", || {
            failed(Rig::start_with(true, &["--concurrency-max", "16"]).and_then(|rig| block_on(who_waits_takes_no_place(&rig))))
        }),
        on_postgres("batches_leave_places", |rig| block_on(batches_leave_places(&rig))),
        on_postgres("stuck_holds_keep_nobody", |rig| block_on(stuck_holds_keep_nobody(&rig))),
        embedded("stuck_holds_keep_nobody", |rig| block_on(stuck_holds_keep_nobody(&rig))),
        on_postgres("old_keys_repeated_hold_nobody_up", |rig| block_on(old_keys_repeated_hold_nobody_up(&rig))),
        embedded("old_keys_repeated_hold_nobody_up", |rig| block_on(old_keys_repeated_hold_nobody_up(&rig))),
    ]
}

/// A server of its own.
pub struct Rig {
    pub server: Server,
    pub postgres: Option<Postgres>,
    _folder: tempfile::TempDir,
}

impl Rig {
    pub fn start(on_postgres: bool) -> Result<Self> {
        Self::start_with(on_postgres, &[])
    }

    /// With more flags.
    pub fn start_with(on_postgres: bool, more: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let postgres = if on_postgres { Some(Postgres::start()?) } else { None };
        let url = postgres.as_ref().map(Postgres::url);
        let flags: Vec<&str> = url.iter().flat_map(|url| ["--database-url", url.as_str()]).chain(more.iter().copied()).collect();
        Ok(Self { server: Server::start(&folder.path().join("data"), &flags)?, postgres, _folder: folder })
    }

    pub async fn transactions(&self) -> Result<Database> {
        let url = self.postgres.as_ref().map(Postgres::url);
        Ok(Ledger::open(url.as_deref(), &self.server.data).await?.transactions)
    }

    pub async fn session(&self) -> Result<sqlx::PgConnection> {
        let url = self.postgres.as_ref().context("on PostgreSQL")?.url();
        Ok(sqlx::PgConnection::connect(&format!("{url}/lastro_transactions")).await?)
    }

    pub async fn customers_session(&self) -> Result<sqlx::PgConnection> {
        let url = self.postgres.as_ref().context("on PostgreSQL")?.url();
        Ok(sqlx::PgConnection::connect(&format!("{url}/lastro_customers")).await?)
    }

    pub async fn someone(&self) -> Result<(Api, Someone, [String; 2])> {
        let (someone, accounts) = two_accounts(&self.server.front()).await?;
        Ok((self.server.api(), someone, accounts))
    }
}

/// A ledger that is stuck for a while settles afterwards what somebody still waits for, and nothing else.
async fn what_is_given_up_is_not_stored(rig: &Rig) -> Result<()> {
    const CALLS: usize = 3000;
    let (api, someone, accounts) = rig.someone().await?;
    let mut session = rig.session().await?;
    sqlx::raw_sql("BEGIN; LOCK TABLE operations IN ACCESS EXCLUSIVE MODE").execute(&mut session).await?;
    let channel = rig.server.front().channel().await?;
    let call = async |number: usize| {
        let request = transfer_request(&someone, &format!("given up {number}"), [&accounts[0], &accounts[1]], Duration::from_millis(400))?;
        anyhow::Ok(TransactionsServiceClient::new(channel.clone()).create_transaction(request).await.is_err())
    };
    let ended = join_all((0..CALLS).map(call)).await.into_iter().collect::<Result<Vec<bool>>>()?;
    assert!(ended.iter().all(|failed| *failed), "nothing can have been stored yet");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    sqlx::raw_sql("ROLLBACK").execute(&mut session).await?;
    let since = Instant::now();
    while api.transact(&someone.token, Api::transfer("afterwards", &accounts[0], &accounts[1], "0.01")).await?.status >= 300 {
        assert!(since.elapsed() < Duration::from_secs(10), "it does not heal");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let row = sqlx::query("SELECT count(*) FROM operations WHERE external_id LIKE 'given up %'").fetch_one(&mut session).await?;
    let stored: i64 = row.try_get(0)?;
    // Three batches were under way at most when their callers gave up.
    assert!(stored <= 3 * 512, "{stored} of {CALLS} were stored after their callers had gone");
    Ok(())
}

/// One replica fails to settle an operation for a reason that is not transient, and before it can write that down another one has completed it.
async fn what_another_replica_completed_stays(rig: &Rig) -> Result<()> {
    let (api, someone, accounts) = rig.someone().await?;
    let database = rig.transactions().await?;
    let poison = "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF abs(NEW.amount) = 66613 THEN PERFORM pg_sleep(0.3); \
                  RAISE EXCEPTION 'poison'; END IF; RETURN NEW; END $$; \
                  CREATE TRIGGER poison BEFORE INSERT ON postings FOR EACH ROW EXECUTE FUNCTION poison()";
    database.writer().execute_unprepared(poison).await?;
    let parked = api.post("/api/v1/transactions", Some(&someone.token), Api::transfer("poison", &accounts[0], &accounts[1], "666.13")).await?;
    let id = uuid::Uuid::parse_str(&parked.text("id")?)?;
    // The other replica: it gets the lock that the failed attempt has just let go of. The worker makes two in a row, with others and alone, and writes
    // down what came of the second.
    let mut other = rig.session().await?;
    let (since, mut waited) = (Instant::now(), 0);
    loop {
        assert!(since.elapsed() < Duration::from_secs(20), "no attempt was met under way");
        sqlx::raw_sql("BEGIN").execute(&mut other).await?;
        let asked = Instant::now();
        sqlx::query("SELECT 1 FROM operations WHERE id = $1 FOR UPDATE").bind(id).execute(&mut other).await?;
        waited = if asked.elapsed() > Duration::from_millis(50) { waited + 1 } else { 0 };
        if waited == 2 {
            break;
        }
        sqlx::raw_sql("ROLLBACK").execute(&mut other).await?;
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    sqlx::query("UPDATE operations SET state = 4, version = version + 1 WHERE id = $1").bind(id).execute(&mut other).await?;
    sqlx::raw_sql("COMMIT").execute(&mut other).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let now = api.get(&format!("/api/v1/transactions/{id}"), Some(&someone.token)).await?;
    assert_eq!(now.text("state")?, "COMPLETED", "{now:?}");
    let dead = sqlx::query("SELECT count(*) FROM dead_letters").fetch_one(&mut other).await?;
    assert_eq!(dead.try_get::<i64, _>(0)?, 0);
    Ok(())
}

/// Operations wait, since somebody holds their account. One of their rows does not read, and one was last tried in the future, since the clock was set
/// back: when the account is free, all but the first settle, with the correlation id of their callers and each event caused by the one before.
async fn what_waited_settles_as_its_caller_would_have(rig: &Rig) -> Result<()> {
    let (api, someone, accounts) = rig.someone().await?;
    let mut other = rig.session().await?;
    sqlx::raw_sql("BEGIN").execute(&mut other).await?;
    let account = uuid::Uuid::parse_str(&accounts[0])?;
    sqlx::query("SELECT 1 FROM balances WHERE account_id = $1 FOR UPDATE").bind(account).execute(&mut other).await?;
    let mut ids = Vec::new();
    for number in 0..5 {
        let headers = [("x-correlation-id", "the-caller"), ("prefer", "respond-async")];
        let body = Api::transfer(&format!("waits {number}"), &accounts[0], &accounts[1], "1.00");
        let answer = api.json(reqwest::Method::POST, "/api/v1/transactions", Some(&someone.token), &headers, Some(body)).await?;
        ids.push(uuid::Uuid::parse_str(&answer.text("id")?)?);
    }
    let mut hand = rig.session().await?;
    sqlx::query("UPDATE operations SET currency_code = '???' WHERE id = $1").bind(ids[1]).execute(&mut hand).await?;
    let in_an_hour = "UPDATE operations SET attempts = 1, update_time_us = update_time_us + 3600000000 WHERE id = $1";
    sqlx::query(in_an_hour).bind(ids[3]).execute(&mut hand).await?;
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await?;
    for (number, id) in ids.iter().enumerate().filter(|(number, _)| *number != 1) {
        let since = Instant::now();
        while api.get(&format!("/api/v1/transactions/{id}"), Some(&someone.token)).await?.text("state")? != "COMPLETED" {
            assert!(since.elapsed() < Duration::from_secs(10), "operation {number} is not settled");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let events = "SELECT e.correlation_id, e.causation_id = lag(e.id) OVER (PARTITION BY e.aggregate_id ORDER BY e.version), e.version \
                  FROM operation_events e JOIN operations o ON o.id = e.aggregate_id WHERE o.external_id LIKE 'waits %'";
    for row in sqlx::query(events).fetch_all(&mut hand).await? {
        assert_eq!(row.try_get::<String, _>(0)?, "the-caller");
        assert_eq!(row.try_get::<Option<bool>, _>(1)?, (row.try_get::<i64, _>(2)? > 1).then_some(true));
    }
    let dead: Vec<uuid::Uuid> = sqlx::query_scalar("SELECT operation_id FROM dead_letters").fetch_all(&mut hand).await?;
    assert_eq!(dead, [ids[1]]);
    Ok(())
}

/// 10,000 accounts for a user, and 20,000 operations that debit them, each like the one whose key is `mine 0`.
pub async fn give_many_operations(hand: &mut sqlx::PgConnection, owner: &str) -> Result<()> {
    let id = |n: &str| {
        format!("(substr(lpad(to_hex({n}), 12, '0'), 1, 8) || '-' || substr(lpad(to_hex({n}), 12, '0'), 9) || '-7000-8000-000000000000')::uuid")
    };
    let (number, account) = (id("n"), id("1 + n % 10000"));
    let many = format!(
        "INSERT INTO accounts (id, owner_id, currency_code, display_name, system, create_time_us) \
           SELECT {number}, '{owner}', 'BRL', '', false, 0 FROM generate_series(1, 10000) n; \
         INSERT INTO balances (account_id, posted, held, version, system, closed) SELECT {number}, 0, 0, 0, false, false FROM generate_series(1, 10000) n; \
         INSERT INTO operations SELECT {number}, o.owner_id, 'many ' || n, o.request_hash, o.kind, o.state, o.reason, o.currency_code, o.amount, {account}, \
           o.destination_account_id, o.description, o.metadata, o.effective_time_us, o.create_time_us, o.update_time_us, o.version, o.hash, o.attempts, \
           o.source_owner_id, NULL FROM operations o, generate_series(1, 20000) n WHERE o.external_id = 'mine 0'; ANALYZE"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(many)).execute(hand).await?;
    Ok(())
}

/// Somebody has 10,000 accounts and 20,000 operations. A page reads about as many rows as it has, and the pages together have each operation once,
/// also one that a replica of an older version stored, without its owners.
async fn a_list_costs_the_same_whatever_there_is(rig: &Rig) -> Result<()> {
    let (api, someone, accounts) = rig.someone().await?;
    let mut hand = rig.session().await?;
    for number in 0..3 {
        let transfer = Api::transfer(&format!("mine {number}"), &accounts[0], &accounts[1], "0.01");
        assert_eq!(api.transact(&someone.token, transfer).await?.status, 201);
    }
    give_many_operations(&mut hand, &someone.id).await?;
    // One of a store that was put together by hand has no owner at all, and is looked at no more than it must.
    let ownerless = "INSERT INTO operations SELECT gen_random_uuid(), owner_id, 'ownerless', request_hash, kind, state, reason, currency_code, amount, \
                     gen_random_uuid(), gen_random_uuid(), description, metadata, \
                     effective_time_us, create_time_us, update_time_us, version, hash, attempts, NULL, NULL FROM operations WHERE external_id = 'mine 0'";
    sqlx::raw_sql(ownerless).execute(&mut hand).await?;
    sqlx::raw_sql("UPDATE operations SET source_owner_id = NULL WHERE external_id IN ('mine 1', 'many 7')").execute(&mut hand).await?;
    let left = "SELECT count(*) FROM operations WHERE source_owner_id IS NULL AND destination_owner_id IS NULL";
    for waited in 0.. {
        let left: i64 = sqlx::query_scalar(left).fetch_one(&mut hand).await?;
        if left == 1 {
            break;
        }
        anyhow::ensure!(waited < 100, "{left} operations have no owner yet");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let updated = "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'operations'";
    let updates_before: i64 = sqlx::query_scalar(updated).fetch_one(&mut hand).await?;
    let read = "SELECT (sum(idx_tup_read) + (SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname = 'operations'))::bigint \
                FROM pg_stat_user_indexes WHERE relname = 'operations'";
    let before: i64 = sqlx::query_scalar(read).fetch_one(&mut hand).await?;
    for _ in 0..10 {
        let page = api.get("/api/v1/transactions?pageSize=50", Some(&someone.token)).await?;
        assert_eq!(page.body["transactions"].as_array().map(Vec::len), Some(50), "{page:?}");
    }
    // A session that is idle tells within 10 s what it has read.
    let mut after = before;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        after = sqlx::query_scalar(read).fetch_one(&mut hand).await?;
        if after - before >= 500 {
            break;
        }
    }
    let updates_after: i64 = sqlx::query_scalar(updated).fetch_one(&mut hand).await?;
    assert_eq!(updates_after, updates_before, "what has no owner is updated again and again");
    assert!((500..=1500).contains(&(after - before)), "{} rows were read for 10 pages of 50", after - before);
    let (mut found, mut token) = (std::collections::HashSet::new(), String::new());
    loop {
        let page = api.get(&format!("/api/v1/transactions?pageSize=1000&pageToken={token}"), Some(&someone.token)).await?;
        for one in page.body["transactions"].as_array().context("a list")? {
            assert!(found.insert(one["id"].to_string()), "{one} is there twice");
        }
        token = page.text("nextPageToken")?;
        if token.is_empty() {
            break;
        }
    }
    // The deposit that `two_accounts` made is one, too.
    let all: i64 = sqlx::query_scalar("SELECT count(*) FROM operations WHERE external_id <> 'ownerless'").fetch_one(&mut hand).await?;
    assert_eq!(found.len() as i64, all);
    // A filter that leaves out nearly everything looks at 2,000 rows a page, and its tokens lead to all that fit.
    sqlx::raw_sql(
        "UPDATE operations SET state = 7 WHERE external_id LIKE 'many %' AND substr(external_id, 6)::int <= 5000; \
         UPDATE operations SET state = 5 WHERE external_id IN ('many 1', 'many 2500', 'many 5000')",
    )
    .execute(&mut hand)
    .await?;
    let (mut rejected, mut pages, mut token) = (0, 0, String::new());
    loop {
        let page = api.get(&format!("/api/v1/transactions?state=REJECTED&pageToken={token}"), Some(&someone.token)).await?;
        rejected += page.body["transactions"].as_array().context("a list")?.len();
        pages += 1;
        token = page.text("nextPageToken")?;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!((rejected, pages), (3, 3), "of 5,000 that are not completed");
    Ok(())
}

fn deposit(key: usize, account: &str) -> serde_json::Value {
    json!({ "externalId": format!("d{key}"), "type": "DEPOSIT", "destinationAccountId": account, "amount": { "currencyCode": "BRL", "amount": "10000000000000.00" } })
}

/// A stripe of the clearing account that has no room is left out; only when none has room is a deposit refused.
async fn full_stripes_are_left_out(rig: &Rig) -> Result<()> {
    let (api, someone, accounts) = rig.someone().await?;
    let administrator = rig.server.administrator().await?;
    let database = rig.transactions().await?;
    let fill = async |below: u8| {
        let sql = format!(
            "UPDATE balances SET posted = -9223372036854775000 WHERE account_id IN (SELECT id FROM accounts WHERE currency_code = 'BRL' AND stripe < {below})"
        );
        database.writer().execute_unprepared(&sql).await
    };
    let too_much = json!({ "externalId": "much", "type": "DEPOSIT", "destinationAccountId": accounts[0], "amount": { "currencyCode": "BRL", "amount": "92233720368547700.00" } });
    let refused = api.transact(&administrator, too_much).await?;
    assert_eq!((refused.status, refused.body["errors"][0]["field"].clone()), (400, json!("amount")), "{refused:?}");
    fill(13).await?;
    // All at once and one by one, so that batches of every size meet them.
    let together = join_all((0..40).map(|key| api.transact(&administrator, deposit(key, &accounts[0])))).await;
    let mut answers: Vec<Answer> = together.into_iter().collect::<Result<_>>()?;
    for key in 40..60 {
        answers.push(api.transact(&administrator, deposit(key, &accounts[1])).await?);
    }
    for answer in &answers {
        assert_eq!(answer.text("state")?, "COMPLETED", "{answer:?}");
    }
    fill(16).await?;
    let full = api.transact(&administrator, deposit(60, &accounts[0])).await?;
    assert_eq!((full.text("state")?, full.text("reason")?), ("REJECTED".to_owned(), "BALANCE_OVERFLOW".to_owned()), "{full:?}");
    // Money that goes out makes room, and transfers need none.
    let transfer = api.transact(&someone.token, Api::transfer("t", &accounts[0], &accounts[1], "1.00")).await?;
    assert_eq!(transfer.text("state")?, "COMPLETED");
    Ok(())
}

/// A unique violation that is not of a key is no repetition: it is told, and others go on.
async fn another_unique_violation_ends(rig: &Rig) -> Result<()> {
    let (api, someone, accounts) = rig.someone().await?;
    rig.transactions().await?.writer().execute_unprepared("CREATE UNIQUE INDEX odd ON operations (amount) WHERE amount = 77777").await?;
    let transfer = |key: String, amount: &str| {
        let body = Api::transfer(&key, &accounts[0], &accounts[1], amount);
        let (api, token) = (api.clone(), someone.token.clone());
        async move { api.transact(&token, body).await }
    };
    assert_eq!(transfer("first".to_owned(), "777.77").await?.status, 201);
    let started = Instant::now();
    let all = join_all((0..20).map(|number| transfer(format!("n{number}"), if number == 7 { "777.77" } else { "0.01" }))).await;
    for (number, answer) in all.into_iter().enumerate() {
        let (answer, expected) = (answer?, if number == 7 { 503 } else { 201 });
        assert_eq!(answer.status, expected, "{number}: {answer:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    Ok(())
}

/// Somebody repeats old keys, which this process has never seen, as fast as it can, while another one pays.
async fn old_keys_repeated_hold_nobody_up(rig: &Rig) -> Result<()> {
    let (api, someone, accounts) = rig.someone().await?;
    let body = |number: usize| Api::transfer(&format!("old {number}"), &accounts[0], &accounts[1], "0.01");
    let made = join_all((0..150).map(|number| api.transact(&someone.token, body(number)))).await.into_iter().collect::<Result<Vec<Answer>>>()?;
    let again =
        join_all((0..450).map(|number| api.transact(&someone.token, body(number % 150)))).await.into_iter().collect::<Result<Vec<Answer>>>()?;
    for (number, answer) in again.iter().enumerate() {
        assert_eq!((answer.status, &answer.body["id"]), (200, &made[number % 150].body["id"]), "{answer:?}");
    }
    let mut changed = body(3);
    changed["amount"]["amount"] = json!("0.02");
    assert_eq!(api.transact(&someone.token, changed).await?.text("reason")?, "IDEMPOTENCY_KEY_REUSED");
    Ok(())
}

/// More holds than are released in one transaction do not read. Those of others are released in time, and whoever lacks money on that account is told so.
async fn stuck_holds_keep_nobody(rig: &Rig) -> Result<()> {
    let hold = |key: &str, accounts: &[String; 2], expiry: &str| {
        let mut body = Api::transfer(key, &accounts[0], &accounts[1], "0.01");
        (body["hold"], body["holdExpiry"]) = (json!(true), json!(expiry));
        body
    };
    let (api, eve, of_eve) = rig.someone().await?;
    let held = join_all((0..450).map(|number| api.transact(&eve.token, hold(&format!("stuck {number}"), &of_eve, "3s")))).await;
    for answer in held {
        assert_eq!(answer?.body["state"], "AUTHORIZED");
    }
    rig.transactions().await?.writer().execute_unprepared("UPDATE operations SET currency_code = 'ZZZ' WHERE state = 3").await?;
    let (_, ana, of_ana) = rig.someone().await?;
    let later = api.transact(&ana.token, hold("later", &of_ana, "3s")).await?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let stands = api.get(&format!("/api/v1/transactions/{}", later.text("id")?), Some(&ana.token)).await?;
    assert_eq!(stands.body["state"], "EXPIRED", "{stands:?}");
    let too_much = api.transact(&eve.token, Api::transfer("too much", &of_eve[0], &of_eve[1], "99999999.00")).await?;
    assert_eq!((too_much.status, &too_much.body["reason"]), (201, &json!("INSUFFICIENT_FUNDS")), "{too_much:?}");
    Ok(())
}

/// While nothing can be stored, one user's batches have far more members than may wait. Those of others who ask for one transaction find their places.
async fn batches_leave_places(rig: &Rig) -> Result<()> {
    let (api, eve, of_eve) = rig.someone().await?;
    let (_, ana, of_ana) = rig.someone().await?;
    let mut session = rig.session().await?;
    sqlx::raw_sql("BEGIN; LOCK TABLE operations IN ACCESS EXCLUSIVE MODE").execute(&mut session).await?;
    let batches = join_all((0..20).map(|number| {
        let requests = (0..1000).map(|index| Api::transfer(&format!("{number}-{index}"), &of_eve[0], &of_eve[1], "0.01"));
        let body = json!({ "requests": requests.collect::<Vec<_>>() });
        let (api, token) = (&api, &eve.token);
        async move { api.post("/api/v1/transactions:batchCreate", Some(token), body).await }
    }));
    let channel = rig.server.front().channel().await?;
    let others = async {
        // When the batches have come.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let call = async |number: usize| {
            let request = transfer_request(&ana, &format!("one {number}"), [&of_ana[0], &of_ana[1]], Duration::from_secs(5))?;
            anyhow::Ok(TransactionsServiceClient::new(channel.clone()).create_transaction(request).await)
        };
        let unlock = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            sqlx::raw_sql("ROLLBACK").execute(&mut session).await
        };
        let (answers, unlocked) = tokio::join!(join_all((0..40).map(call)), unlock);
        unlocked?;
        answers.into_iter().collect::<Result<Vec<_>>>()
    };
    let (_, others) = tokio::join!(batches, others);
    for answer in others? {
        assert!(answer.is_ok(), "{answer:?}");
    }
    Ok(())
}

/// Far more calls wait than are handled at once, over REST and gRPC. Others are served meanwhile, and nobody asks the database for what is waited for.
async fn who_waits_takes_no_place(rig: &Rig) -> Result<()> {
    const EACH: usize = 100;
    const COME_AGAIN: usize = 5;
    const COME_AGAIN_AFTER: Duration = Duration::from_millis(250);
    let (api, someone, accounts) = rig.someone().await?;
    let provider = rig.server.front().provider().await?;
    let channel = rig.server.front().channel().await?;
    let mut session = rig.session().await?;
    let over_rest = (0..EACH).map(|number| {
        let body = external_deposit(&format!("rest {number}"), &accounts[0], "1.00");
        let (api, token) = (api.clone(), provider.token.clone());
        tokio::spawn(async move {
            // So many at once are as many as there are places, until they wait.
            tokio::time::sleep(Duration::from_millis(10 * number as u64)).await;
            let ask = || api.json(reqwest::Method::POST, "/api/v1/transactions", Some(&token), &[("prefer", "wait=30")], Some(body.clone()));
            let mut answer = ask().await;
            // On a busy machine more come than have begun to wait. Whoever held a place while it waits would hold it for longer than this.
            for _ in 0..COME_AGAIN {
                if answer.as_ref().is_ok_and(|answer| answer.status != 503) {
                    break;
                }
                tokio::time::sleep(COME_AGAIN_AFTER).await;
                answer = ask().await;
            }
            answer
        })
    });
    let over_rest: Vec<_> = over_rest.collect();
    let over_grpc = (0..EACH).map(|number| {
        let (channel, token, account) = (channel.clone(), provider.token.clone(), accounts[0].clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(10 * number as u64)).await;
            let request = CreateTransactionRequest {
                external_id: format!("grpc {number}"),
                r#type: Type::Deposit as i32,
                destination_account_id: Some(account),
                amount: Some(Money { currency_code: "BRL".to_owned(), amount: "1.00".to_owned() }),
                settlement: Settlement::External as i32,
                wait: Some(pbjson_types::Duration { seconds: 30, nanos: 0 }),
                ..CreateTransactionRequest::default()
            };
            let mut answer = TransactionsServiceClient::new(channel.clone()).create_transaction(with_token(&token, request.clone())?).await;
            for _ in 0..COME_AGAIN {
                if answer.as_ref().err().is_none_or(|status| status.code() != tonic::Code::Unavailable) {
                    break;
                }
                tokio::time::sleep(COME_AGAIN_AFTER).await;
                answer = TransactionsServiceClient::new(channel.clone()).create_transaction(with_token(&token, request.clone())?).await;
            }
            anyhow::Ok(answer?.into_inner())
        })
    });
    let over_grpc: Vec<_> = over_grpc.collect();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let since = Instant::now();
    for number in 0..40 {
        let answer = api.transact(&someone.token, Api::transfer(&format!("meanwhile {number}"), &accounts[0], &accounts[1], "0.01")).await?;
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    assert!(since.elapsed() < Duration::from_secs(5), "they waited for those that wait: {:?}", since.elapsed());
    let mut fetched = async || {
        // What sessions have counted is told once a second at most.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let sql = "SELECT coalesce(idx_tup_fetch, 0) + coalesce(seq_tup_read, 0) FROM pg_stat_user_tables WHERE relname = 'operations'";
        anyhow::Ok(sqlx::query(sql).fetch_one(&mut session).await?.try_get::<i64, _>(0)?)
    };
    let before = fetched().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let read = fetched().await? - before;
    // Once in 5 s each is looked at, for what is lost without a trace. Each asking four times a second would be 2,500 rows.
    assert!(read <= 3 * EACH as i64, "{read} rows of operations were read while {} calls waited", 2 * EACH);
    // Eight at once, so that the last is told in time on a slow machine too.
    let keys = (0..EACH).flat_map(|number| [format!("rest {number}"), format!("grpc {number}")]);
    let reports = keys.map(|key| {
        let (api, token) = (&api, &provider.token);
        async move { report(api, token, &key, "SETTLED", json!({})).await }
    });
    futures_util::stream::iter(reports).buffer_unordered(8).try_collect::<Vec<_>>().await?;
    for answer in over_rest {
        let answer = answer.await??;
        assert_eq!((answer.status, &answer.body["state"]), (201, &json!("COMPLETED")), "{answer:?}");
    }
    for answer in over_grpc {
        assert_eq!(answer.await??.state(), State::Completed);
    }
    Ok(())
}
