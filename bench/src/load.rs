//! Callers in a closed loop: each sends its next call when the last one is answered.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;
use http::{HeaderValue, Uri};
use lastro_proto::transactions::v1::accounts_service_client::AccountsServiceClient;
use lastro_proto::transactions::v1::transaction::{State, Type};
use lastro_proto::transactions::v1::transactions_service_client::TransactionsServiceClient;
use lastro_proto::transactions::v1::{
    BatchCreateTransactionsRequest, BatchCreateTransactionsResponse, CaptureTransactionRequest, CreateTransactionRequest, GetAccountRequest,
    LegRequest, ListTransactionsRequest, Transaction,
};
use lastro_proto::r#type::v1::Money;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use crate::raw::Connection;
use crate::setup::Rich;

/// Connections that callers share: one HTTP/2 connection is a bottleneck.
const CONNECTIONS: usize = 4;

/// What a caller does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Transfer,
    /// Of ten legs.
    TenLegs,
    /// Of 100 transfers.
    Batch,
    /// As [`Batch`](Self::Batch), all of them or none.
    AtomicBatch,
    Hold,
    GetOverGrpc,
    GetOverRest,
    /// Of 50 transactions of an account.
    PageOverGrpc,
    PageOverRest,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Transfer => "settled transfers",
            Self::TenLegs => "transactions of 10 legs",
            Self::Batch => "batches of 100 transfers",
            Self::AtomicBatch => "atomic batches of 100 transfers",
            Self::Hold => "holds",
            Self::GetOverGrpc => "reads of an account over gRPC",
            Self::GetOverRest => "reads of an account over REST",
            Self::PageOverGrpc => "pages of 50 transactions over gRPC",
            Self::PageOverRest => "pages of 50 transactions over REST",
        }
    }
}

/// What was measured.
pub struct Calls {
    latency_us: Histogram<u64>,
    span: Duration,
}

impl Calls {
    fn new() -> Self {
        Self { latency_us: Histogram::new_with_bounds(1, 60_000_000, 3).expect("good bounds"), span: Duration::ZERO }
    }

    /// Milliseconds.
    pub fn p50_ms(&self) -> f64 {
        self.latency_us.value_at_quantile(0.5) as f64 / 1000.0
    }

    /// Milliseconds.
    pub fn p99_ms(&self) -> f64 {
        self.latency_us.value_at_quantile(0.99) as f64 / 1000.0
    }

    /// Successful calls per second.
    pub fn per_second(&self) -> f64 {
        self.latency_us.len() as f64 / self.span.as_secs_f64()
    }
}

impl fmt::Display for Calls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |quantile: f64| self.latency_us.value_at_quantile(quantile) as f64 / 1000.0;
        write!(formatter, "{:.0}/s, p50 {:.2} ms, p95 {:.2} ms, p99 {:.2} ms", self.per_second(), at(0.5), at(0.95), at(0.99))
    }
}

#[derive(Clone)]
struct Raw {
    connection: Connection,
    create: Uri,
    batch: Uri,
    capture: Uri,
}

impl Raw {
    async fn open(address: &str) -> Result<Self> {
        let connection = Connection::open(address).await?;
        Ok(Self {
            create: connection.uri("/lastro.transactions.v1.TransactionsService/CreateTransaction")?,
            batch: connection.uri("/lastro.transactions.v1.TransactionsService/BatchCreateTransactions")?,
            capture: connection.uri("/lastro.transactions.v1.TransactionsService/CaptureTransaction")?,
            connection,
        })
    }
}

#[derive(Clone)]
struct Caller {
    channel: Channel,
    /// In plain text, with the addresses of the methods: nothing between the figures and what they measure.
    raw: Option<Raw>,
    rest: reqwest::Client,
    rest_base: Arc<str>,
    bearer: MetadataValue<Ascii>,
    bearer_header: HeaderValue,
    accounts: Arc<[String]>,
}

impl Caller {
    async fn call(&self, kind: Kind) -> Result<()> {
        match kind {
            Kind::Transfer => self.transfer().await,
            Kind::TenLegs => self.ten_legs().await,
            Kind::Batch => self.batch(false).await,
            Kind::AtomicBatch => self.batch(true).await,
            Kind::Hold => self.hold().await.map(|_| ()),
            Kind::GetOverGrpc => {
                let request = self.request(GetAccountRequest { id: self.account().to_owned() });
                AccountsServiceClient::new(self.channel.clone()).get_account(request).await?;
                Ok(())
            }
            Kind::GetOverRest => self.get(&format!("/api/v1/accounts/{}", self.account())).await,
            Kind::PageOverGrpc => {
                let account_id = Some(self.account().to_owned());
                let request = self.request(ListTransactionsRequest { page_size: 50, account_id, ..ListTransactionsRequest::default() });
                let page = TransactionsServiceClient::new(self.channel.clone()).list_transactions(request).await?.into_inner();
                anyhow::ensure!(page.transactions.len() == 50, "a page of {}", page.transactions.len());
                Ok(())
            }
            Kind::PageOverRest => self.get(&format!("/api/v1/transactions?pageSize=50&accountId={}", self.account())).await,
        }
    }

    async fn get(&self, path: &str) -> Result<()> {
        let answer = self.rest.get(format!("{}{path}", self.rest_base)).header("authorization", self.bearer.to_str()?).send().await?;
        anyhow::ensure!(answer.status().is_success(), "{}", answer.status());
        answer.bytes().await?;
        Ok(())
    }

    async fn transfer(&self) -> Result<()> {
        let (source, mut destination) = (self.account(), self.account());
        while destination == source {
            destination = self.account();
        }
        let made = self.move_money(&uuid::Uuid::new_v4().to_string(), source, destination).await?;
        anyhow::ensure!(made.state() == State::Completed, "{made:?}");
        Ok(())
    }

    async fn move_money(&self, key: &str, source: &str, destination: &str) -> Result<Transaction> {
        let message = CreateTransactionRequest {
            external_id: key.to_owned(),
            r#type: Type::Transfer as i32,
            source_account_id: Some(source.to_owned()),
            destination_account_id: Some(destination.to_owned()),
            amount: Some(Money { currency_code: "BRL".to_owned(), amount: "0.01".to_owned() }),
            wait: Some(pbjson_types::Duration { seconds: 10, nanos: 0 }),
            ..CreateTransactionRequest::default()
        };
        self.create(message).await
    }

    async fn create(&self, message: CreateTransactionRequest) -> Result<Transaction> {
        match &self.raw {
            Some(raw) => raw.connection.call(raw.create.clone(), &self.bearer_header, &message).await,
            None => Ok(TransactionsServiceClient::new(self.channel.clone()).create_transaction(self.request(message)).await?.into_inner()),
        }
    }

    /// Two accounts that are not one.
    fn two_accounts(&self) -> (&str, &str) {
        let (source, mut destination) = (self.account(), self.account());
        while destination == source {
            destination = self.account();
        }
        (source, destination)
    }

    /// One cent between two accounts, under a new key.
    fn cent(&self) -> CreateTransactionRequest {
        let (source, destination) = self.two_accounts();
        CreateTransactionRequest {
            external_id: uuid::Uuid::new_v4().to_string(),
            r#type: Type::Transfer as i32,
            source_account_id: Some(source.to_owned()),
            destination_account_id: Some(destination.to_owned()),
            amount: Some(Money { currency_code: "BRL".to_owned(), amount: "0.01".to_owned() }),
            ..CreateTransactionRequest::default()
        }
    }

    async fn ten_legs(&self) -> Result<()> {
        let leg = |_| {
            let (source, destination) = self.two_accounts();
            let amount = Some(Money { currency_code: "BRL".to_owned(), amount: "0.01".to_owned() });
            LegRequest { source_account_id: source.to_owned(), destination_account_id: destination.to_owned(), amount, description: String::new() }
        };
        let (wait, legs) = (Some(pbjson_types::Duration { seconds: 10, nanos: 0 }), (0..10).map(leg).collect());
        let of_legs = CreateTransactionRequest { source_account_id: None, destination_account_id: None, amount: None, legs, wait, ..self.cent() };
        let made = self.create(of_legs).await?;
        anyhow::ensure!(made.state() == State::Completed && made.postings.len() == 20, "{made:?}");
        Ok(())
    }

    /// The answers of a batch of 100, each made by `change` of a transfer of a cent.
    async fn batch_of(&self, atomic: bool, change: impl Fn(&mut CreateTransactionRequest)) -> Result<Vec<Transaction>> {
        let mut requests: Vec<CreateTransactionRequest> = (0..100).map(|_| self.cent()).collect();
        requests.iter_mut().for_each(change);
        let wait = Some(pbjson_types::Duration { seconds: 10, nanos: 0 });
        let message = BatchCreateTransactionsRequest { requests, atomic, wait, validate_only: false };
        let made: BatchCreateTransactionsResponse = match &self.raw {
            Some(raw) => raw.connection.call(raw.batch.clone(), &self.bearer_header, &message).await?,
            None => TransactionsServiceClient::new(self.channel.clone()).batch_create_transactions(self.request(message)).await?.into_inner(),
        };
        made.results.into_iter().map(|result| result.transaction.ok_or_else(|| anyhow::anyhow!("{:?}", result.error))).collect()
    }

    async fn batch(&self, atomic: bool) -> Result<()> {
        let made = self.batch_of(atomic, |_| ()).await?;
        anyhow::ensure!(made.len() == 100 && made.iter().all(|one| one.state() == State::Completed), "{:?}", made.first());
        Ok(())
    }

    async fn hold(&self) -> Result<Transaction> {
        let wait = Some(pbjson_types::Duration { seconds: 10, nanos: 0 });
        let made = self.create(CreateTransactionRequest { hold: true, wait, ..self.cent() }).await?;
        anyhow::ensure!(made.state() == State::Authorized, "{made:?}");
        Ok(made)
    }

    async fn capture(&self, id: String) -> Result<()> {
        let message = CaptureTransactionRequest { id, external_id: "capture".to_owned(), amount: None, validate_only: false };
        let made: Transaction = match &self.raw {
            Some(raw) => raw.connection.call(raw.capture.clone(), &self.bearer_header, &message).await?,
            None => TransactionsServiceClient::new(self.channel.clone()).capture_transaction(self.request(message)).await?.into_inner(),
        };
        anyhow::ensure!(made.state() == State::Completed, "{made:?}");
        Ok(())
    }

    fn account(&self) -> &str {
        &self.accounts[rand::random_range(0..self.accounts.len())]
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.bearer.clone());
        request
    }
}

async fn callers(rich: &Rich, number: usize) -> Result<Vec<Caller>> {
    let (mut channels, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS.min(number) {
        channels.push(rich.front.channel().await?);
        raw.push(match rich.front.authority {
            Some(_) => None,
            None => Some(Raw::open(rich.front.grpc_address()).await?),
        });
    }
    let rest = rich.front.rest_client()?;
    let (accounts, rest_base): (Arc<[String]>, Arc<str>) = (rich.accounts.clone().into(), rich.front.rest.clone().into());
    let bearer: MetadataValue<Ascii> = format!("Bearer {}", rich.someone.token).parse()?;
    let bearer_header = HeaderValue::from_str(bearer.to_str()?)?;
    Ok((0..number)
        .map(|index| Caller {
            channel: channels[index % channels.len()].clone(),
            rest: rest.clone(),
            rest_base: rest_base.clone(),
            raw: raw[index % raw.len()].clone(),
            bearer: bearer.clone(),
            bearer_header: bearer_header.clone(),
            accounts: accounts.clone(),
        })
        .collect())
}

/// So many callers in a closed loop.
pub async fn measure(rich: &Rich, kind: Kind, number: usize, span: Duration) -> Result<Calls> {
    let callers = Arc::new(callers(rich, number).await?);
    closed_loop(number, span, move |caller, _| {
        let callers = callers.clone();
        async move { callers[caller].call(kind).await }
    })
    .await
}

/// So many callers, each of which makes its next call when the last one is answered: it is told which caller it is, and how often it has called. The first
/// second warms up and does not count.
pub async fn closed_loop<F: Future<Output = Result<()>> + Send + 'static>(
    callers: usize,
    span: Duration,
    call: impl Fn(usize, usize) -> F + Clone + Send + 'static,
) -> Result<Calls> {
    let counted_from = Instant::now() + Duration::from_secs(1);
    let until = counted_from + span;
    let tasks = (0..callers).map(|caller| {
        let call = call.clone();
        tokio::spawn(async move {
            let mut calls = Calls::new();
            for number in 0.. {
                let started = Instant::now();
                if started >= until {
                    break;
                }
                call(caller, number).await?;
                if started >= counted_from {
                    calls.latency_us.saturating_record(started.elapsed().as_micros() as u64);
                }
            }
            anyhow::Ok(calls)
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let mut all = Calls { span, ..Calls::new() };
    for task in tasks {
        all.latency_us.add(task.await??.latency_us)?;
    }
    Ok(all)
}

/// Captures holds that were made before, until none is left or the time is over; the first second warms up and does not count.
pub async fn captures(rich: &Rich, number: usize, span: Duration, holds: usize) -> Result<Calls> {
    let callers = callers(rich, number).await?;
    let made = futures_util::future::join_all(callers.iter().take(16).map(|caller| async move {
        let mut ids = Vec::new();
        while ids.len() < holds / 16 {
            ids.extend(caller.batch_of(false, |request| request.hold = true).await?.into_iter().map(|hold| hold.id));
        }
        anyhow::Ok(ids)
    }));
    let mut ids = Vec::with_capacity(holds);
    for some in made.await {
        ids.extend(some?);
    }
    let ids = Arc::new(std::sync::Mutex::new(ids));
    let counted_from = Instant::now() + Duration::from_secs(1);
    let until = counted_from + span;
    let tasks = callers.into_iter().map(|caller| {
        let ids = ids.clone();
        tokio::spawn(async move {
            let mut calls = Calls::new();
            loop {
                let next = ids.lock().expect("nobody panics").pop();
                let (started, Some(id)) = (Instant::now(), next) else { return anyhow::Ok((calls, Instant::now())) };
                if started >= until {
                    return anyhow::Ok((calls, until));
                }
                caller.capture(id).await?;
                if started >= counted_from {
                    calls.latency_us.saturating_record(started.elapsed().as_micros() as u64);
                }
            }
        })
    });
    let (tasks, mut all, mut ended) = (tasks.collect::<Vec<_>>(), Calls::new(), counted_from);
    for task in tasks {
        let (calls, at) = task.await??;
        all.latency_us.add(calls.latency_us)?;
        ended = ended.max(at.min(until));
    }
    all.span = ended - counted_from;
    Ok(all)
}

/// Gives so many of the accounts histories of a page at least: those alone, to read them.
pub async fn with_histories(rich: &Rich, accounts: usize) -> Result<Rich> {
    let few = Rich { accounts: rich.accounts.iter().take(accounts).cloned().collect(), ..rich.clone() };
    let tasks = callers(&few, 64).await?.into_iter().enumerate().map(|(index, caller)| {
        tokio::spawn(async move {
            let all = caller.accounts.clone();
            // Each transfer is in the histories of two.
            for (number, source) in all.iter().enumerate().filter(|(number, _)| number % 64 == index) {
                for _ in 0..26 {
                    caller.move_money(&uuid::Uuid::new_v4().to_string(), source, &all[(number + 1) % all.len()]).await?;
                }
            }
            anyhow::Ok(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await??;
    }
    Ok(few)
}

/// Single calls with pauses between: what one costs when nothing else happens.
pub async fn one_at_a_time(rich: &Rich, kind: Kind, number: usize, pause: Duration) -> Result<Calls> {
    let caller = callers(rich, 1).await?.remove(0);
    let (mut calls, begun) = (Calls::new(), Instant::now());
    for _ in 0..number {
        tokio::time::sleep(pause).await;
        let started = Instant::now();
        caller.call(kind).await?;
        calls.latency_us.saturating_record(started.elapsed().as_micros() as u64);
    }
    calls.span = begun.elapsed();
    Ok(calls)
}

/// One caller that sends one key again and again until told to stop; how often.
pub async fn repeat_one_key(rich: Rich, stop: Arc<AtomicBool>) -> Result<u64> {
    let caller = callers(&rich, 1).await?.remove(0);
    let (key, mut repeated) = (uuid::Uuid::new_v4().to_string(), 0);
    while !stop.load(Ordering::Relaxed) {
        caller.move_money(&key, &rich.accounts[0], &rich.accounts[1]).await?;
        repeated += 1;
    }
    Ok(repeated)
}

/// So many callers at each of two accounts, and one between the two: what the one measured, and what the others did.
pub async fn two_busy_accounts(rich: &Rich, at_each: usize, span: Duration) -> Result<(Calls, Calls)> {
    let counted_from = Instant::now() + Duration::from_secs(1);
    let until = counted_from + span;
    let busy = [rich.accounts[0].clone(), rich.accounts[1].clone()];
    let tasks = callers(rich, 2 * at_each + 1).await?.into_iter().enumerate().map(|(index, caller)| {
        let busy = busy.clone();
        tokio::spawn(async move {
            let (mut calls, mut turn) = (Calls::new(), false);
            loop {
                let started = Instant::now();
                if started >= until {
                    return anyhow::Ok(calls);
                }
                let own = busy[index % 2].as_str();
                let mut other = if index == 0 { busy[1].as_str() } else { caller.account() };
                while index > 0 && busy.iter().any(|account| account == other) {
                    other = caller.account();
                }
                let (source, destination) = if turn { (own, other) } else { (other, own) };
                turn = !turn;
                let moved = caller.move_money(&uuid::Uuid::new_v4().to_string(), source, destination).await;
                // What is refused took as long as it took.
                if index > 0 {
                    moved?;
                }
                if started >= counted_from {
                    calls.latency_us.saturating_record(started.elapsed().as_micros() as u64);
                }
            }
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let (mut one, mut others) = (None, Calls { span, ..Calls::new() });
    for task in tasks {
        let calls = task.await??;
        match one {
            None => one = Some(Calls { span, ..calls }),
            Some(_) => others.latency_us.add(calls.latency_us)?,
        }
    }
    Ok((one.unwrap_or_else(Calls::new), others))
}
