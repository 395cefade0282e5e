//! Does each step over the public surface and in the model, and tells whether both say the same.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lastro_mesh::clock;
use lastro_tests::client::Someone;
use lastro_tests::{Answer, Api, Server};
use reqwest::Method;
use serde_json::{Value, json};

use super::ledger::{Account, Caller, Kind, Ledger, Leg, Minor, State, Transaction};
use super::steps::{Movement, Step};

/// A request of a transaction, as it was sent.
pub(super) struct Sent {
    pub(super) body: Value,
    /// Its place in the model, and its id.
    pub(super) place: usize,
    pub(super) id: String,
    /// When it runs out by itself, if that is soon: Unix milliseconds.
    pub(super) expires_ms: Option<u64>,
}

pub(super) struct Player {
    pub(super) server: Server,
    pub(super) flags: Vec<String>,
    pub(super) api: Api,
    pub(super) users: Vec<Someone>,
    pub(super) administrator: String,
    pub(super) ids: Vec<String>,
    pub(super) ledger: Ledger,
    /// One for each transaction of the model.
    pub(super) sent: Vec<Sent>,
    pub(super) keys: u32,
}

pub(super) fn now_ms() -> u64 {
    clock::now_us().unsigned_abs() / 1000
}

pub(super) fn money(currency: &str, minor: Minor) -> Value {
    let (sign, abs) = (if minor < 0 { "-" } else { "" }, minor.abs());
    json!({ "currencyCode": currency, "amount": format!("{sign}{}.{:02}", abs / 100, abs % 100) })
}

/// Two users with four and three accounts, of two currencies.
pub(super) const ACCOUNTS: [(usize, &str); 7] = [(0, "BRL"), (0, "BRL"), (0, "BRL"), (0, "USD"), (1, "BRL"), (1, "BRL"), (1, "USD")];

impl Player {
    pub(super) async fn new(server: Server, flags: &[&str]) -> Result<Self, (Server, anyhow::Error)> {
        let api = server.api();
        let made = async {
            let (users, administrator) = (vec![api.someone().await?, api.someone().await?], server.administrator().await?);
            let (mut ids, mut ledger) = (Vec::new(), Ledger::default());
            for (owner, currency) in ACCOUNTS {
                ids.push(api.account(&users[owner].token, currency).await?);
                let name = "test".to_owned();
                ledger.accounts.push(Account { owner, currency, posted: 0, held: 0, limit: 0, frozen: false, closed: false, name });
            }
            anyhow::Ok((users, administrator, ids, ledger))
        };
        match made.await {
            Ok((users, administrator, ids, ledger)) => {
                let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
                Ok(Self { server, flags, api, users, administrator, ids, ledger, sent: Vec::new(), keys: 0 })
            }
            Err(error) => Err((server, error)),
        }
    }

    pub(super) fn token(&self, caller: Caller) -> &str {
        match caller {
            Caller::User(user) => &self.users[user].token,
            Caller::Administrator => &self.administrator,
        }
    }

    /// Of the administrator's namespace too, which all sequences share.
    pub(super) fn key(&mut self) -> String {
        self.keys += 1;
        format!("{}-{}", &self.ids[0][24..], self.keys)
    }

    pub(super) async fn post(&self, caller: Caller, path: &str, body: &Value) -> Result<Answer> {
        self.api.json(Method::POST, path, Some(self.token(caller)), &[("prefer", "wait=10")], Some(body.clone())).await
    }

    /// Lets holds run out that would during the next step, so that the model knows which side of their expiry it is on.
    pub(super) async fn settle_expiries(&mut self, margin_ms: u64) {
        loop {
            let now = now_ms();
            for sent in &self.sent {
                if sent.expires_ms.is_some_and(|expires| expires <= now) {
                    self.ledger.expire(sent.place);
                }
            }
            let is_open = |sent: &&Sent| self.ledger.transactions[sent.place].state == State::Authorized;
            let soonest = self.sent.iter().filter(is_open).filter_map(|sent| sent.expires_ms).filter(|expires| *expires < now + margin_ms).min();
            let Some(soonest) = soonest else { return };
            tokio::time::sleep(Duration::from_millis(soonest - now + 2)).await;
        }
    }

    pub(super) async fn step(&mut self, step: &Step) -> Result<()> {
        self.settle_expiries(400).await;
        match step {
            Step::Move(movement) => self.submit(movement).await?,
            Step::Deposit { to, amount } => {
                let to = usize::from(*to) % ACCOUNTS.len();
                let leg = Leg { from: None, to: Some(to), amount: Minor::from(*amount) };
                let body = json!({ "externalId": self.key(), "type": "DEPOSIT", "destinationAccountId": self.ids[to],
                    "amount": money(ACCOUNTS[to].1, leg.amount) });
                self.send(Caller::Administrator, body, &[leg], false, false).await?;
            }
            Step::Resolve { hold, by, captures, part, dry } => self.resolve(*hold, *by, *captures, *part, *dry).await?,
            Step::Reverse { of, by } => self.reverse(*of, *by).await?,
            Step::Freeze { account, frozen } => {
                let account = usize::from(*account) % ACCOUNTS.len();
                let changed = self.patch(account, Caller::Administrator, json!({ "frozen": frozen })).await?;
                if changed {
                    self.ledger.accounts[account].frozen = *frozen;
                }
            }
            Step::Limit { account, limit } => {
                let account = usize::from(*account) % ACCOUNTS.len();
                let limit = Minor::from(*limit);
                if self.patch(account, Caller::Administrator, json!({ "creditLimit": money(ACCOUNTS[account].1, limit) })).await? {
                    self.ledger.accounts[account].limit = limit;
                }
            }
            Step::Rename { account, name } => {
                let (account, name) = (usize::from(*account) % ACCOUNTS.len(), format!("name {name}"));
                if self.patch(account, Caller::User(ACCOUNTS[account].0), json!({ "displayName": name })).await? {
                    self.ledger.accounts[account].name = name;
                }
            }
            Step::Close { account } => {
                let account = usize::from(*account) % ACCOUNTS.len();
                let path = format!("/api/v1/accounts/{}:close", self.ids[account]);
                let answer = self.post(Caller::User(ACCOUNTS[account].0), &path, &json!({})).await?;
                match self.ledger.close(account) {
                    Ok(()) => ensure!(answer.status == 200 && answer.body["state"] == "CLOSED", "{answer:?}"),
                    Err(reason) => ensure!(answer.status == 409 && answer.body["reason"] == reason, "expected {reason}: {answer:?}"),
                }
            }
            Step::Batch { user, members, atomic, dry, twice } => self.batch(*user, members, *atomic, *dry, *twice).await?,
            Step::Pay { movement, card, declined } => self.pay(movement, *card, *card && *declined).await?,
            Step::Refund { of, by, part } => self.refund(*of, *by, *part).await?,
            Step::Again { of, changed } => self.again(*of, *changed).await?,
            Step::Wait => self.settle_expiries(2000).await,
            Step::Crash(movement) => self.crash(movement).await?,
        }
        self.compare_balances().await
    }

    /// The legs of a movement by one user; its own accounts are the sources, and each leg is of one currency.
    pub(super) fn legs_of(&self, movement: &Movement) -> (Caller, Vec<Leg>) {
        let user = usize::from(movement.user) % self.users.len();
        let own: Vec<usize> = (0..ACCOUNTS.len()).filter(|account| ACCOUNTS[*account].0 == user).collect();
        let leg = |(from, to, amount): &(u8, u8, u16)| {
            let from = own[usize::from(*from) % own.len()];
            let others: Vec<usize> = (0..ACCOUNTS.len()).filter(|to| *to != from && ACCOUNTS[*to].1 == ACCOUNTS[from].1).collect();
            // One in eight goes out; of legs none does.
            let goes_out = !movement.as_legs && to.is_multiple_of(8);
            Leg { from: Some(from), to: (!goes_out).then(|| others[usize::from(*to) % others.len()]), amount: Minor::from(*amount) }
        };
        let legs: Vec<Leg> = movement.legs.iter().map(leg).collect();
        (Caller::User(user), if movement.as_legs { legs } else { legs[..1].to_vec() })
    }

    pub(super) fn body_of(&mut self, movement: &Movement, legs: &[Leg]) -> Value {
        let id = |account: Option<usize>| account.map(|account| self.ids[account].clone());
        let of = |leg: &Leg| {
            let currency = ACCOUNTS[leg.from.or(leg.to).unwrap_or_default()].1;
            json!({ "sourceAccountId": id(leg.from), "destinationAccountId": id(leg.to), "amount": money(currency, leg.amount) })
        };
        let mut body = if movement.as_legs { json!({ "legs": legs.iter().map(of).collect::<Vec<_>>() }) } else { of(&legs[0]) };
        body["type"] = json!(if legs[0].to.is_none() { "WITHDRAWAL" } else { "TRANSFER" });
        body["externalId"] = json!(self.key());
        if movement.hold {
            body["hold"] = json!(true);
            if movement.short {
                body["holdExpiry"] = json!("1s");
            }
        }
        body
    }

    pub(super) async fn submit(&mut self, movement: &Movement) -> Result<()> {
        let (caller, legs) = self.legs_of(movement);
        let mut body = self.body_of(movement, &legs);
        if movement.dry {
            body["validateOnly"] = json!(true);
            let expected = self.ledger.rehearse(caller, &legs, movement.as_legs, movement.hold);
            let answer = self.post(caller, "/api/v1/transactions", &body).await?;
            ensure!(answer.status == 200 && answer.body["id"] == "" && answer.header("location").is_empty(), "{answer:?}");
            return self.same(&expected, caller, &answer.body);
        }
        self.send(caller, body, &legs, movement.as_legs, movement.hold).await
    }

    /// Sends a new transaction, and compares what became of it.
    pub(super) async fn send(&mut self, caller: Caller, body: Value, legs: &[Leg], has_legs: bool, hold: bool) -> Result<()> {
        let answer = self.post(caller, "/api/v1/transactions", &body).await?;
        ensure!(answer.status == 201 && answer.body["replayed"] == json!(false), "{answer:?}");
        let place = self.ledger.submit(caller, legs, has_legs, hold);
        self.note(body, place, &answer.body)?;
        self.same(&self.ledger.transactions[place], caller, &answer.body)
    }

    pub(super) fn note(&mut self, body: Value, place: usize, answer: &Value) -> Result<()> {
        let id = answer["id"].as_str().filter(|id| !id.is_empty()).context("an id")?.to_owned();
        let is_short = body["holdExpiry"] == "1s" && answer["state"] == "AUTHORIZED";
        let expires_ms = is_short.then(|| unix_ms(answer["holdExpireTime"].as_str().unwrap_or_default())).transpose()?;
        ensure!(self.sent.len() == place, "every transaction of the model was sent");
        self.sent.push(Sent { body, place, id, expires_ms });
        Ok(())
    }

    pub(super) fn caller(&self, by: u8) -> Caller {
        match usize::from(by) % (self.users.len() + 1) {
            user if user < self.users.len() => Caller::User(user),
            _ => Caller::Administrator,
        }
    }

    /// Whether a caller sees a transaction at all.
    pub(super) fn sees(caller: Caller, transaction: &Transaction) -> bool {
        let is_party = |account: Option<usize>| account.is_some_and(|account| caller == Caller::User(ACCOUNTS[account].0));
        caller == Caller::Administrator
            || caller == transaction.submitter
            || transaction.legs.iter().any(|leg| is_party(leg.from) || is_party(leg.to))
    }

    pub(super) async fn resolve(&mut self, hold: u8, by: u8, captures: bool, part: u8, dry: bool) -> Result<()> {
        // Mostly holds; now and then something else.
        let holds: Vec<usize> = (0..self.sent.len()).filter(|place| self.ledger.transactions[*place].hold || hold.is_multiple_of(16)).collect();
        let Some(place) = (!holds.is_empty()).then(|| holds[usize::from(hold) % holds.len()]) else { return Ok(()) };
        let target = self.ledger.transactions[place].clone();
        let caller = if by.is_multiple_of(2) { target.submitter } else { self.caller(by / 2) };
        if !Self::sees(caller, &target) {
            return Ok(());
        }
        let amount = (captures && !target.has_legs && part.is_multiple_of(2)).then(|| Minor::max(1, target.legs[0].amount * Minor::from(part) / 256));
        let currency = ACCOUNTS[target.legs[0].from.or(target.legs[0].to).unwrap_or_default()].1;
        // Few keys, so that some come again.
        let key = format!("k{}", part % 3);
        let verb = if captures { "capture" } else { "void" };
        let mut body = json!({ "externalId": key });
        if let Some(amount) = amount {
            body["amount"] = money(currency, amount);
        }
        let is_dry = dry && captures;
        if is_dry {
            body["validateOnly"] = json!(true);
        }
        let before = self.ledger.clone();
        let expected = self.ledger.resolve(caller, place, verb, &key, amount);
        let answer = self.post(caller, &format!("/api/v1/transactions/{}:{verb}", self.sent[place].id), &body).await?;
        match expected {
            Ok(()) => {
                ensure!(answer.status == 200, "{answer:?}");
                self.same(&self.ledger.transactions[place], caller, &answer.body)?;
            }
            Err(reason) => ensure!(answer.body["reason"] == reason, "expected {reason}: {answer:?}"),
        }
        if is_dry {
            self.ledger = before;
        }
        Ok(())
    }

    pub(super) async fn reverse(&mut self, of: u8, by: u8) -> Result<()> {
        let Some(place) = (!self.sent.is_empty()).then(|| usize::from(of) % self.sent.len()) else { return Ok(()) };
        let caller = self.caller(by);
        if !Self::sees(caller, &self.ledger.transactions[place]) {
            return Ok(());
        }
        let body = json!({ "externalId": self.key() });
        let path = format!("/api/v1/transactions/{}:reverse", self.sent[place].id);
        let answer = self.post(caller, &path, &body).await?;
        match self.ledger.reverse(caller, place) {
            Ok(reversal) => {
                ensure!(answer.status == 201, "{answer:?}");
                self.note(body.clone(), reversal, &answer.body)?;
                self.same(&self.ledger.transactions[reversal], caller, &answer.body)?;
                let again = self.post(caller, &path, &body).await?;
                ensure!(again.status == 200 && again.body["id"] == answer.body["id"] && again.body["replayed"] == json!(true), "{again:?}");
            }
            Err(reason) => ensure!(answer.body["reason"] == reason, "expected {reason}: {answer:?}"),
        }
        Ok(())
    }

    /// Whether the account was changed; a closed one never is.
    pub(super) async fn patch(&self, account: usize, caller: Caller, body: Value) -> Result<bool> {
        let path = format!("/api/v1/accounts/{}", self.ids[account]);
        let answer = self.api.json(Method::PATCH, &path, Some(self.token(caller)), &[], Some(body)).await?;
        if self.ledger.accounts[account].closed {
            ensure!(answer.status == 409 && answer.body["reason"] == "ACCOUNT_CLOSED", "{answer:?}");
            return Ok(false);
        }
        ensure!(answer.status == 200, "{answer:?}");
        Ok(true)
    }

    pub(super) async fn batch(&mut self, user: u8, members: &[Movement], atomic: bool, dry: bool, twice: bool) -> Result<()> {
        let members: Vec<Movement> = members.iter().map(|member| Movement { user, short: false, ..member.clone() }).collect();
        let all: Vec<(Caller, Vec<Leg>)> = members.iter().map(|member| self.legs_of(member)).collect();
        let caller = all[0].0;
        let mut requests = Vec::new();
        for (member, (_, legs)) in members.iter().zip(&all) {
            requests.push(self.body_of(member, legs));
        }
        // The same key twice is one transaction.
        if twice {
            requests.push(requests[0].clone());
        }
        let body = json!({ "requests": requests, "atomic": atomic, "validateOnly": dry });
        let answer = self.post(caller, "/api/v1/transactions:batchCreate", &body).await?;
        let mut after = self.ledger.clone();
        let asked: Vec<(Vec<Leg>, bool, bool)> =
            members.iter().zip(&all).map(|(member, (_, legs))| (legs.clone(), member.as_legs, member.hold)).collect();
        let places = if atomic {
            match after.submit_together(caller, &asked) {
                Ok(places) => places,
                Err((index, reason)) => {
                    ensure!(answer.status == 422 && answer.body["reason"] == "BATCH_REFUSED", "expected {index} {reason}: {answer:?}");
                    let told = &answer.body["metadata"];
                    ensure!(told["index"] == json!(index.to_string()) && told["reason"] == reason, "expected {index} {reason}: {answer:?}");
                    return Ok(());
                }
            }
        } else {
            asked.iter().map(|(legs, has_legs, hold)| after.submit(caller, legs, *has_legs, *hold)).collect()
        };
        ensure!(answer.status == 200, "{answer:?}");
        let told = answer.body["results"].as_array().context("results")?.clone();
        ensure!(told.len() == requests.len(), "{answer:?}");
        if !dry {
            self.ledger = after.clone();
            for (place, (request, told)) in places.iter().zip(requests.iter().zip(&told)) {
                self.note(request.clone(), *place, &told["transaction"])?;
            }
        }
        for (place, told) in places.iter().chain(twice.then_some(&places[0])).zip(&told) {
            self.same(&after.transactions[*place], caller, &told["transaction"]).with_context(|| format!("{answer:?}"))?;
        }
        if twice && !dry {
            ensure!(told.last().map(|last| &last["transaction"]["id"]) == Some(&told[0]["transaction"]["id"]), "{answer:?}");
        }
        Ok(())
    }

    /// The same key again.
    pub(super) async fn again(&mut self, of: u8, changed: bool) -> Result<()> {
        let is_created = |transaction: &Transaction| transaction.original.is_none() && transaction.kind == Kind::Plain;
        let created: Vec<usize> = (0..self.sent.len()).filter(|place| is_created(&self.ledger.transactions[*place])).collect();
        let Some(place) = (!created.is_empty()).then(|| created[usize::from(of) % created.len()]) else { return Ok(()) };
        // That it has run out is written within a second; until then it shows as it stood.
        if self.ledger.transactions[place].state == State::Expired && self.sent[place].expires_ms.is_some_and(|expires| now_ms() < expires + 1200) {
            return Ok(());
        }
        let (mut body, caller) = (self.sent[place].body.clone(), self.ledger.transactions[place].submitter);
        if changed {
            body["description"] = json!("another");
            let answer = self.post(caller, "/api/v1/transactions", &body).await?;
            ensure!(answer.status == 422 && answer.body["reason"] == "IDEMPOTENCY_KEY_REUSED", "{answer:?}");
            return Ok(());
        }
        let answer = self.post(caller, "/api/v1/transactions", &body).await?;
        let is_final = self.ledger.transactions[place].state != State::Authorized;
        ensure!(answer.status == if is_final { 200 } else { 202 } && answer.body["replayed"] == json!(true), "{answer:?}");
        ensure!(answer.body["id"] == self.sent[place].id, "{answer:?}");
        self.same(&self.ledger.transactions[place], caller, &answer.body)
    }

    /// kill -9 while a move is under way; after the start the same request tells what became of it.
    pub(super) async fn crash(&mut self, movement: &Movement) -> Result<()> {
        // A start may take longer than a short hold lasts.
        self.settle_expiries(60_000).await;
        let movement = Movement { short: false, dry: false, ..movement.clone() };
        let (caller, legs) = self.legs_of(&movement);
        let body = self.body_of(&movement, &legs);
        let (api, token, sent) = (self.api.clone(), self.token(caller).to_owned(), body.clone());
        let under_way = tokio::spawn(async move { api.post("/api/v1/transactions", Some(&token), sent).await.is_ok() });
        tokio::time::sleep(Duration::from_millis(u64::from(movement.user) % 8)).await;
        self.server.kill();
        let _ = under_way.await;
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        self.server = self.server.start_again(&flags)?;
        let answer = self.post(caller, "/api/v1/transactions", &body).await?;
        ensure!([200, 201, 202].contains(&answer.status), "{answer:?}");
        let place = self.ledger.submit(caller, &legs, movement.as_legs, movement.hold);
        self.note(body, place, &answer.body)?;
        self.same(&self.ledger.transactions[place], caller, &answer.body)
    }
}

/// Of `2026-11-26T14:56:51.123456Z`.
pub(super) fn unix_ms(text: &str) -> Result<u64> {
    let time: lastro_proto::time::Timestamp = serde_json::from_value(json!(text))?;
    Ok(u64::try_from(time.seconds)? * 1000 + u64::try_from(time.nanos)?.div_ceil(1_000_000))
}
