//! A payment provider as docs/PROVIDER.md has it, that fails in every way that a provider may. It keeps book of what it has done, which is what counts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It does as asked, and the connection breaks before it answers.
    LosesAnswer,
    /// It does nothing, and the connection breaks.
    Breaks,
    /// It does as asked, and answers after the time limit.
    AnswersLate,
    /// It does as asked, and answers twice.
    AnswersTwice,
    /// It does nothing, and answers 500.
    Fails,
    /// It does as asked, and answers 500.
    FailsAfterwards,
    /// It does nothing, and says that the request is at fault.
    Refuses,
    /// It does nothing, and never answers.
    Hangs,
    /// It does as asked, and answers what cannot be read.
    AnswersNonsense,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::None,
        Self::LosesAnswer,
        Self::Breaks,
        Self::AnswersLate,
        Self::AnswersTwice,
        Self::Fails,
        Self::FailsAfterwards,
        Self::Refuses,
        Self::Hangs,
        Self::AnswersNonsense,
    ];

    fn does(self) -> bool {
        !matches!(self, Self::Breaks | Self::Fails | Self::Refuses | Self::Hangs)
    }
}

/// What was done under one key.
#[derive(Debug, Clone)]
pub struct Done {
    /// As it was asked for.
    pub asked: Value,
    /// `DONE` or `DECLINED`.
    pub status: String,
    /// How often it was asked for.
    pub times: usize,
}

/// The key of an order, as docs/PROVIDER.md has it: of a `charge`, or what is to `give back` a charge.
pub fn key(purpose: &str, owner_id: &str, external_id: &str) -> String {
    let owner_id: uuid::Uuid = owner_id.parse().unwrap_or_default();
    key_of(&[b"lastro payment provider 1\0", purpose.as_bytes(), b"\0", owner_id.as_bytes(), external_id.as_bytes()])
}

/// The key of a refund, which is of its charge, too.
pub fn refund_key(owner_id: &str, external_id: &str, charge: &str) -> String {
    let [owner_id, charge] = [owner_id, charge].map(|id| id.parse::<uuid::Uuid>().unwrap_or_default());
    key_of(&[b"lastro payment provider 1\0refund\0", owner_id.as_bytes(), external_id.as_bytes(), b"\0", charge.as_bytes()])
}

fn key_of(parts: &[&[u8]]) -> String {
    let hash = Sha256::digest(parts.concat());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    (bytes[6], bytes[8]) = (bytes[6] & 0x0f | 0x80, bytes[8] & 0x3f | 0x80);
    uuid::Uuid::from_bytes(bytes).to_string()
}

/// What it has done, by what was asked (`charges`, `refunds`) and key.
pub type Book = HashMap<(String, String), Done>;

type Choice = dyn Fn(&str, &Value, usize) -> Fault + Send + Sync;

struct Inner {
    book: Mutex<Book>,
    /// Requests of each key, those included that nothing came of.
    requests: Mutex<HashMap<(String, String), usize>>,
    /// The fault of a request: of its path, what it asks for, and the how manieth of its key it is.
    choose: Mutex<Box<Choice>>,
    wrongs: Mutex<Vec<String>>,
}

/// A provider that runs as long as this lives.
pub struct PaymentProvider {
    /// `http://127.0.0.1:port`.
    pub url: String,
    inner: Arc<Inner>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for PaymentProvider {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl PaymentProvider {
    /// On a free port, on threads of its own. It answers by the token of the card, as the sandbox does.
    pub fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let url = format!("http://{}", listener.local_addr()?);
        let inner =
            Arc::new(Inner { book: Mutex::default(), requests: Mutex::default(), choose: Mutex::new(Box::new(by_token)), wrongs: Mutex::default() });
        let served = inner.clone();
        runtime.spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let inner = served.clone();
                tokio::spawn(async move { serve(&inner, connection).await });
            }
        });
        Ok(Self { url, inner, runtime: Some(runtime) })
    }

    /// Which fault each request has from now on.
    pub fn choose(&self, choose: impl Fn(&str, &Value, usize) -> Fault + Send + Sync + 'static) {
        *self.inner.choose.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(choose);
    }

    /// What it has done.
    pub fn book(&self) -> Book {
        self.inner.book.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was asked of it that breaks its contract.
    pub fn wrongs(&self) -> Vec<String> {
        self.inner.wrongs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// As the sandbox.
fn by_token(_path: &str, asked: &Value, number: usize) -> Fault {
    match asked["cardToken"].as_str() {
        Some("tok_timeout") => Fault::AnswersLate,
        Some("tok_fail_once") if number == 1 => Fault::Fails,
        _ => Fault::None,
    }
}

async fn serve(inner: &Inner, mut connection: TcpStream) -> Option<()> {
    let mut read = Vec::new();
    loop {
        let (method, path, body) = request(&mut connection, &mut read).await.ok()??;
        let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
        let (kind, key) = path.trim_start_matches('/').split_once('/').map_or((path.trim_start_matches('/'), None), |(kind, key)| (kind, Some(key)));
        if method == "GET" {
            let done = inner.book.lock().unwrap_or_else(PoisonError::into_inner).get(&(kind.to_owned(), key?.to_owned())).cloned();
            let (status, body) = match done {
                Some(done) => (200, json!({ "key": key?, "status": done.status, "reason": reason(&done.asked), "amount": done.asked["amount"] })),
                None => (404, json!({ "key": key?, "status": "NOT_FOUND" })),
            };
            answer(&mut connection, status, &body.to_string()).await?;
            continue;
        }
        let key = asked["key"].as_str().unwrap_or_default().to_owned();
        let number = {
            let mut requests = inner.requests.lock().unwrap_or_else(PoisonError::into_inner);
            let number = requests.entry((kind.to_owned(), key.clone())).or_default();
            *number += 1;
            *number
        };
        let fault = inner.choose.lock().unwrap_or_else(PoisonError::into_inner)(kind, &asked, number);
        let done = if fault.does() { enter(inner, kind, &key, &asked) } else { json!({}) }.to_string();
        match fault {
            Fault::None => answer(&mut connection, 200, &done).await?,
            Fault::LosesAnswer | Fault::Breaks => return None,
            Fault::AnswersLate => {
                tokio::time::sleep(Duration::from_secs(4)).await;
                answer(&mut connection, 200, &done).await?;
            }
            Fault::AnswersTwice => {
                answer(&mut connection, 200, &done).await?;
                answer(&mut connection, 200, &done).await?;
            }
            Fault::Fails | Fault::FailsAfterwards => answer(&mut connection, 500, "{}").await?,
            Fault::Refuses => answer(&mut connection, 422, &json!({ "key": key, "error": "no such token" }).to_string()).await?,
            Fault::Hangs => std::future::pending().await,
            Fault::AnswersNonsense => answer(&mut connection, 200, "<html>").await?,
        }
    }
}

/// Does as asked, once for each key.
fn enter(inner: &Inner, kind: &str, key: &str, asked: &Value) -> Value {
    let mut book = inner.book.lock().unwrap_or_else(PoisonError::into_inner);
    // The same key for something else: nothing is done, and what was done is told.
    let is_declined = asked["cardToken"] == "tok_decline" || kind == "refunds" && asked["amount"]["amount"] == "6.66";
    let entry = (kind.to_owned(), key.to_owned());
    let status = if is_declined { "DECLINED" } else { "DONE" };
    let done = book.entry(entry).or_insert_with(|| Done { asked: asked.clone(), status: status.to_owned(), times: 0 });
    done.times += 1;
    if done.asked != *asked {
        inner.wrongs.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{kind} {key}: {asked} after {}", done.asked));
    }
    json!({ "key": key, "status": done.status, "reason": reason(asked), "amount": done.asked["amount"] })
}

fn reason(asked: &Value) -> &'static str {
    if asked["cardToken"] == "tok_decline" { "CARD_DECLINED" } else { "REFUND_NOT_POSSIBLE" }
}

/// Method, path and body of the next request; None where the connection has ended.
async fn request(connection: &mut TcpStream, read: &mut Vec<u8>) -> Result<Option<(String, String, Vec<u8>)>> {
    loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&read[..end]).into_owned();
            let length =
                head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:").map(|length| length.trim().to_owned()));
            let length: usize = length.map_or(Ok(0), |length| length.parse())?;
            if read.len() >= end + 4 + length {
                let body = read[end + 4..end + 4 + length].to_vec();
                read.drain(..end + 4 + length);
                let mut words = head.split(' ');
                let (method, path) = (words.next().context("a method")?.to_owned(), words.next().context("a path")?.to_owned());
                return Ok(Some((method, path, body)));
            }
        }
        let mut more = [0; 4096];
        match connection.read(&mut more).await? {
            0 => return Ok(None),
            count => read.extend_from_slice(&more[..count]),
        }
    }
}

async fn answer(connection: &mut TcpStream, status: u16, body: &str) -> Option<()> {
    let text = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    connection.write_all(text.as_bytes()).await.ok()
}
