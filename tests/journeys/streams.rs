//! Answers that come again and again: over gRPC, and over REST as Server-Sent Events.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lastro_proto::transactions::v1::transaction::State;
use lastro_proto::transactions::v1::transactions_service_client::TransactionsServiceClient;
use lastro_proto::transactions::v1::{WatchTransactionRequest, WatchTransactionResponse};
use lastro_tests::client::Someone;
use lastro_tests::stack::Options;
use lastro_tests::{Api, Front, Postgres, Server, Stack};
use libtest_mimic::Trial;
use reqwest::Method;
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::faults::two_accounts;
use crate::{World, block_on, failed};

pub fn trials() -> Vec<Trial> {
    let outlive = || failed(block_on(they_outlive_a_reload_and_end_with_their_replica()));
    vec![
        Trial::test("streams::they_outlive_a_reload_and_end_with_their_replica", outlive),
        Trial::test("streams::a_thousand_cost_little", || failed(block_on(a_thousand_cost_little()))),
    ]
}

/// Whoever asks for what is over is told how it ended; whoever had that is told that nothing follows.
pub async fn a_stream_ends_with_its_transaction(world: &World) -> Result<()> {
    let (front, api) = (&world.server, world.server.api());
    let (someone, accounts) = two_accounts(front).await?;
    let made = api.transact(&someone.token, Api::transfer("watched", &accounts[0], &accounts[1], "1.00")).await?;
    let id = made.text("id")?;
    let path = format!("/api/v1/transactions/{id}:watch");

    let mut stream = Events::open(front, &path, &someone.token, None).await?;
    let last = stream.next().await?.context("an event")?;
    assert_eq!((last.kind.as_str(), &last.data["transaction"]["state"]), ("message", &Value::from("COMPLETED")), "{last:?}");
    assert_eq!((&last.data["eventId"], &last.data["transaction"]["id"]), (&Value::from(last.id.as_str()), &Value::from(id.as_str())));
    assert!(stream.next().await?.is_none(), "the stream ends");
    let after = api.json(Method::GET, &path, Some(&someone.token), &[("last-event-id", &last.id)], None).await?;
    assert_eq!((after.status, &after.body), (204, &Value::Null), "a browser does not connect again");
    assert_eq!(api.get(&format!("{path}?lastEventId={}", last.id), Some(&someone.token)).await?.status, 204);

    let events = api.get(&path.replace(":watch", "/events"), Some(&someone.token)).await?;
    let first = events.body["events"][0]["id"].as_str().context("an event")?.to_owned();
    let mut resumed = Events::open(front, &path, &someone.token, Some(&first)).await?;
    assert_eq!(resumed.next().await?.context("an event")?.id, last.id, "what came after the first");
    for (given, what) in [("nonsense", "must be a UUID"), ("0190b3a2-7c1e-7d5e-9a3b-2f6c1d0e4b5a", "an event of this transaction")] {
        let refused = api.json(Method::GET, &path, Some(&someone.token), &[("last-event-id", given)], None).await?;
        assert_eq!((refused.status, refused.body["errors"][0]["field"].as_str()), (400, Some("lastEventId")), "{refused:?}");
        assert!(refused.body["errors"][0]["description"].as_str().is_some_and(|said| said.contains(what)), "{refused:?}");
    }
    let stranger = api.someone().await?;
    assert_eq!(api.get(&path, Some(&stranger.token)).await?.status, 404);
    assert_eq!(api.get(&path, None).await?.status, 401);
    let posted = api.post(&path, Some(&someone.token), Value::Null).await?;
    assert_eq!((posted.status, posted.header("allow")), (405, "GET"));
    let head = api.json(Method::HEAD, &path, Some(&someone.token), &[], None).await?;
    assert_eq!(head.status, 405, "of a stream a head is nothing");

    let channel = front.channel().await?;
    let mut stream = watch(&channel, &id, &someone, None).await?;
    let message = stream.message().await?.context("a message")?;
    assert_eq!((message.event_id.as_str(), state_of(&message)), (last.id.as_str(), State::Completed));
    assert!(stream.message().await?.is_none());
    assert!(watch(&channel, &id, &someone, Some(&last.id)).await?.message().await?.is_none());
    assert_eq!(watch(&channel, &id, &stranger, None).await.expect_err("somebody else's").code(), Code::NotFound);
    Ok(())
}

/// Changes come as they happen: what waits for an account is settled, or refused, while somebody watches. Where that cannot be held up from outside, as
/// on SQLite, there is nothing to see.
pub async fn changes_come_as_they_happen(world: &World) -> Result<()> {
    let Some(postgres) = &world.postgres else { return Ok(()) };
    let front = &world.server;
    let (someone, accounts) = two_accounts(front).await?;
    let channel = front.channel().await?;
    for (amount, outcome) in [("1.00", State::Completed), ("99999999.00", State::Rejected)] {
        let held = Held::new(postgres, &accounts[0]).await?;
        let id = held_up(&front.api(), &someone, &accounts, amount).await?;
        let mut by_rest = Events::open(front, &format!("/api/v1/transactions/{id}:watch"), &someone.token, None).await?;
        let mut by_grpc = watch(&channel, &id, &someone, None).await?;
        let first = by_rest.next().await?.context("an event")?;
        assert_eq!(first.data["transaction"]["state"], "PENDING");
        assert_eq!(by_grpc.message().await?.map(|message| state_of(&message)), Some(State::Pending));
        held.release().await?;
        let since = Instant::now();
        let message = by_grpc.message().await?.context("a message")?;
        assert_eq!(state_of(&message), outcome);
        assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
        let reason = message.transaction.map(|transaction| transaction.reason).unwrap_or_default();
        assert_eq!(reason, if outcome == State::Rejected { "INSUFFICIENT_FUNDS" } else { "" });
        assert!(by_grpc.message().await?.is_none());
        let last = by_rest.next().await?.context("an event")?;
        assert_eq!((last.data["transaction"]["state"].as_str(), last.id.as_str()), (Some(outcome.as_str_name()), message.event_id.as_str()));
        assert!(by_rest.next().await?.is_none());
    }
    // Who logs out does not watch any longer.
    let held = Held::new(postgres, &accounts[0]).await?;
    let id = held_up(&front.api(), &someone, &accounts, "1.00").await?;
    let mut by_rest = Events::open(front, &format!("/api/v1/transactions/{id}:watch"), &someone.token, None).await?;
    let mut by_grpc = watch(&channel, &id, &someone, None).await?;
    assert!(by_rest.next().await?.is_some() && by_grpc.message().await?.is_some());
    let out = front.api().post("/api/v1/auth/logout", Some(&someone.token), serde_json::json!({})).await?;
    assert_eq!(out.status, 200, "{out:?}");
    let since = Instant::now();
    assert_eq!(by_grpc.message().await.expect_err("the session is over").code(), Code::Unauthenticated);
    let last = by_rest.next().await?.context("a reason")?;
    assert_eq!((last.kind.as_str(), last.data["reason"].as_str()), ("problem", Some("UNAUTHENTICATED")), "{last:?}");
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    held.release().await
}

/// Through nginx and past it: a reload ends no stream, silence ends none, and a replica that stops ends its own at once, with a reason.
async fn they_outlive_a_reload_and_end_with_their_replica() -> Result<()> {
    let stack = Stack::start(Options::default())?;
    let (front, direct) = (stack.front(), stack.direct());
    let (someone, accounts) = two_accounts(&front).await?;
    let held = Held::new(&stack.postgres.url(), &accounts[0]).await?;
    let id = held_up(&front.api(), &someone, &accounts, "1.00").await?;
    let path = format!("/api/v1/transactions/{id}:watch");

    let mut by_rest = Events::open(&front, &path, &someone.token, None).await?;
    let mut by_grpc = watch(&front.channel().await?, &id, &someone, None).await?;
    let mut of_gateway = Events::open(&direct, &path, &someone.token, None).await?;
    let mut of_transactions = watch(&direct.channel().await?, &id, &someone, None).await?;
    for stream in [&mut by_rest, &mut of_gateway] {
        assert_eq!(stream.next().await?.context("an event")?.data["transaction"]["state"], "PENDING");
    }
    for stream in [&mut by_grpc, &mut of_transactions] {
        assert_eq!(stream.message().await?.map(|message| state_of(&message)), Some(State::Pending));
    }
    stack.reload_nginx()?;
    // Longer than nginx waits for a word of whoever it asked.
    tokio::time::sleep(Duration::from_secs(5)).await;

    // The replicas that nobody asked through nginx, or who they were: all that was asked there goes on elsewhere.
    for (name, is_grpc) in [("gateway-1", false), ("transactions-1", true)] {
        let since = Instant::now();
        stack.signal(name, "TERM")?;
        if is_grpc {
            let status = of_transactions.message().await.expect_err("it stops");
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        } else {
            let event = of_gateway.next().await?.context("a reason")?;
            assert_eq!((event.kind.as_str(), event.data["reason"].as_str()), ("problem", Some("UNAVAILABLE")), "{event:?}");
            assert!(of_gateway.next().await?.is_none());
        }
        assert!(since.elapsed() < Duration::from_secs(1), "{name} ended its streams after {:?}", since.elapsed());
    }
    // Whoever was served by one of them was told; it goes on with what it had last.
    held.release().await?;
    let (mut last_id, reopening) = (None, Instant::now());
    let state = loop {
        match by_rest.next().await? {
            Some(event) if event.kind == "message" => {
                last_id = Some(event.id.clone());
                if event.data["transaction"]["state"] != "PENDING" {
                    break event.data["transaction"]["state"].clone();
                }
            }
            // While replicas stop, an answer may be 503, which says: ask again.
            _ => match Events::open(&front, &path, &someone.token, last_id.as_deref()).await {
                Ok(stream) => by_rest = stream,
                Err(error) if reopening.elapsed() > Duration::from_secs(10) => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
        }
    };
    assert_eq!(state, "COMPLETED");
    let ended = loop {
        match by_grpc.message().await {
            Ok(Some(message)) if state_of(&message) == State::Completed => break Ok(()),
            Ok(_) => {}
            Err(status) => break Err(status),
        }
    };
    ensure!(ended.as_ref().map_or_else(|status| status.code() == Code::Unavailable, |()| true), "{ended:?}");
    Ok(())
}

/// Half of them over REST and half over gRPC, of one transaction that is held up; then it is settled, and all of them are told.
async fn a_thousand_cost_little() -> Result<()> {
    const EACH: usize = 500;
    let (folder, postgres) = (tempfile::tempdir()?, Postgres::start()?);
    let server = Server::start(&folder.path().join("data"), &["--database-url", &postgres.url()])?;
    let front = server.front();
    let (someone, accounts) = two_accounts(&front).await?;
    let held = Held::new(&postgres.url(), &accounts[0]).await?;
    let id = held_up(&front.api(), &someone, &accounts, "1.00").await?;
    let path = format!("/api/v1/transactions/{id}:watch");
    let channels = [front.channel().await?, front.channel().await?, front.channel().await?];
    // What a first one costs is not what the others cost.
    let mut by_rest = vec![Events::open(&front, &path, &someone.token, None).await?];
    let mut by_grpc = vec![watch(&channels[0], &id, &someone, None).await?];
    // What the first logins took is given back by then.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = resident_mb(server.pid())?;
    for number in 1..EACH {
        by_rest.push(Events::open(&front, &path, &someone.token, None).await?);
        by_grpc.push(watch(&channels[number % 3], &id, &someone, None).await?);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = resident_mb(server.pid())?;
    let cost = after.saturating_sub(before);
    eprintln!("{} open streams: {after} MB, and {before} MB with two", 2 * EACH);
    ensure!(cost < 100, "{} open streams cost {cost} MB", 2 * EACH);
    held.release().await?;
    let told = async {
        for stream in &mut by_grpc {
            while stream.message().await?.is_some_and(|message| state_of(&message) != State::Completed) {}
        }
        for stream in &mut by_rest {
            while stream.next().await?.context("the end")?.data["transaction"]["state"] != "COMPLETED" {}
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(20), told).await?
}

/// Memory that a process holds, in MB.
fn resident_mb(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? / 1024)
}

/// A transaction that cannot be settled yet; its id.
async fn held_up(api: &Api, someone: &Someone, accounts: &[String; 2], amount: &str) -> Result<String> {
    let key = uuid::Uuid::new_v4().to_string();
    let body = Api::transfer(&key, &accounts[0], &accounts[1], amount);
    let made = api.post("/api/v1/transactions", Some(&someone.token), body).await?;
    ensure!(made.status == 202 && made.body["state"] == "PENDING", "{made:?}");
    made.text("id")
}

/// An account whose balance somebody else has locked.
struct Held(PgConnection);

impl Held {
    async fn new(postgres: &str, account: &str) -> Result<Self> {
        let mut holder = PgConnection::connect(&format!("{postgres}/lastro_transactions")).await?;
        sqlx::raw_sql("BEGIN").execute(&mut holder).await?;
        sqlx::query("SELECT 1 FROM balances WHERE account_id = $1 FOR UPDATE").bind(account.parse::<uuid::Uuid>()?).execute(&mut holder).await?;
        Ok(Self(holder))
    }

    async fn release(mut self) -> Result<()> {
        sqlx::raw_sql("ROLLBACK").execute(&mut self.0).await?;
        Ok(())
    }
}

async fn watch(channel: &Channel, id: &str, someone: &Someone, last: Option<&str>) -> Result<Streaming<WatchTransactionResponse>, Status> {
    let mut request = Request::new(WatchTransactionRequest { id: id.to_owned(), last_event_id: last.map(str::to_owned) });
    let token = format!("Bearer {}", someone.token).parse().map_err(|_| Status::internal("a token"))?;
    request.metadata_mut().insert("authorization", token);
    TransactionsServiceClient::new(channel.clone()).watch_transaction(request).await.map(tonic::Response::into_inner)
}

fn state_of(message: &WatchTransactionResponse) -> State {
    message.transaction.as_ref().map_or(State::Unspecified, lastro_proto::transactions::v1::Transaction::state)
}

/// A stream of Server-Sent Events.
struct Events {
    response: reqwest::Response,
    text: String,
}

/// One of them.
#[derive(Debug)]
struct Event {
    id: String,
    /// `message` if it does not say.
    kind: String,
    data: Value,
}

impl Events {
    async fn open(front: &Front, path: &str, token: &str, last: Option<&str>) -> Result<Self> {
        let mut request = front.rest_client()?.get(format!("{}{path}", front.rest)).bearer_auth(token).header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await?;
        let (status, content_type) = (response.status().as_u16(), response.headers().get("content-type").cloned());
        ensure!(status == 200 && content_type.as_ref().is_some_and(|kind| kind == "text/event-stream"), "{status} {content_type:?}");
        Ok(Self { response, text: String::new() })
    }

    /// The next event, over comments and what only the browser reads; None at the end.
    async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n").map(|(block, rest)| (block.to_owned(), rest.to_owned())) {
                self.text = rest;
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
                if let Some(data) = field("data:") {
                    let kind = field("event:").unwrap_or_else(|| "message".to_owned());
                    return Ok(Some(Event { id: field("id:").unwrap_or_default(), kind, data: serde_json::from_str(&data)? }));
                }
            }
            let Some(chunk) = tokio::time::timeout(Duration::from_secs(30), self.response.chunk()).await?? else { return Ok(None) };
            self.text += std::str::from_utf8(&chunk)?;
        }
    }
}
