//! What only the stack has: certificates between services, nginx before them, ids that run through every log, and customers away.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lastro_proto::customers::v1::GetJwksRequest;
use lastro_proto::customers::v1::auth_service_client::AuthServiceClient;
use lastro_proto::internal::customers::v1::ListRevocationsRequest;
use lastro_proto::internal::customers::v1::identity_service_client::IdentityServiceClient;
use lastro_proto::transactions::v1::accounts_service_client::AccountsServiceClient;
use lastro_proto::transactions::v1::transaction::State;
use lastro_proto::transactions::v1::transactions_service_client::TransactionsServiceClient;
use lastro_proto::transactions::v1::{CreateAccountRequest, ListAccountsRequest};
use lastro_tests::client::Someone;
use lastro_tests::stack::Options;
use lastro_tests::{Api, Stack, server};
use libtest_mimic::Trial;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Connection as _;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::faults::two_accounts;
use crate::ha::{Outcome, over_grpc, over_rest, transfer_request};
use crate::{World, block_on, failed};

pub fn trials(world: impl Fn() -> Result<Arc<World>> + Clone + Send + 'static) -> Vec<Trial> {
    let shared = |name: &str, journey: fn(&World) -> Result<()>| {
        let world = world.clone();
        Trial::test(format!("stack::edge::{name}"), move || failed(world().and_then(|world| journey(&world))))
    };
    vec![
        shared("one_id_runs_through_every_log", |world| block_on(one_id_runs_through_every_log(world))),
        shared("callers_prove_who_they_are", |world| block_on(callers_prove_who_they_are(world))),
        shared("headers_prove_nothing", |world| block_on(headers_prove_nothing(world))),
        shared("nothing_internal_is_outside", |world| block_on(nothing_internal_is_outside(world))),
        shared("services_may_not_change_tables", |world| block_on(services_may_not_change_tables(world))),
        Trial::test("stack::edge::nginx_speaks_the_callers_language", || failed(block_on(nginx_speaks_the_callers_language()))),
        Trial::test("stack::edge::frozen_replicas_and_long_waits", || failed(block_on(frozen_replicas_and_long_waits()))),
        Trial::test("stack::edge::a_frozen_replica_learns_what_it_missed", || failed(block_on(a_frozen_replica_learns_what_it_missed()))),
        Trial::test("stack::edge::what_one_is_refused_closes_no_gateway", || failed(block_on(what_one_is_refused_closes_no_gateway()))),
        Trial::test("stack::edge::customers_away", || failed(block_on(customers_away()))),
    ]
}

/// The lines of a log that bear a correlation id.
fn lines_with(log: &str, correlation_id: &str) -> Vec<Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["correlationId"] == correlation_id).collect()
}

async fn one_id_runs_through_every_log(world: &World) -> Result<()> {
    let (stack, api) = (world.stack(), world.server.api());
    let someone = api.someone().await?;
    let (given, trace) = ("my-own.id_1".to_owned() + &uuid::Uuid::new_v4().simple().to_string()[..8], "4bf92f3577b34da6a3ce929d0e0e4736");
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let open = async |headers: &[(&str, &str)]| {
        api.json(Method::POST, "/api/v1/accounts", Some(&someone.token), headers, Some(json!({ "currencyCode": "BRL", "displayName": "x" }))).await
    };
    let with_ids = open(&[("x-correlation-id", &given), ("traceparent", &parent)]).await?;
    let without = open(&[]).await?;
    let malformed = open(&[("x-correlation-id", "not one!"), ("traceparent", "00-0-0-0")]).await?;
    assert_eq!((with_ids.status, with_ids.header("x-correlation-id")), (201, given.as_str()));
    assert_eq!(with_ids.header("traceresponse").split('-').nth(1), Some(trace), "{with_ids:?}");
    assert_ne!(malformed.header("x-correlation-id"), "not one!");
    for answer in [&with_ids, &without, &malformed] {
        assert_eq!(answer.headers.get_all("x-correlation-id").iter().count(), 1, "{answer:?}");
        let trace = answer.header("traceresponse");
        // Opening an account goes through all of them: customers confirms the owner.
        is_in_the_logs(stack, answer.header("x-correlation-id"), trace, &["nginx", "gateway", "transactions", "customers"]).await?;
    }

    // gRPC goes straight to transactions.
    let mut accounts = AccountsServiceClient::new(world.server.channel().await?);
    for (id, parent) in [(given.as_str(), parent.as_str()), ("", ""), ("not one!", "00-0-0-0")] {
        let mut request =
            tonic::Request::new(CreateAccountRequest { currency_code: "BRL".to_owned(), display_name: "x".to_owned(), external_id: String::new() });
        request.metadata_mut().insert("authorization", format!("Bearer {}", someone.token).parse()?);
        for (name, value) in [("x-correlation-id", id), ("traceparent", parent)] {
            if !value.is_empty() {
                request.metadata_mut().insert(name, value.parse()?);
            }
        }
        let opened = accounts.create_account(request).await?;
        let told = |name: &str| opened.metadata().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        assert_eq!(opened.metadata().get_all("x-correlation-id").iter().count(), 1, "{opened:?}");
        assert!(if id == given { told("x-correlation-id") == id } else { told("x-correlation-id") != id }, "{opened:?}");
        is_in_the_logs(stack, told("x-correlation-id"), told("traceresponse"), &["nginx", "transactions", "customers"]).await?;
    }
    Ok(())
}

/// Each of these services, whichever its replica, wrote a line with both ids. Logs are written in the background.
async fn is_in_the_logs(stack: &Stack, id: &str, traceresponse: &str, services: &[&str]) -> Result<()> {
    let trace = traceresponse.split('-').nth(1).context("a trace")?;
    for service in services {
        let since = Instant::now();
        loop {
            let names = stack.names().into_iter().filter(|name| name.starts_with(service));
            let names: Vec<String> = if *service == "nginx" { vec!["nginx".to_owned()] } else { names.collect() };
            let logs = names.iter().map(|name| stack.log(name)).collect::<Result<Vec<_>>>()?.join("\n");
            let found = lines_with(&logs, id);
            if found.iter().any(|line| line["metadata"]["traceId"] == trace && line["service"] == *service) {
                for field in ["timestamp", "level", "message"] {
                    assert!(found[0][field].is_string(), "{field} in {}", found[0]);
                }
                break;
            }
            assert!(since.elapsed() < Duration::from_secs(5), "{id} and {trace} are not in the log of {service}: {found:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// A connection to a replica itself, past nginx, as the service that the certificate names; as nobody without one.
fn connect(stack: &Stack, replica: &str, certs: &Path, caller: Option<&str>) -> Result<Channel> {
    let read = |name: String| std::fs::read(certs.join(name));
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(std::fs::read(stack.path("certs/ca.pem"))?));
    tls = tls.domain_name(replica.split('-').next().unwrap_or_default());
    if let Some(caller) = caller {
        tls = tls.identity(Identity::from_pem(read(format!("{caller}.pem"))?, read(format!("{caller}.key"))?));
    }
    Ok(Endpoint::new(format!("https://{}", stack.address(replica)))?.tls_config(tls)?.connect_lazy())
}

async fn callers_prove_who_they_are(world: &World) -> Result<()> {
    let (stack, certs) = (world.stack(), world.stack().path("certs"));
    let foreign = tempfile::tempdir()?;
    let foreign = foreign.path().join("certs");
    lastro_tests::run(std::process::Command::new(server::binary()?).arg("certs").arg(&foreign))?;
    let jwks = async |channel: Channel| AuthServiceClient::new(channel).get_jwks(GetJwksRequest {}).await.map(|_| ());
    let revocations = async |channel: Channel| {
        IdentityServiceClient::new(channel).list_revocations(ListRevocationsRequest { cursor: String::new() }).await.map(|_| ())
    };
    let accounts = async |channel: Channel| AccountsServiceClient::new(channel).list_accounts(ListAccountsRequest::default()).await.map(|_| ());

    // Without a certificate of our authority not even a public method answers.
    for (certs, caller) in [(&certs, None), (&foreign, Some("operator"))] {
        let refused = jwks(connect(stack, "customers-1", certs, caller)?).await.expect_err("refused");
        // The handshake fails; tonic's client finds different words for that.
        assert!([Code::Unavailable, Code::Unknown, Code::Cancelled].contains(&refused.code()), "{refused:?}");
    }
    let plain = Endpoint::new(format!("http://{}", stack.address("customers-1")))?.connect_lazy();
    assert!(jwks(plain).await.is_err());
    let rest = reqwest::Client::builder().tls_certs_only([reqwest::Certificate::from_pem(&std::fs::read(certs.join("ca.pem"))?)?]);
    let rest = rest.tls_danger_accept_invalid_hostnames(true).build()?;
    assert!(rest.get(format!("https://{}/livez", stack.address("gateway-1"))).send().await.is_err());

    // With one, a service may call what the policy lists.
    let denied = |outcome: Result<(), Status>| outcome.expect_err("denied").code() == Code::PermissionDenied;
    assert!(denied(revocations(connect(stack, "customers-1", &certs, Some("edge"))?).await), "the edge has public methods only");
    assert!(denied(revocations(connect(stack, "customers-1", &certs, Some("gateway"))?).await));
    assert!(denied(accounts(connect(stack, "transactions-1", &certs, Some("transactions"))?).await));
    revocations(connect(stack, "customers-1", &certs, Some("transactions"))?).await?;
    revocations(connect(stack, "customers-2", &certs, Some("operator"))?).await?;
    jwks(connect(stack, "customers-1", &certs, Some("edge"))?).await?;
    // What a service may call is still the user's to do: its token is verified again.
    let without_token = accounts(connect(stack, "transactions-1", &certs, Some("operator"))?).await;
    assert_eq!(without_token.expect_err("no token").code(), Code::Unauthenticated);
    // customers is in no policy as a caller: its connections are refused.
    assert!(jwks(connect(stack, "customers-1", &certs, Some("customers"))?).await.is_err());
    Ok(())
}

async fn headers_prove_nothing(world: &World) -> Result<()> {
    let (stack, api) = (world.stack(), world.server.api());
    let (someone, other) = (api.someone().await?, api.someone().await?);
    let id = format!("forged-{}", uuid::Uuid::new_v4().simple());
    let forged = [
        ("x-user-id", other.id.as_str()),
        ("x-forwarded-for", "203.0.113.7"),
        ("x-real-ip", "203.0.113.7"),
        ("forwarded", "for=203.0.113.7"),
        ("x-lastro-client-address", "203.0.113.7"),
        ("x-correlation-id", &id),
    ];
    let me = api.json(Method::GET, "/api/v1/users/me", Some(&someone.token), &forged, None).await?;
    assert_eq!((me.status, me.text("id")?), (200, someone.id));
    assert_eq!(api.json(Method::GET, "/api/v1/users/me", None, &forged, None).await?.status, 401);
    let since = Instant::now();
    loop {
        let logs = stack.log("gateway-1")? + &stack.log("gateway-2")?;
        if let Some(line) = lines_with(&logs, &id).iter().find(|line| line["message"] == "request") {
            assert_eq!(line["metadata"]["address"], "127.0.0.1", "{line}");
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(5), "the request is not in the log");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn nothing_internal_is_outside(world: &World) -> Result<()> {
    let api = world.server.api();
    for path in ["/metrics", "/lastro.internal.customers.v1.IdentityService/ListRevocations", "/debug", "/ops/metrics"] {
        for method in [Method::GET, Method::POST] {
            assert_eq!(api.send(method, path, &[], None).await?.status, 404, "{path}");
        }
    }
    let channel = world.server.channel().await?;
    let revocations = IdentityServiceClient::new(channel.clone()).list_revocations(ListRevocationsRequest { cursor: String::new() }).await;
    assert_eq!(revocations.expect_err("not outside").code(), Code::Unimplemented);
    // Reflection, while its setting is on, tells of nothing internal: the journey with grpcurl looks.
    Ok(())
}

async fn services_may_not_change_tables(world: &World) -> Result<()> {
    use sea_orm::ConnectionTrait as _;
    for service in ["customers", "transactions"] {
        let url = std::fs::read_to_string(world.stack().path(&format!("{service}.url")))?;
        let own = lastro_database::Database::connect_postgres(&url.trim().parse()?, &format!("lastro_{service}"), 4)?;
        own.ping().await?;
        let events = if service == "customers" { "user_events" } else { "operation_events" };
        let insert = "INSERT INTO signing_keys (kid, private_key, public_key, state, create_time_us) VALUES ('x', '', '', '', 0)";
        let forbidden = [
            "CREATE TABLE mine (x int)".to_owned(),
            format!("ALTER TABLE {events} DISABLE TRIGGER ALL"),
            format!("DROP TABLE {events}"),
            format!("TRUNCATE {events}"),
            format!("DELETE FROM {events}"),
            format!("UPDATE {events} SET version = 0"),
            "DELETE FROM seaql_migrations".to_owned(),
            if service == "customers" { insert.to_owned() } else { "DELETE FROM postings".to_owned() },
        ];
        for sql in forbidden {
            let refused = own.writer().execute_unprepared(&sql).await.expect_err(&sql).to_string();
            assert!(refused.contains("permission denied") || refused.contains("must be owner"), "{sql}: {refused}");
        }
        // Nor see another service's database.
        let others = if service == "customers" { "lastro_transactions" } else { "lastro_customers" };
        assert!(lastro_database::Database::connect_postgres(&url.trim().parse()?, others, 4)?.ping().await.is_err());
    }
    // A second run of the command changes nothing: whoever has a token keeps it.
    let someone = world.server.api().someone().await?;
    world.stack().migrate()?;
    assert_eq!(world.server.api().get("/api/v1/users/me", Some(&someone.token)).await?.status, 200);
    Ok(())
}

fn check_unavailable(status: &Status) {
    let details = status.get_error_details();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(details.retry_info().is_some_and(|info| info.retry_delay.is_some()), "{status:?}");
    assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("UNAVAILABLE"));
}

async fn nginx_speaks_the_callers_language() -> Result<()> {
    let stack = Stack::start(Options { reflection: false, rate_per_second: 20, ..Options::default() })?;
    let (front, api) = (stack.front(), stack.front().api());
    let mut auth = AuthServiceClient::new(front.channel().await?);
    auth.get_jwks(GetJwksRequest {}).await?;

    // Reflection is off.
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    let question = futures_util::stream::iter([ServerReflectionRequest::default()]);
    let refused = ServerReflectionClient::new(front.channel().await?).server_reflection_info(question).await;
    assert_eq!(refused.expect_err("off").code(), Code::Unimplemented);

    // Too many from one address.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let many = futures_util::future::join_all((0..120).map(|_| api.get("/livez", None))).await;
    let limited = many.into_iter().filter_map(Result::ok).find(|answer| answer.status == 429).context("nobody was limited")?;
    assert_eq!((limited.header("content-type"), limited.body["reason"].clone()), ("application/problem+json", json!("RATE_LIMITED")));
    assert!(!limited.header("retry-after").is_empty() && limited.text("correlationId")? == limited.header("x-correlation-id"));
    let mut exhausted = None;
    for _ in 0..200 {
        exhausted = auth.get_jwks(GetJwksRequest {}).await.err().or(exhausted);
    }
    let exhausted = exhausted.context("nobody was limited over gRPC")?;
    assert_eq!(exhausted.code(), Code::ResourceExhausted, "{exhausted:?}");
    assert_eq!(exhausted.get_error_details().error_info().map(|info| info.reason.as_str()), Some("RATE_LIMITED"));

    // Too large.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let large = api.send(Method::POST, "/api/v1/users", &[("content-type", "application/json")], Some("x".repeat((1 << 20) + 1))).await?;
    assert_eq!((large.status, large.body["reason"].clone()), (413, json!("BODY_TOO_LARGE")));

    // Nobody there.
    for name in stack.names() {
        stack.kill(&name)?;
    }
    let since = Instant::now();
    check_unavailable(&auth.get_jwks(GetJwksRequest {}).await.expect_err("nobody is there"));
    let answer = api.get("/api/v1/users/me", None).await?;
    assert_eq!((answer.status, answer.header("content-type")), (503, "application/problem+json"));
    assert_eq!((answer.body["reason"].clone(), answer.header("retry-after")), (json!("UNAVAILABLE"), "1"));
    assert_eq!((answer.header("x-frame-options"), answer.text("correlationId")?.as_str()), ("DENY", answer.header("x-correlation-id")));
    assert!(since.elapsed() < Duration::from_secs(2), "who is not there is not waited for: {:?}", since.elapsed());
    Ok(())
}

/// Whether a replica's breaker towards customers is closed.
async fn is_closed(stack: &Stack, replica: &str) -> Result<bool> {
    const BREAKER: &str = "lastro_breaker_state{target=\"customers\",class=\"read\"}";
    let metrics = Api::new(&format!("http://{}", stack.ops(replica))).get("/metrics", None).await?;
    let text = metrics.body.as_str().unwrap_or_default().to_owned();
    let found = text.lines().find_map(|line| line.strip_prefix(BREAKER)).with_context(|| format!("no {BREAKER} in {text}"))?;
    Ok(found.trim() == "0")
}

/// Somebody else holds an account for seven seconds: what is asked to wait for six ends undecided, what waits longer is decided.
async fn long_waits(stack: &Stack, someone: &lastro_tests::client::Someone, [from, to]: [&str; 2], attempt: usize) -> Result<()> {
    let (front, api) = (stack.front(), stack.front().api());
    let url = format!("{}/lastro_transactions", stack.postgres.url());
    let mut holder = sqlx::PgConnection::connect(&url).await?;
    sqlx::raw_sql("BEGIN").execute(&mut holder).await?;
    sqlx::query("SELECT 1 FROM balances WHERE account_id = $1 FOR UPDATE").bind(from.parse::<uuid::Uuid>()?).execute(&mut holder).await?;
    let by_rest = async |key: &str, prefer: &str, wait: &str| {
        let mut body = Api::transfer(&format!("{key} {attempt}"), from, to, "0.01");
        body["wait"] = json!(wait);
        let started = Instant::now();
        let answer = api.json(Method::POST, "/api/v1/transactions", Some(&someone.token), &[("prefer", prefer)], Some(body)).await?;
        anyhow::Ok((answer.status, answer.text("state")?, started.elapsed()))
    };
    let by_grpc = async |key: &str, wait: i64, deadline: u64| {
        let mut request = transfer_request(someone, &format!("{key} {attempt}"), [from, to], Duration::from_secs(deadline))?;
        request.get_mut().wait = Some(pbjson_types::Duration { seconds: wait, nanos: 0 });
        let (started, mut client) = (Instant::now(), TransactionsServiceClient::new(front.channel().await?));
        let made = client.create_transaction(request).await?.into_inner();
        anyhow::Ok((made.state(), started.elapsed()))
    };
    let release = async {
        tokio::time::sleep(Duration::from_secs(7)).await;
        sqlx::raw_sql("ROLLBACK").execute(&mut holder).await
    };
    let (preferred, in_body, short, deadline, long, long_rest, released) = tokio::join!(
        by_rest("preferred", "wait=6", "0s"),
        by_rest("in the body", "", "6s"),
        by_grpc("six", 6, 20),
        by_grpc("the deadline", 30, 6),
        by_grpc("long", 30, 35),
        by_rest("long over REST", "", "30s"),
        release
    );
    released?;
    let about_six = |elapsed: Duration| (5800..7000).contains(&elapsed.as_millis());
    for (status, state, elapsed) in [preferred?, in_body?] {
        assert!(status == 202 && state == "PENDING" && about_six(elapsed), "{status} {state} {elapsed:?}");
    }
    for (state, elapsed) in [short?, deadline?] {
        assert!(state == State::Pending && about_six(elapsed), "{state:?} {elapsed:?}");
    }
    let ((state, elapsed), (status, said, elapsed_rest)) = (long?, long_rest?);
    assert!(state == State::Completed && elapsed > Duration::from_secs(7), "{state:?} {elapsed:?}");
    assert!((status, said.as_str()) == (201, "COMPLETED") && elapsed_rest > Duration::from_secs(7), "{status} {said} {elapsed_rest:?}");
    Ok(())
}

/// nginx gives a silent replica up within the deadline of those who wait for it, and yet lets a call wait for long.
async fn frozen_replicas_and_long_waits() -> Result<()> {
    let stack = Stack::start(Options::default())?;
    let (front, api) = (stack.front(), stack.front().api());
    let (someone, accounts) = two_accounts(&front).await?;
    let (from, to) = (accounts[0].as_str(), accounts[1].as_str());

    // On a machine that is busy with other journeys an answer may come too late for its deadline.
    for attempt in 1..=3 {
        match long_waits(&stack, &someone, [from, to], attempt).await {
            Err(error) if attempt < 3 => eprintln!("long waits, attempt {attempt}: {error:#}"),
            waited => {
                waited?;
                break;
            }
        }
    }

    // Frozen: nginx notices when nothing comes.
    stack.signal("gateway-1", "STOP")?;
    stack.signal("transactions-1", "STOP")?;
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..24 {
        let (api, channel, someone, accounts) = (api.clone(), front.channel().await?, someone.clone(), accounts.clone());
        calls.spawn(async move {
            let (key, accounts, started) = (format!("frozen {number}"), [accounts[0].as_str(), accounts[1].as_str()], Instant::now());
            let outcome =
                if number % 2 == 0 { over_rest(&api, &someone, &key, accounts).await } else { over_grpc(&channel, &someone, &key, accounts).await };
            (outcome, started.elapsed())
        });
    }
    let ended = calls.join_all().await;
    stack.signal("gateway-1", "CONT")?;
    stack.signal("transactions-1", "CONT")?;
    for (outcome, elapsed) in &ended {
        assert!(matches!(outcome, Outcome::Accepted(_) | Outcome::Refused(_)) && *elapsed < Duration::from_secs(5), "{outcome:?} after {elapsed:?}");
    }
    assert!(ended.iter().any(|(outcome, _)| matches!(outcome, Outcome::Refused(_))), "some of them must have met a frozen replica: {ended:?}");
    all_were_away(&stack, &someone, [from, to]).await
}

/// When no replica took what came, and they are back, nobody is refused because of those who came before.
async fn all_were_away(stack: &Stack, someone: &Someone, accounts: [&str; 2]) -> Result<()> {
    let (front, api) = (stack.front(), stack.front().api());
    let replicas = ["gateway-1", "gateway-2", "transactions-1", "transactions-2"];
    replicas.iter().try_for_each(|name| stack.signal(name, "STOP"))?;
    let channel = front.channel().await?;
    let keys: Vec<String> = (0..12).map(|number| format!("all frozen {number}")).collect();
    let by_rest = futures_util::future::join_all(keys.iter().map(|key| over_rest(&api, someone, key, accounts)));
    let by_grpc = futures_util::future::join_all(keys.iter().map(|key| over_grpc(&channel, someone, key, accounts)));
    let (by_rest, by_grpc) = tokio::join!(by_rest, by_grpc);
    replicas.iter().try_for_each(|name| stack.signal(name, "CONT"))?;
    for outcome in by_rest.iter().chain(&by_grpc) {
        assert!(!matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    }
    let after = [over_rest(&api, someone, "after all", accounts).await, over_grpc(&channel, someone, "after all", accounts).await];
    assert!(after.iter().all(|outcome| matches!(outcome, Outcome::Accepted(_))), "they are back: {after:?}");
    Ok(())
}

/// What a process wrote last.
fn last_lines(stack: &Stack, name: &str) -> Vec<String> {
    let log = stack.log(name).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(20)).map(|line| (*line).to_owned()).collect()
}

async fn customers_away() -> Result<()> {
    let stack = Stack::start(Options::default())?;
    let (front, api) = (stack.front(), stack.front().api());
    let (someone, accounts) = two_accounts(&front).await?;
    let open = async || api.post("/api/v1/accounts", Some(&someone.token), json!({ "currencyCode": "BRL" })).await;
    let pay = async |key: &str| api.transact(&someone.token, Api::transfer(key, &accounts[0], &accounts[1], "0.01")).await;
    assert!(is_closed(&stack, "transactions-1").await?);
    stack.kill("customers-1")?;
    stack.kill("customers-2")?;

    // Each replica of transactions asks customers every second besides, and so learns that it is away.
    let since = Instant::now();
    while is_closed(&stack, "transactions-1").await? || is_closed(&stack, "transactions-2").await? {
        let refused = open().await?;
        assert_eq!((refused.status, refused.body["reason"].clone()), (503, json!("UNAVAILABLE")), "{refused:?}");
        assert!(!refused.header("retry-after").is_empty());
        assert!(since.elapsed() < Duration::from_secs(15), "the breaker does not open");
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let since = Instant::now();
        assert_eq!(open().await?.status, 503);
        slowest = slowest.max(since.elapsed());
    }
    assert!(slowest < Duration::from_millis(500), "what needs customers fails at once: {slowest:?}");
    assert_eq!(pay("without customers").await?.body["state"], "COMPLETED");

    // A replica that starts now knows the keys from disk.
    stack.restart("transactions-1")?;
    stack.kill("transactions-2")?;
    let paid = pay("by a replica that never saw customers").await?;
    assert_eq!(paid.body["state"], "COMPLETED", "{paid:?}");
    stack.spawn("transactions-2")?;
    stack.until_one_is_ready("transactions-2")?;

    for name in ["customers-1", "customers-2"] {
        stack.spawn(name)?;
        stack.until_one_is_ready(name)?;
    }
    let since = Instant::now();
    loop {
        let closed = [is_closed(&stack, "transactions-1").await?, is_closed(&stack, "transactions-2").await?];
        let opened = open().await?;
        if closed == [true, true] && opened.status == 201 {
            break;
        }
        let of_transactions = || ["transactions-1", "transactions-2"].map(|name| last_lines(&stack, name));
        assert!(since.elapsed() < Duration::from_secs(30), "the breaker does not close again: {closed:?}, {opened:?}, {:#?}", of_transactions());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// A replica that was frozen for longer than any overlap learns what was revoked meanwhile, as does the list that transactions asks for; and nobody
/// is deleted whose accounts cannot be closed.
async fn a_frozen_replica_learns_what_it_missed() -> Result<()> {
    let stack = Stack::start(Options::default())?;
    let (front, certs) = (stack.front(), stack.path("certs"));
    let api = front.api();
    let someone = api.someone().await?;
    stack.signal("customers-1", "STOP")?;
    let since = Instant::now();
    let out = async || api.post("/api/v1/auth/logout", Some(&someone.token), json!({})).await;
    while out().await?.status != 200 {
        assert!(since.elapsed() < Duration::from_secs(15), "nobody can log out");
    }
    // More than a page of others, so that the list has to be followed.
    let url = format!("{}/lastro_customers", stack.postgres.url());
    let mut session = sqlx::PgConnection::connect(&url).await?;
    let far_s = lastro_mesh::clock::now_s() + 18_000;
    let rows = format!(
        "INSERT INTO sessions (id, user_id, refresh_hash, create_time_us, refresh_expires_us, forget_after_s, revoked_us) \
         SELECT gen_random_uuid(), '{}', decode(md5(n::text), 'hex'), 0, {far_s}000000, {far_s}, 1 + n / 3 FROM generate_series(1, 11000) n",
        someone.id
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(rows)).execute(&mut session).await?;
    tokio::time::sleep(Duration::from_secs(17).saturating_sub(since.elapsed())).await;
    stack.signal("customers-1", "CONT")?;
    let since = Instant::now();
    loop {
        let mut request = tonic::Request::new(lastro_proto::customers::v1::GetMeRequest {});
        request.metadata_mut().insert("authorization", format!("Bearer {}", someone.token).parse()?);
        let channel = connect(&stack, "customers-1", &certs, Some("edge"))?;
        let me = lastro_proto::customers::v1::users_service_client::UsersServiceClient::new(channel).get_me(request).await;
        if me.is_err_and(|status| status.code() == Code::Unauthenticated) {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(5), "it never learns that the session is over");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut list = IdentityServiceClient::new(connect(&stack, "customers-2", &certs, Some("transactions"))?);
    let (mut sessions, mut cursor) = (std::collections::HashSet::new(), String::new());
    loop {
        let page = list.list_revocations(ListRevocationsRequest { cursor }).await?.into_inner();
        sessions.extend(page.revocations.into_iter().map(|one| one.session_id));
        cursor = page.cursor;
        if !page.more {
            break;
        }
    }
    assert!(sessions.len() > 11_000, "{} are told", sessions.len());
    assert!(list.list_revocations(ListRevocationsRequest { cursor }).await?.into_inner().revocations.is_empty());

    let other = api.someone().await?;
    stack.kill("transactions-1")?;
    stack.kill("transactions-2")?;
    let refused = api.json(Method::DELETE, &format!("/api/v1/users/{}", other.id), Some(&other.token), &[], None).await?;
    assert_eq!((refused.status, refused.body["reason"].clone()), (503, json!("UNAVAILABLE")), "{refused:?}");
    assert_eq!(api.get("/api/v1/users/me", Some(&other.token)).await?.status, 200);
    Ok(())
}

/// One caller is told 503 again and again, for pages that take longer than they may. The gateways that say so are well, and so is transactions: nginx
/// keeps sending them others, who are served.
async fn what_one_is_refused_closes_no_gateway() -> Result<()> {
    let stack = Stack::start(Options::default())?;
    let front = stack.front();
    let ((eve, _), (ana, of_ana)) = (two_accounts(&front).await?, two_accounts(&front).await?);
    // Lists look at this table, and nothing else that is done here does.
    let mut hand = sqlx::PgConnection::connect(&format!("{}/lastro_transactions", stack.postgres.url())).await?;
    sqlx::raw_sql("BEGIN; LOCK TABLE operation_parties IN ACCESS EXCLUSIVE MODE").execute(&mut hand).await?;
    let until = Instant::now() + Duration::from_secs(8);
    let refused = (0..24).map(|_| {
        let (api, eve) = (front.api(), &eve);
        async move {
            let mut refused = 0;
            while Instant::now() < until {
                let told = api.get("/api/v1/transactions?pageSize=1000", Some(&eve.token)).await?;
                assert!([503, 504].contains(&told.status), "{told:?}");
                refused += 1;
            }
            anyhow::Ok(refused)
        }
    });
    let others = async {
        let (api, mut served) = (front.api(), 0);
        while Instant::now() < until {
            let told = api.get(&format!("/api/v1/accounts/{}", of_ana[0]), Some(&ana.token)).await?;
            assert_eq!(told.status, 200, "{told:?}");
            let told = api.transact(&ana.token, Api::transfer(&format!("{served}"), &of_ana[0], &of_ana[1], "0.01")).await?;
            assert_eq!(told.status, 201, "{told:?}");
            served += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(served)
    };
    let (refused, served) = tokio::join!(futures_util::future::try_join_all(refused), others);
    let (refused, served) = (refused?.into_iter().sum::<usize>(), served?);
    assert!(refused >= 24 && served > 50, "{refused} refused, {served} served");
    sqlx::raw_sql("ROLLBACK").execute(&mut hand).await?;
    Ok(())
}
