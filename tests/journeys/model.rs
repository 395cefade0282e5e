//! Everything that money does, against a model: random sequences of every operation over the public surface, with crashes in between, and after each the
//! answer, every balance and every state compared with a small ledger in memory. Ignored in a plain run: `make test-model`. LASTRO_MODEL_CASES says how many
//! sequences, LASTRO_MODEL_SEED which.

mod ledger;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lastro_mesh::clock;
use lastro_tests::client::Someone;
use lastro_tests::{Answer, Api, Postgres, Server};
use libtest_mimic::Trial;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use reqwest::Method;
use serde_json::{Value, json};

use self::ledger::{Account, Caller, Kind, Ledger, Leg, Minor, State, Transaction};
use crate::{block_on, failed};

pub fn trials() -> Vec<Trial> {
    let trial = |name: &str, test: fn() -> Result<()>| Trial::test(format!("model::{name}"), move || failed(test())).with_ignored_flag(true);
    vec![trial("on_sqlite", || run(None)), trial("on_postgresql", || run(Some(Postgres::start()?)))]
}

fn setting(name: &str) -> Option<u64> {
    std::env::vars().find(|(key, _)| key == name).and_then(|(_, value)| value.parse().ok())
}

/// Steps of one sequence.
const STEPS: usize = 60;

/// What is done next. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Step {
    /// A transfer, or where `to` says so a withdrawal.
    Move(Movement),
    /// By the administrator.
    Deposit {
        to: u8,
        amount: u16,
    },
    Resolve {
        hold: u8,
        by: u8,
        captures: bool,
        part: u8,
        dry: bool,
    },
    Reverse {
        of: u8,
        by: u8,
    },
    Freeze {
        account: u8,
        frozen: bool,
    },
    Limit {
        account: u8,
        limit: u16,
    },
    Rename {
        account: u8,
        name: u8,
    },
    Close {
        account: u8,
    },
    Batch {
        user: u8,
        members: Vec<Movement>,
        atomic: bool,
        dry: bool,
        twice: bool,
    },
    /// An earlier request of a transaction again, as it was or otherwise.
    Again {
        of: u8,
        changed: bool,
    },
    /// From an account, or by a card that the sandbox approves or not.
    Pay {
        movement: Movement,
        card: bool,
        declined: bool,
    },
    /// Some of a payment, or all that is left.
    Refund {
        of: u8,
        by: u8,
        part: u8,
    },
    /// Time passes until every short hold has run out.
    Wait,
    /// kill -9, and a start on what is stored; a move is under way meanwhile.
    Crash(Movement),
}

#[derive(Debug, Clone)]
struct Movement {
    user: u8,
    legs: Vec<(u8, u8, u16)>,
    as_legs: bool,
    hold: bool,
    short: bool,
    dry: bool,
}

fn movement() -> impl Strategy<Value = Movement> {
    let legs = prop::collection::vec((any::<u8>(), any::<u8>(), 1_u16..3000), 1..5);
    let flags = (prop::bool::weighted(0.35), prop::bool::weighted(0.35), prop::bool::weighted(0.2), prop::bool::weighted(0.1));
    (any::<u8>(), legs, flags).prop_map(|(user, legs, (as_legs, hold, short, dry))| Movement { user, legs, as_legs, hold, short, dry })
}

fn step() -> impl Strategy<Value = Step> {
    let (any, flag) = (any::<u8>, any::<bool>);
    prop_oneof![
        30 => movement().prop_map(Step::Move),
        8 => (any(), 1_u16..6000).prop_map(|(to, amount)| Step::Deposit { to, amount }),
        16 => (any(), any(), prop::bool::weighted(0.7), any(), prop::bool::weighted(0.1))
            .prop_map(|(hold, by, captures, part, dry)| Step::Resolve { hold, by, captures, part, dry }),
        9 => (any(), any()).prop_map(|(of, by)| Step::Reverse { of, by }),
        5 => (any(), prop::bool::weighted(0.35)).prop_map(|(account, frozen)| Step::Freeze { account, frozen }),
        5 => (any(), 0_u16..4000).prop_map(|(account, limit)| Step::Limit { account, limit }),
        2 => (any(), any()).prop_map(|(account, name)| Step::Rename { account, name }),
        3 => any().prop_map(|account| Step::Close { account }),
        8 => (any(), prop::collection::vec(movement(), 1..6), flag(), prop::bool::weighted(0.15), prop::bool::weighted(0.2))
            .prop_map(|(user, members, atomic, dry, twice)| Step::Batch { user, members, atomic, dry, twice }),
        8 => (any(), prop::bool::weighted(0.3)).prop_map(|(of, changed)| Step::Again { of, changed }),
        10 => (movement(), flag(), prop::bool::weighted(0.2)).prop_map(|(movement, card, declined)| Step::Pay { movement, card, declined }),
        12 => (any(), any(), any()).prop_map(|(of, by, part)| Step::Refund { of, by, part }),
        2 => Just(Step::Wait),
        2 => movement().prop_map(Step::Crash),
    ]
}

fn run(postgres: Option<Postgres>) -> Result<()> {
    let now = clock::now_s().unsigned_abs();
    let (seed, cases) = (setting("LASTRO_MODEL_SEED").unwrap_or(now), setting("LASTRO_MODEL_CASES").unwrap_or(40));
    let where_ = if postgres.is_some() { "PostgreSQL" } else { "SQLite" };
    eprintln!("model on {where_}: LASTRO_MODEL_SEED={seed}, {cases} sequences of {STEPS} steps");
    let folder = tempfile::tempdir()?;
    let url = postgres.as_ref().map(Postgres::url);
    let flags: Vec<&str> = url.iter().flat_map(|url| ["--database-url", url.as_str()]).chain(["--payment-provider", "sandbox"]).collect();
    let world = std::cell::RefCell::new(Some(Server::start(&folder.path().join("data"), &flags)?));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    let config = Config { cases: u32::try_from(cases)?, max_shrink_iters: 60, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let counts = std::cell::RefCell::new(std::collections::BTreeMap::<String, u32>::new());
    let outcome = runner.run(&prop::collection::vec(step(), STEPS), |steps| {
        let server = world.borrow_mut().take().ok_or_else(|| TestCaseError::fail("no server"))?;
        let (server, done) = block_on(play(server, &flags, &steps, &counts));
        *world.borrow_mut() = Some(server);
        done.map_err(|error| TestCaseError::fail(format!("{error:#}")))
    });
    eprintln!("model on {where_}: {:?}", counts.borrow());
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, steps)) => anyhow::bail!("LASTRO_MODEL_SEED={seed}: {why}\nby {steps:#?}"),
        Err(abort) => anyhow::bail!("{abort}"),
    }
    let server = world.into_inner().context("a server")?;
    block_on(async {
        let stored = crate::ledger::Ledger::open(url.as_deref(), &server.data).await?;
        stored.check().await?;
        stored.check_chains(500).await
    })
}

/// A sequence over accounts of its own. The server is given back, or another one in its place.
async fn play(
    server: Server,
    flags: &[&str],
    steps: &[Step],
    counts: &std::cell::RefCell<std::collections::BTreeMap<String, u32>>,
) -> (Server, Result<()>) {
    let mut player = match Player::new(server, flags).await {
        Ok(player) => player,
        Err((server, error)) => return (server, Err(error)),
    };
    // All but two begin with some money: those two may be closed.
    for to in [0, 1, 3, 4, 6] {
        if let Err(error) = player.step(&Step::Deposit { to, amount: 9000 }).await {
            return (player.server, Err(error));
        }
    }
    for (number, step) in steps.iter().enumerate() {
        let name = format!("{step:?}").split([' ', '(', '{']).next().unwrap_or_default().to_owned();
        *counts.borrow_mut().entry(name).or_default() += 1;
        if let Err(error) = player.step(step).await {
            let error = error.context(format!("step {number}, {step:?}"));
            return (player.server, Err(error));
        }
    }
    let compared = player.compare().await;
    for transaction in &player.ledger.transactions {
        let state = format!("{:?}", transaction.state).split(' ').next().unwrap_or_default().to_owned();
        *counts.borrow_mut().entry(format!("= {state}")).or_default() += 1;
    }
    (player.server, compared)
}

/// A request of a transaction, as it was sent.
struct Sent {
    body: Value,
    /// Its place in the model, and its id.
    place: usize,
    id: String,
    /// When it runs out by itself, if that is soon: Unix milliseconds.
    expires_ms: Option<u64>,
}

struct Player {
    server: Server,
    flags: Vec<String>,
    api: Api,
    users: Vec<Someone>,
    administrator: String,
    ids: Vec<String>,
    ledger: Ledger,
    /// One for each transaction of the model.
    sent: Vec<Sent>,
    keys: u32,
}

fn now_ms() -> u64 {
    clock::now_us().unsigned_abs() / 1000
}

fn money(currency: &str, minor: Minor) -> Value {
    let (sign, abs) = (if minor < 0 { "-" } else { "" }, minor.abs());
    json!({ "currencyCode": currency, "amount": format!("{sign}{}.{:02}", abs / 100, abs % 100) })
}

/// Two users with four and three accounts, of two currencies.
const ACCOUNTS: [(usize, &str); 7] = [(0, "BRL"), (0, "BRL"), (0, "BRL"), (0, "USD"), (1, "BRL"), (1, "BRL"), (1, "USD")];

impl Player {
    async fn new(server: Server, flags: &[&str]) -> Result<Self, (Server, anyhow::Error)> {
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

    fn token(&self, caller: Caller) -> &str {
        match caller {
            Caller::User(user) => &self.users[user].token,
            Caller::Administrator => &self.administrator,
        }
    }

    /// Of the administrator's namespace too, which all sequences share.
    fn key(&mut self) -> String {
        self.keys += 1;
        format!("{}-{}", &self.ids[0][24..], self.keys)
    }

    async fn post(&self, caller: Caller, path: &str, body: &Value) -> Result<Answer> {
        self.api.json(Method::POST, path, Some(self.token(caller)), &[("prefer", "wait=10")], Some(body.clone())).await
    }

    /// Lets holds run out that would during the next step, so that the model knows which side of their expiry it is on.
    async fn settle_expiries(&mut self, margin_ms: u64) {
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

    async fn step(&mut self, step: &Step) -> Result<()> {
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
    fn legs_of(&self, movement: &Movement) -> (Caller, Vec<Leg>) {
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

    fn body_of(&mut self, movement: &Movement, legs: &[Leg]) -> Value {
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

    async fn submit(&mut self, movement: &Movement) -> Result<()> {
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
    async fn send(&mut self, caller: Caller, body: Value, legs: &[Leg], has_legs: bool, hold: bool) -> Result<()> {
        let answer = self.post(caller, "/api/v1/transactions", &body).await?;
        ensure!(answer.status == 201 && answer.body["replayed"] == json!(false), "{answer:?}");
        let place = self.ledger.submit(caller, legs, has_legs, hold);
        self.note(body, place, &answer.body)?;
        self.same(&self.ledger.transactions[place], caller, &answer.body)
    }

    fn note(&mut self, body: Value, place: usize, answer: &Value) -> Result<()> {
        let id = answer["id"].as_str().filter(|id| !id.is_empty()).context("an id")?.to_owned();
        let is_short = body["holdExpiry"] == "1s" && answer["state"] == "AUTHORIZED";
        let expires_ms = is_short.then(|| unix_ms(answer["holdExpireTime"].as_str().unwrap_or_default())).transpose()?;
        ensure!(self.sent.len() == place, "every transaction of the model was sent");
        self.sent.push(Sent { body, place, id, expires_ms });
        Ok(())
    }

    /// A transaction as its submitter sees it.
    fn same(&self, expected: &Transaction, reader: Caller, told: &Value) -> Result<()> {
        let (state, reason, leg) = match expected.state {
            State::Authorized => ("AUTHORIZED", "", None),
            State::Completed => ("COMPLETED", "", None),
            State::Rejected { leg, reason } => ("REJECTED", reason, Some(leg).filter(|_| expected.has_legs)),
            State::Declined { reason } => ("REJECTED", reason, None),
            State::Voided => ("VOIDED", "", None),
            State::Expired => ("EXPIRED", "", None),
        };
        ensure!(told["state"] == state && told["reason"] == reason, "expected {state} {reason}: {told}");
        ensure!(told["rejectedLeg"] == json!(leg), "expected leg {leg:?}: {told}");
        ensure!(told["hold"] == json!(expected.hold), "{told}");
        let currency = |leg: &Leg| ACCOUNTS[leg.from.or(leg.to).unwrap_or_default()].1;
        let captured = expected.captured.map_or(Value::Null, |captured| money(currency(&expected.legs[0]), captured));
        ensure!(told["capturedAmount"] == captured, "expected {captured}: {told}");
        let id = |place: Option<usize>| place.map(|place| self.sent[place].id.clone()).unwrap_or_default();
        if expected.reversal.is_none_or(|place| place < self.sent.len()) {
            ensure!(told["reversalId"] == id(expected.reversal) && told["originalId"] == id(expected.original), "{told}");
        }
        let sees = |account: usize| reader == Caller::Administrator || reader == Caller::User(ACCOUNTS[account].0);
        let sides = expected.legs.iter().flat_map(|leg| {
            let moved = expected.captured.unwrap_or(leg.amount);
            [(leg.from, -moved, currency(leg)), (leg.to, moved, currency(leg))]
        });
        let seen = sides.zip(&expected.after).filter_map(|((account, amount, currency), after)| {
            let account = account.filter(|account| sees(*account))?;
            Some(json!({ "accountId": self.ids[account], "amount": money(currency, amount), "balanceAfter": money(currency, (*after)?) }))
        });
        let seen: Vec<Value> = seen.collect();
        ensure!(told["postings"] == json!(seen), "expected {}: {told}", json!(seen));
        Ok(())
    }

    fn caller(&self, by: u8) -> Caller {
        match usize::from(by) % (self.users.len() + 1) {
            user if user < self.users.len() => Caller::User(user),
            _ => Caller::Administrator,
        }
    }

    /// Whether a caller sees a transaction at all.
    fn sees(caller: Caller, transaction: &Transaction) -> bool {
        let is_party = |account: Option<usize>| account.is_some_and(|account| caller == Caller::User(ACCOUNTS[account].0));
        caller == Caller::Administrator
            || caller == transaction.submitter
            || transaction.legs.iter().any(|leg| is_party(leg.from) || is_party(leg.to))
    }

    async fn resolve(&mut self, hold: u8, by: u8, captures: bool, part: u8, dry: bool) -> Result<()> {
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

    async fn reverse(&mut self, of: u8, by: u8) -> Result<()> {
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

    /// A payment from one account of the payer, or by card, to others of its currency.
    async fn pay(&mut self, movement: &Movement, card: bool, declined: bool) -> Result<()> {
        let (caller, legs) = self.legs_of(movement);
        let Some(from) = legs[0].from else { return Ok(()) };
        let fits = |leg: &&Leg| leg.to.is_some_and(|to| to != from && ACCOUNTS[to].1 == ACCOUNTS[from].1);
        let legs: Vec<Leg> = legs.iter().filter(fits).map(|leg| Leg { from: (!card).then_some(from), ..*leg }).collect();
        if legs.is_empty() {
            return Ok(());
        }
        let order = self.key();
        let asked =
            |leg: &Leg| json!({ "destinationAccountId": leg.to.map(|to| self.ids[to].clone()), "amount": money(ACCOUNTS[from].1, leg.amount) });
        let mut body = json!({ "orderId": order, "legs": legs.iter().map(asked).collect::<Vec<_>>() });
        if card {
            (body["method"], body["cardToken"]) = (json!("CARD"), json!(if declined { "tok_decline" } else { "tok_approve" }));
        } else {
            (body["method"], body["accountId"]) = (json!("ACCOUNT"), json!(self.ids[from]));
        }
        let answer = self.post(caller, "/api/v1/payments/process", &body).await?;
        ensure!(answer.status == 201, "{answer:?}");
        let place = self.ledger.pay(caller, &legs, declined);
        let state = if self.ledger.transactions[place].state == State::Completed { "CAPTURED" } else { "DECLINED" };
        ensure!(answer.body["state"] == state, "expected {state}: {answer:?}");
        self.note(body.clone(), place, &answer.body)?;
        let again = self.post(caller, "/api/v1/payments/process", &body).await?;
        ensure!(again.status == 200 && again.body["id"] == answer.body["id"] && again.body["replayed"] == json!(true), "{again:?}");
        self.compare_one(place).await
    }

    async fn refund(&mut self, of: u8, by: u8, part: u8) -> Result<()> {
        let payments: Vec<usize> = (0..self.sent.len()).filter(|place| self.ledger.transactions[*place].kind == Kind::Payment).collect();
        let Some(place) = (!payments.is_empty()).then(|| payments[usize::from(of) % payments.len()]) else { return Ok(()) };
        let payment = self.ledger.transactions[place].clone();
        // Mostly by whoever may.
        let caller = if by.is_multiple_of(2) { Caller::Administrator } else { self.caller(by / 2) };
        if !Self::sees(caller, &payment) {
            return Ok(());
        }
        let whole: Minor = payment.legs.iter().map(|leg| leg.amount).sum();
        let amount = (!part.is_multiple_of(3)).then(|| Minor::max(1, whole * Minor::from(part) / 256));
        let currency = ACCOUNTS[payment.legs[0].to.unwrap_or_default()].1;
        let mut body = json!({ "paymentId": self.sent[place].id, "externalId": self.key() });
        if let Some(amount) = amount {
            body["amount"] = money(currency, amount);
        }
        let answer = self.post(caller, "/api/v1/payments/refund", &body).await?;
        match self.ledger.refund(caller, place, amount) {
            Ok(refund) => {
                ensure!(answer.status == 201, "{answer:?}");
                let given: Minor = self.ledger.transactions[place].refunded.iter().sum();
                let state = if given == whole { "REFUNDED" } else { "CAPTURED" };
                let told_of_all = caller == Caller::Administrator || caller == payment.submitter;
                ensure!(answer.body["state"] == state, "expected {state}: {answer:?}");
                ensure!(!told_of_all || answer.body["refundedAmount"] == money(currency, given), "expected {given}: {answer:?}");
                let last = answer.body["refunds"].as_array().and_then(|refunds| refunds.last()).context("a refund")?;
                let made = json!({ "id": last["transactionId"], "state": "COMPLETED" });
                self.note(body.clone(), refund, &made)?;
                let again = self.post(caller, "/api/v1/payments/refund", &body).await?;
                ensure!(again.status == 200 && again.body["replayed"] == json!(true), "{again:?}");
                self.compare_one(refund).await?;
            }
            Err(reason) => ensure!(answer.body["reason"] == reason, "expected {reason}: {answer:?}"),
        }
        self.compare_one(place).await
    }

    /// A transaction as its submitter reads it.
    async fn compare_one(&self, place: usize) -> Result<()> {
        let expected = &self.ledger.transactions[place];
        let told = self.api.get(&format!("/api/v1/transactions/{}", self.sent[place].id), Some(self.token(expected.submitter))).await?;
        ensure!(told.status == 200, "{told:?}");
        self.same(expected, expected.submitter, &told.body)
    }

    /// Whether the account was changed; a closed one never is.
    async fn patch(&self, account: usize, caller: Caller, body: Value) -> Result<bool> {
        let path = format!("/api/v1/accounts/{}", self.ids[account]);
        let answer = self.api.json(Method::PATCH, &path, Some(self.token(caller)), &[], Some(body)).await?;
        if self.ledger.accounts[account].closed {
            ensure!(answer.status == 409 && answer.body["reason"] == "ACCOUNT_CLOSED", "{answer:?}");
            return Ok(false);
        }
        ensure!(answer.status == 200, "{answer:?}");
        Ok(true)
    }

    async fn batch(&mut self, user: u8, members: &[Movement], atomic: bool, dry: bool, twice: bool) -> Result<()> {
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
    async fn again(&mut self, of: u8, changed: bool) -> Result<()> {
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
    async fn crash(&mut self, movement: &Movement) -> Result<()> {
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

    async fn compare_balances(&mut self) -> Result<()> {
        // What has run out by now is released within a second, and is compared when it is.
        let before = now_ms();
        let is_open = |sent: &Sent| sent.expires_ms.is_some_and(|expires| expires > before.saturating_sub(1200) && expires < before + 400);
        if self.sent.iter().any(|sent| is_open(sent) && [State::Authorized, State::Expired].contains(&self.ledger.transactions[sent.place].state)) {
            return Ok(());
        }
        for (account, id) in self.ledger.accounts.iter().zip(&self.ids) {
            let told = self.api.get(&format!("/api/v1/accounts/{id}"), Some(&self.users[account.owner].token)).await?.body;
            let state = if account.closed {
                "CLOSED"
            } else if account.frozen {
                "FROZEN"
            } else {
                "OPEN"
            };
            let available = account.posted - account.held + account.limit;
            let of = |minor| money(account.currency, minor);
            let expected = [of(account.posted), of(account.held), of(available), of(account.limit), json!(state), json!(account.name)];
            let told = ["posted", "held", "available", "creditLimit", "state", "displayName"].map(|name| told[name].clone());
            ensure!(told == expected, "an account: expected {expected:?}, told {told:?}");
        }
        Ok(())
    }

    /// Every balance and every state, when nothing is about to run out.
    async fn compare(&mut self) -> Result<()> {
        self.settle_expiries(2000).await;
        tokio::time::sleep(Duration::from_millis(if self.sent.iter().any(|sent| sent.expires_ms.is_some()) { 1300 } else { 0 })).await;
        self.compare_balances().await?;
        for sent in &self.sent {
            self.compare_one(sent.place).await?;
        }
        Ok(())
    }
}

/// Of `2026-11-26T14:56:51.123456Z`.
fn unix_ms(text: &str) -> Result<u64> {
    let time: lastro_proto::time::Timestamp = serde_json::from_value(json!(text))?;
    Ok(u64::try_from(time.seconds)? * 1000 + u64::try_from(time.nanos)?.div_ceil(1_000_000))
}
