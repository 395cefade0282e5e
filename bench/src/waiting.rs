//! Ten thousand calls that wait for a provider, and what they take from transfers meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lastro_proto::transactions::v1::transaction::{Settlement, State, Type};
use lastro_proto::transactions::v1::transactions_service_client::TransactionsServiceClient;
use lastro_proto::transactions::v1::{CreateTransactionRequest, ListTransactionsRequest};
use lastro_proto::r#type::v1::Money;
use tokio::task::JoinSet;
use tonic::{Request, Status};

use crate::load::{self, Kind};
use crate::report;
use crate::setup::Bench;

const WAITING: usize = 10_000;
/// Calls of one connection at once: fewer than a server takes.
const OF_A_CONNECTION: usize = 100;
/// The longest wait there is.
const WAIT_S: i64 = 30;

/// In turns: transfers alone, and transfers while so many calls wait.
pub async fn measure(bench: &Bench, rounds: usize, span: Duration) -> Result<()> {
    let provider = bench.rich.front.provider().await?;
    let (mut alone, mut beside, mut took_mb) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        let calls = load::measure(&bench.rich, Kind::Transfer, 128, span).await?;
        println!("round {round}: settled transfers, 128 callers, nobody waits: {calls}");
        alone.push(calls.per_second());
        let before_mb = bench.memory_mb()?;
        let began = Instant::now();
        let mut waiting = wait(bench, &provider.token, round).await?;
        let opened = began.elapsed();
        let calls = load::measure(&bench.rich, Kind::Transfer, 128, span).await?;
        let took = bench.memory_mb()?.saturating_sub(before_mb);
        let left = still_waiting(&mut waiting)?;
        println!("round {round}: settled transfers, 128 callers, {left} wait: {calls}; {took} MB more than before; they had come in {opened:.1?}");
        beside.push(calls.per_second());
        took_mb.push(took as f64);
        waiting.abort_all();
        // What was open is closed before the next turn.
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    println!("memory of {WAITING} calls that wait, median: {:.0} MB", report::median(took_mb.into_iter()).unwrap_or_default());
    report::ratio("settled transfers beside calls that wait / alone", report::median(beside.into_iter()), report::median(alone.into_iter()));
    Ok(())
}

type Waiting = JoinSet<Result<State, Status>>;

/// Opens them, and returns when all are stored and wait.
async fn wait(bench: &Bench, token: &str, round: usize) -> Result<Waiting> {
    let mut waiting = JoinSet::new();
    for connection in 0..WAITING / OF_A_CONNECTION {
        let channel = bench.rich.front.channel().await?;
        for number in 0..OF_A_CONNECTION {
            let place = connection * OF_A_CONNECTION + number;
            let request = CreateTransactionRequest {
                external_id: format!("waits {round} {place}"),
                r#type: Type::Deposit as i32,
                destination_account_id: Some(bench.rich.accounts[place % bench.rich.accounts.len()].clone()),
                amount: Some(Money { currency_code: "BRL".to_owned(), amount: "0.01".to_owned() }),
                settlement: Settlement::External as i32,
                wait: Some(pbjson_types::Duration { seconds: WAIT_S, nanos: 0 }),
                ..CreateTransactionRequest::default()
            };
            let request = with_token(token, request)?;
            let mut client = TransactionsServiceClient::new(channel.clone());
            waiting.spawn(async move { client.create_transaction(request).await.map(|answer| answer.into_inner().state()) });
        }
        // As many at once as a crowd that comes within some seconds.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let last = ListTransactionsRequest { external_id: Some(format!("waits {round} {}", WAITING - 1)), ..ListTransactionsRequest::default() };
    let mut client = TransactionsServiceClient::new(bench.rich.front.channel().await?);
    let since = Instant::now();
    while client.list_transactions(with_token(token, last.clone())?).await?.into_inner().transactions.is_empty() {
        ensure!(since.elapsed() < Duration::from_secs(10), "the last of those that wait is not stored");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(waiting)
}

/// How many wait; whoever has ended must not have failed.
fn still_waiting(waiting: &mut Waiting) -> Result<usize> {
    while let Some(ended) = waiting.try_join_next() {
        println!("one of those that wait has ended: {:?}", ended?);
    }
    ensure!(waiting.len() > WAITING * 9 / 10, "only {} of {WAITING} wait", waiting.len());
    Ok(waiting.len())
}

fn with_token<T>(token: &str, message: T) -> Result<Request<T>> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    request.set_timeout(Duration::from_secs(34));
    Ok(request)
}
