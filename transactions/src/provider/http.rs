//! A payment provider that speaks HTTP, as docs/PROVIDER.md has it.

use std::str::FromStr;
use std::time::Duration;

use lastro_money::format;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Answer, Failure, Order, OrderKind};

const CONNECT_MAX: Duration = Duration::from_secs(1);
/// More of an answer is not read.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// Of a provider's own words.
const REASON_MAX: usize = 200;

/// Where a provider is reached, such as `https://provider.example/v1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url(String);

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = reqwest::Url::parse(text).map_err(|error| error.to_string())?;
        let is_plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
        if !["http", "https"].contains(&url.scheme()) || url.host().is_none() || !is_plain {
            return Err("must be an https:// or http:// URL without user, query and fragment".to_owned());
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }
}

impl Url {
    /// Without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether what is sent there can be read on the way.
    pub fn is_in_the_clear(&self) -> bool {
        self.0.starts_with("http://")
    }
}

/// A provider at a URL.
pub struct HttpProvider {
    client: Client,
    url: String,
    secret: Option<String>,
}

impl HttpProvider {
    /// With the secret that it knows us by, if there is one.
    pub fn new(url: &Url, secret: Option<String>) -> Result<Self, reqwest::Error> {
        let client = Client::builder().connect_timeout(CONNECT_MAX).redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self { client, url: url.0.clone(), secret })
    }

    pub async fn send(&self, order: &Order) -> Result<Answer, Failure> {
        let amount = amount_of(order);
        let (path, body) = match &order.kind {
            OrderKind::Charge { card_token } => ("charges", json!({ "key": order.key, "amount": amount, "cardToken": card_token.reveal() })),
            OrderKind::Refund { charge } => ("refunds", json!({ "key": order.key, "amount": amount, "chargeKey": charge })),
        };
        let request = self.client.post(format!("{}/{path}", self.url)).header("idempotency-key", order.key.to_string());
        let (status, body) = self.exchange(request.header("content-type", "application/json").body(body.to_string())).await?;
        read(order, status, &body)
    }

    pub async fn find(&self, order: &Order) -> Result<Option<Answer>, Failure> {
        let path = match order.kind {
            OrderKind::Charge { .. } => "charges",
            OrderKind::Refund { .. } => "refunds",
        };
        let (status, body) = self.exchange(self.client.get(format!("{}/{path}/{}", self.url, order.key))).await?;
        // Only in the provider's own words: a proxy before it may say 404 as well.
        if status == StatusCode::NOT_FOUND && body["status"] == "NOT_FOUND" && is_about(order.key, &body) {
            return Ok(None);
        }
        read(order, status, &body).map(Some)
    }

    async fn exchange(&self, request: RequestBuilder) -> Result<(StatusCode, Value), Failure> {
        let request = match &self.secret {
            Some(secret) => request.bearer_auth(secret),
            None => request,
        };
        let mut answer = request.send().await.map_err(|error| {
            // Where there was no connection, nothing was sent.
            let is_sent = !error.is_connect();
            let text = error.without_url().to_string();
            if is_sent { Failure::Unknown(text) } else { Failure::NotSent(text) }
        })?;
        let status = answer.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| Failure::Unknown(error.without_url().to_string()))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > ANSWER_BYTES_MAX {
                return Err(Failure::Unknown("an answer that is too long".to_owned()));
            }
        }
        Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
    }
}

/// Whether an answer is to this order. A provider that answers one request twice on a connection has its second answer read as that to the next request.
fn is_about(key: Uuid, body: &Value) -> bool {
    body["key"].as_str().and_then(|text| Uuid::parse_str(text).ok()) == Some(key)
}

fn amount_of(order: &Order) -> Value {
    json!({ "currencyCode": order.amount.currency().code(), "amount": format(order.amount.minor(), order.amount.currency()) })
}

/// Only 200 and 201 with the order's key and a status that is known say what was done; after everything else nobody knows. An answer that carries the key
/// comes from a provider that is well, and so does one that says that the request is at fault (4xx): it does not take this order.
fn read(order: &Order, status: StatusCode, body: &Value) -> Result<Answer, Failure> {
    let code = status.as_u16();
    let is_busy = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS);
    if !matches!(status, StatusCode::OK | StatusCode::CREATED) {
        let text = format!("it answers {code}");
        let is_well = is_about(order.key, body) || status.is_client_error() && !is_busy;
        return Err(if is_well { Failure::NotTaken(text) } else { Failure::Unknown(text) });
    }
    if !is_about(order.key, body) {
        return Err(Failure::Unknown(format!("it answers {code} without the key that it was asked with")));
    }
    if !body["amount"].is_null() && body["amount"] != amount_of(order) {
        return Err(Failure::NotTaken(format!("it answers {code} for the amount {}", body["amount"])));
    }
    match body["status"].as_str() {
        Some("DONE") => Ok(Answer::Done),
        Some("DECLINED") => {
            // Of its own words, what a text may have.
            let reason = body["reason"].as_str().unwrap_or_default().chars().filter(|letter| !letter.is_control());
            Ok(Answer::Declined(reason.take(REASON_MAX).collect()))
        }
        _ => Err(Failure::NotTaken(format!("it answers {code} without a status that is known"))),
    }
}

#[cfg(test)]
mod tests {
    use lastro_money::{Amount, Currency, Minor};

    use super::*;

    #[test]
    fn only_what_the_provider_says_is_an_answer() {
        let key = Uuid::from_u128(7);
        let amount = Amount::new(Minor::new(1050), Currency::from_code("BRL").expect("a currency"));
        let order = Order { key, amount, kind: OrderKind::Refund { charge: Uuid::from_u128(6) } };
        let answer = |status: u16, body: Value| read(&order, StatusCode::from_u16(status).expect("a status"), &body);
        assert_eq!(answer(200, json!({ "key": key, "status": "DONE" })), Ok(Answer::Done));
        assert_eq!(answer(200, json!({ "key": key, "status": "DONE", "amount": { "currencyCode": "BRL", "amount": "10.50" } })), Ok(Answer::Done));
        assert_eq!(answer(201, json!({ "key": key, "status": "DECLINED", "reason": "sto\0len\n" })), Ok(Answer::Declined("stolen".to_owned())));
        for (status, body) in [
            (200, Value::Null),
            (200, json!({ "status": "DONE" })),
            (200, json!({ "key": Uuid::from_u128(8), "status": "DONE" })),
            (202, json!({ "status": "DONE" })),
            (429, json!({})),
            (408, json!({})),
            (500, json!({ "status": "DONE" })),
        ] {
            assert!(matches!(answer(status, body.clone()), Err(Failure::Unknown(_))), "{status} {body}");
        }
        for (status, body) in [
            (200, json!({ "key": key, "status": "PENDING" })),
            (200, json!({ "key": key, "status": "DONE", "amount": { "currencyCode": "BRL", "amount": "10.51" } })),
            (202, json!({ "key": key, "status": "DONE" })),
            (400, json!({})),
            (402, json!({ "key": key, "status": "DECLINED" })),
            (404, json!({ "key": key, "status": "NOT_FOUND" })),
            (500, json!({ "key": key, "status": "DONE" })),
        ] {
            assert!(matches!(answer(status, body.clone()), Err(Failure::NotTaken(_))), "{status} {body}");
        }
    }

    #[test]
    fn a_url_is_checked() {
        assert!("https://provider.example/v1/".parse::<Url>().is_ok_and(|url| url.0 == "https://provider.example/v1" && !url.is_in_the_clear()));
        assert!("http://127.0.0.1:8080".parse::<Url>().is_ok_and(|url| url.is_in_the_clear()));
        for text in ["", "provider", "ftp://x", "https://u:p@x", "https://x?y=1", "https://x#y"] {
            assert!(text.parse::<Url>().is_err(), "{text}");
        }
    }
}
