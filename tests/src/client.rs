//! A client for REST that answers whatever came, so that a test can look at it.

use anyhow::{Context as _, Result};
use reqwest::Method;
use serde_json::{Value, json};

/// An API at an address.
#[derive(Clone)]
pub struct Api {
    client: reqwest::Client,
    base: String,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: reqwest::header::HeaderMap,
    /// The JSON, or the text, or null.
    pub body: Value,
}

impl Answer {
    /// A header's text, or empty.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// A field of the body as text.
    pub fn text(&self, field: &str) -> Result<String> {
        self.body[field].as_str().map(str::to_owned).with_context(|| format!("no {field} in {self:?}"))
    }
}

/// A user that is logged in, and an account.
#[derive(Debug, Clone)]
pub struct Someone {
    /// The user's id.
    pub id: String,
    /// Its address.
    pub email: String,
    /// Its access token.
    pub token: String,
    /// Its refresh token.
    pub refresh_token: String,
}

/// The password of everybody that [`Api::someone`] makes.
pub const PASSWORD: &str = "correct horse battery";

impl Api {
    /// At `http://host:port`.
    pub fn new(base: &str) -> Self {
        Self { client: reqwest::Client::new(), base: base.to_owned() }
    }

    /// At `http://host:port` or `https://host:port`, through a client that knows how.
    pub fn through(client: reqwest::Client, base: &str) -> Self {
        Self { client, base: base.to_owned() }
    }

    /// Sends anything.
    pub async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Option<String>) -> Result<Answer> {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(if text.is_empty() { Value::Null } else { Value::String(text) });
        Ok(Answer { status, headers, body })
    }

    /// Sends JSON with a token and more headers.
    pub async fn json(&self, method: Method, path: &str, token: Option<&str>, headers: &[(&str, &str)], body: Option<Value>) -> Result<Answer> {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let mut all = headers.to_vec();
        all.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
        all.push(("content-type", "application/json"));
        self.send(method, path, &all, body.map(|body| body.to_string())).await
    }

    /// GET.
    pub async fn get(&self, path: &str, token: Option<&str>) -> Result<Answer> {
        self.json(Method::GET, path, token, &[], None).await
    }

    /// POST of JSON.
    pub async fn post(&self, path: &str, token: Option<&str>, body: Value) -> Result<Answer> {
        self.json(Method::POST, path, token, &[], Some(body)).await
    }

    /// A new user, logged in. Where many journeys register users at once, who is told to come again does.
    pub async fn someone(&self) -> Result<Someone> {
        let new = async || {
            let email = format!("u{}@example.com", uuid::Uuid::new_v4().simple());
            let body = json!({ "name": "Somebody", "email": email, "password": PASSWORD });
            anyhow::Ok((self.post("/api/v1/users", None, body).await?, email))
        };
        let (mut user, mut email) = new().await?;
        for _ in 0..5 {
            if user.status != 503 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            (user, email) = new().await?;
        }
        anyhow::ensure!(user.status == 201, "{user:?}");
        let id = user.text("id")?;
        let login = self.post("/api/v1/auth/login", None, json!({ "email": email, "password": PASSWORD })).await?;
        Ok(Someone { id, email, token: login.text("accessToken")?, refresh_token: login.text("refreshToken")? })
    }

    /// A new account of a user.
    pub async fn account(&self, token: &str, currency: &str) -> Result<String> {
        let account = self.post("/api/v1/accounts", Some(token), json!({ "currencyCode": currency, "displayName": "test" })).await?;
        anyhow::ensure!(account.status == 201, "{account:?}");
        account.text("id")
    }

    /// Creates a transaction and waits for its outcome.
    pub async fn transact(&self, token: &str, body: Value) -> Result<Answer> {
        self.json(Method::POST, "/api/v1/transactions", Some(token), &[("prefer", "wait=10")], Some(body)).await
    }

    /// Puts money into an account.
    pub async fn deposit(&self, administrator: &str, account: &str, currency: &str, amount: &str) -> Result<Answer> {
        let key = uuid::Uuid::new_v4().to_string();
        let body = json!({ "externalId": key, "type": "DEPOSIT", "destinationAccountId": account, "amount": { "currencyCode": currency, "amount": amount } });
        let answer = self.transact(administrator, body).await?;
        anyhow::ensure!(answer.status == 201 && answer.body["state"] == "COMPLETED", "{answer:?}");
        Ok(answer)
    }

    /// The body of a transfer.
    pub fn transfer(key: &str, source: &str, destination: &str, amount: &str) -> Value {
        json!({
            "externalId": key, "type": "TRANSFER", "sourceAccountId": source, "destinationAccountId": destination,
            "amount": { "currencyCode": "BRL", "amount": amount }
        })
    }

    /// What an account has, as its decimal string.
    pub async fn posted(&self, token: &str, account: &str) -> Result<String> {
        let account = self.get(&format!("/api/v1/accounts/{account}"), Some(token)).await?;
        account.body["posted"]["amount"].as_str().map(str::to_owned).with_context(|| format!("{account:?}"))
    }
}
