//! Those who move money outside, at their worst. Providers that report in any order, again and again, and the contrary; a payment provider that loses its
//! answers, answers late, twice, nonsense or not at all; and kill -9 in between. Ignored in a plain run: `make test-providers`. LASTRO_PROVIDER_ROUNDS says
//! how long, LASTRO_PROVIDER_SEED which.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::{join_all, try_join_all};
use lastro_mesh::clock;
use lastro_tests::client::Someone;
use lastro_tests::payment_provider::{Fault, key, refund_key};
use lastro_tests::{Answer, Api, PaymentProvider, Postgres, Server};
use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::ledger::Ledger;
use crate::payments::{card, pay, refund};
use crate::provider_events::{external_deposit, report};
use crate::{block_on, failed};

pub fn trials() -> Vec<Trial> {
    let trial = |name: &str, test: fn(Rig) -> Result<()>, on_postgres: bool| {
        let database = if on_postgres { "postgresql" } else { "sqlite" };
        Trial::test(format!("providers::{name}_on_{database}"), move || failed(Rig::start(on_postgres).and_then(test))).with_ignored_flag(true)
    };
    let events: fn(Rig) -> Result<()> = |rig| block_on(every_order_ends_the_same(rig));
    let faults: fn(Rig) -> Result<()> = |rig| block_on(payments_end_as_the_provider_has_them(rig));
    vec![
        trial("every_order_ends_the_same", events, false),
        trial("every_order_ends_the_same", events, true),
        trial("payments_end_as_the_provider_has_them", faults, false),
        trial("payments_end_as_the_provider_has_them", faults, true),
    ]
}

fn setting(name: &str) -> Option<u64> {
    std::env::vars().find(|(key, _)| key == name).and_then(|(_, value)| value.parse().ok())
}

fn rounds() -> u64 {
    setting("LASTRO_PROVIDER_ROUNDS").unwrap_or(2)
}

/// A server that is killed and started again, and its provider.
struct Rig {
    server: Mutex<Option<Server>>,
    api: Api,
    flags: Vec<String>,
    postgres: Option<Postgres>,
    provider: PaymentProvider,
    seed: u64,
    _folder: tempfile::TempDir,
}

impl Rig {
    fn start(on_postgres: bool) -> Result<Self> {
        let seed = setting("LASTRO_PROVIDER_SEED").unwrap_or_else(|| clock::now_s().unsigned_abs());
        eprintln!("providers: seed {seed}");
        let (folder, provider) = (tempfile::tempdir()?, PaymentProvider::start()?);
        let postgres = if on_postgres { Some(Postgres::start()?) } else { None };
        let mut flags = vec!["--payment-provider".to_owned(), provider.url.clone()];
        flags.extend(postgres.iter().flat_map(|postgres| ["--database-url".to_owned(), postgres.url()]));
        let server = Server::start(&folder.path().join("data"), &flags.iter().map(String::as_str).collect::<Vec<_>>())?;
        let api = server.api();
        Ok(Self { server: Mutex::new(Some(server)), api, flags, postgres, provider, seed, _folder: folder })
    }

    /// kill -9, and a new start on the same ports.
    fn crash(&self) -> Result<()> {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = server.as_mut() {
            running.kill();
            let again = running.start_again(&self.flags.iter().map(String::as_str).collect::<Vec<_>>())?;
            *server = Some(again);
        }
        Ok(())
    }

    async fn crash_now_and_then(&self, times: u64, every: Duration) -> Result<()> {
        for _ in 0..times {
            tokio::time::sleep(every).await;
            tokio::task::block_in_place(|| self.crash())?;
        }
        Ok(())
    }

    async fn administrator(&self) -> Result<String> {
        let front = self.server.lock().unwrap_or_else(PoisonError::into_inner).as_ref().context("a server")?.front();
        front.administrator().await
    }

    async fn provider_user(&self) -> Result<String> {
        let front = self.server.lock().unwrap_or_else(PoisonError::into_inner).as_ref().context("a server")?.front();
        Ok(front.provider().await?.token)
    }

    async fn check_ledger(&self) -> Result<()> {
        let data = self.server.lock().unwrap_or_else(PoisonError::into_inner).as_ref().context("a server")?.data.clone();
        Ledger::open(self.postgres.as_ref().map(Postgres::url).as_deref(), &data).await?.check().await
    }
}

/// Until there is an answer that is one.
async fn until_answered(what: &str, call: impl AsyncFn() -> Result<Answer>) -> Result<Answer> {
    let since = Instant::now();
    loop {
        match call().await {
            Ok(answer) if ![500, 502, 503, 504].contains(&answer.status) => return Ok(answer),
            told => ensure!(since.elapsed() < Duration::from_secs(60), "{what}: {told:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Something that arrives about one key.
#[derive(Debug, Clone, PartialEq)]
enum Arrival {
    Deposit,
    Report { event_type: &'static str, payload: Value },
}

/// What is reported of one key, in the order of the alphabet: what contradicts is there on purpose.
fn reports_of(rng: &mut StdRng) -> Vec<Arrival> {
    let report = |event_type, payload| Arrival::Report { event_type, payload };
    let settled = [report("SETTLED", json!({})), report("SETTLED", json!({ "in": "other words" }))];
    let failed = [report("FAILED", json!({ "reason": "RETURNED" })), report("FAILED", json!({ "reason": "RETURNED", "in": "other words" }))];
    let mut arrivals = vec![Arrival::Deposit];
    match rng.random_range(0..5) {
        0 => arrivals.push(settled[0].clone()),
        1 => arrivals.extend(settled),
        2 => arrivals.push(failed[0].clone()),
        3 => arrivals.extend(failed),
        _ => arrivals.extend([settled[0].clone(), failed[0].clone()]),
    }
    if rng.random() {
        arrivals.push(report("SUBMITTED", json!({})));
    }
    arrivals
}

/// The same arrivals in several orders, each some of them several times: the state is the same for every order; where they contradict each other, it is
/// that of the first one that came.
async fn every_order_ends_the_same(rig: Rig) -> Result<()> {
    const ORDERS: usize = 4;
    let mut rng = StdRng::seed_from_u64(rig.seed);
    let (provider, ana) = (rig.provider_user().await?, rig.api.someone().await?);
    let mut checked: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..rounds() {
        let account = rig.api.account(&ana.token, "BRL").await?;
        let sets: Vec<Vec<Arrival>> = (0..12).map(|_| reports_of(&mut rng)).collect();
        let mut queues = Vec::new();
        for (set, arrivals) in sets.iter().enumerate() {
            for order in 0..ORDERS {
                let mut queue = arrivals.clone();
                queue.extend(arrivals.iter().filter(|_| rng.random()).cloned().collect::<Vec<_>>());
                queue.shuffle(&mut rng);
                queues.push((format!("r{round}-s{set}-o{order}"), queue));
            }
        }
        let deliver = |(key, queue): &(String, Vec<Arrival>)| {
            let (api, provider, account, key, queue) = (rig.api.clone(), provider.clone(), account.clone(), key.clone(), queue.clone());
            async move {
                for arrival in queue {
                    let answer = match &arrival {
                        Arrival::Deposit => {
                            let body = external_deposit(&key, &account, "1.00");
                            until_answered(&key, async || api.post("/api/v1/transactions", Some(&provider), body.clone()).await).await?
                        }
                        Arrival::Report { event_type, payload } => {
                            until_answered(&key, async || report(&api, &provider, &key, event_type, payload.clone()).await).await?
                        }
                    };
                    ensure!([200, 201, 202].contains(&answer.status), "{key} {arrival:?}: {answer:?}");
                }
                Ok(())
            }
        };
        let (delivered, crashed) = tokio::join!(try_join_all(queues.iter().map(deliver)), rig.crash_now_and_then(2, Duration::from_millis(150)));
        delivered?;
        crashed?;
        // What a crash kept from being applied is applied within seconds.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut completed = 0;
        for (index, arrivals) in sets.iter().enumerate() {
            let mut ends = Vec::new();
            for order in 0..ORDERS {
                let key = format!("r{round}-s{index}-o{order}");
                let stands = until_answered(&key, async || rig.api.get(&format!("/api/v1/operations/{key}"), Some(&provider)).await).await?;
                ends.push(check_end(&key, arrivals, &stands)?);
            }
            completed += ends.iter().filter(|end| *end == "COMPLETED").count();
            let is_contradictory = ["SETTLED", "FAILED"].iter().all(|one| has(arrivals, one));
            ensure!(is_contradictory || ends.iter().all(|end| *end == ends[0]), "{arrivals:?} ended as {ends:?}");
            *checked.entry(if is_contradictory { "contradicts".to_owned() } else { ends[0].clone() }).or_default() += ORDERS;
        }
        ensure!(rig.api.posted(&ana.token, &account).await? == format!("{completed}.00"), "one deposit each: {completed}");
    }
    eprintln!("keys by how they ended: {checked:?}; the ledger adds up");
    rig.check_ledger().await
}

fn has(arrivals: &[Arrival], event_type: &str) -> bool {
    arrivals.iter().any(|arrival| matches!(arrival, Arrival::Report { event_type: one, .. } if *one == event_type))
}

/// How a key has ended, which must be as its reports say, in the order in which they were stored.
fn check_end(key: &str, arrivals: &[Arrival], stands: &Answer) -> Result<String> {
    let events = stands.body["events"].as_array().with_context(|| format!("{key}: {stands:?}"))?;
    ensure!(events.len() == arrivals.len() - 1, "{key}: each report once: {stands:?}");
    let decisive = events.iter().find(|event| event["eventType"] != "SUBMITTED").with_context(|| format!("{key}: {stands:?}"))?;
    let end = if decisive["eventType"] == "SETTLED" { "COMPLETED" } else { "REJECTED" };
    ensure!(stands.body["state"] == end, "{key} is not {end}: {stands:?}");
    ensure!(end == "COMPLETED" || stands.body["reason"] == "RETURNED", "{key}: {stands:?}");
    for event in events {
        let is_first = event["id"] == decisive["id"] || event["eventType"] == "SUBMITTED";
        let contradicts = event["eventType"] != "SUBMITTED" && event["eventType"] != decisive["eventType"];
        ensure!(event["applied"] == is_first && event["contradicts"] == contradicts && event["duplicate"] == false, "{key}: {stands:?}");
    }
    Ok(end.to_owned())
}

/// What a customer wants, and what it comes to.
struct Sale {
    order: String,
    approved: bool,
    payment_id: String,
}

/// What is given back of each payment; one of them is what the provider refuses.
const PARTS: [&str; 3] = ["3.00", "6.66", "4.00"];

/// Whatever the provider does wrong, and however often the process is killed: every payment and every refund ends as the provider has it.
async fn payments_end_as_the_provider_has_them(rig: Rig) -> Result<()> {
    let seed = rig.seed;
    let faults: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
    let seen = faults.clone();
    rig.provider.choose(move |kind, asked, number| {
        // Its first two requests of each order are at its worst; then it is well.
        let mut rng = StdRng::seed_from_u64(
            seed ^ u64::from_be_bytes(asked["key"].as_str().unwrap_or_default().as_bytes()[28..36].try_into().unwrap_or_default()) ^ number as u64,
        );
        let fault = if number <= 2 { Fault::ALL[rng.random_range(0..Fault::ALL.len())] } else { Fault::None };
        *seen.lock().unwrap_or_else(PoisonError::into_inner).entry(format!("{kind} {fault:?}")).or_default() += 1;
        fault
    });
    let (ana, shop) = (rig.api.someone().await?, rig.api.someone().await?);
    let of_shop = rig.api.account(&shop.token, "BRL").await?;
    rig.api.deposit(&rig.administrator().await?, &of_shop, "BRL", "1000.00").await?;
    let mut sales = Vec::new();
    for round in 0..rounds() {
        let sell = |number: usize| {
            let (api, token, of_shop) = (rig.api.clone(), ana.token.clone(), of_shop.clone());
            async move {
                let (order, approved) = (format!("r{round}-{number}"), !number.is_multiple_of(4));
                let body = card(&order, if approved { "tok_approve" } else { "tok_decline" }, &[(&of_shop, "10.00")]);
                let paid = until_answered(&order, async || pay(&api, &token, body.clone()).await).await?;
                ensure!([200, 201].contains(&paid.status), "{order}: {paid:?}");
                Ok(Sale { payment_id: paid.text("id")?, order, approved })
            }
        };
        let (sold, crashed) = tokio::join!(try_join_all((0..16).map(sell)), rig.crash_now_and_then(rounds().min(3), Duration::from_millis(900)));
        crashed?;
        let sold = sold?;
        settle(&rig, &ana.token, &sold).await?;
        // Each is given back in three parts at once, while the process is killed again.
        let give = |(sale, part): (&Sale, usize)| {
            let (api, token, order) = (rig.api.clone(), shop.token.clone(), sale.order.clone());
            async move {
                let amount = PARTS[part];
                let key = format!("{order}-{part}");
                let told = until_answered(&key, async || refund(&api, &token, &order, Some(amount), &key).await).await?;
                ensure!([200, 201, 409].contains(&told.status), "{key}: {told:?}");
                anyhow::Ok(())
            }
        };
        let parts: Vec<(&Sale, usize)> =
            sold.iter().filter(|sale| sale.approved).take(8).flat_map(|sale| (0..3).map(move |part| (sale, part))).collect();
        let (given, crashed) =
            tokio::join!(join_all(parts.into_iter().map(give)), rig.crash_now_and_then(rounds().min(3), Duration::from_millis(900)));
        crashed?;
        given.into_iter().collect::<Result<Vec<()>>>()?;
        settle(&rig, &ana.token, &sold).await?;
        sales.extend(sold);
    }
    check_books(&rig, (&ana, &shop), &sales).await?;
    let mut seen: Vec<(String, usize)> = faults.lock().unwrap_or_else(PoisonError::into_inner).clone().into_iter().collect();
    seen.sort();
    eprintln!("{} payments, each as the provider has it; what it did: {seen:?}", sales.len());
    rig.check_ledger().await
}

/// Until nothing is under way.
async fn settle(rig: &Rig, token: &str, sales: &[Sale]) -> Result<()> {
    let since = Instant::now();
    for sale in sales {
        loop {
            let stands = payment(rig, token, sale).await?;
            let refunds = stands.body["refunds"].as_array().into_iter().flatten();
            let is_open = |state: &Value| state == "PENDING" || state == "UNKNOWN";
            if !is_open(&stands.body["state"]) && !refunds.into_iter().any(|refund| is_open(&refund["state"])) {
                break;
            }
            ensure!(since.elapsed() < Duration::from_secs(150), "{} stays so: {stands:?}", sale.order);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    Ok(())
}

async fn payment(rig: &Rig, token: &str, sale: &Sale) -> Result<Answer> {
    until_answered(&sale.order, async || rig.api.get(&format!("/api/v1/payments/{}", sale.order), Some(token)).await).await
}

/// What the provider has done is what the ledger has, and nothing else.
async fn check_books(rig: &Rig, (ana, shop): (&Someone, &Someone), sales: &[Sale]) -> Result<()> {
    ensure!(rig.provider.wrongs().is_empty(), "the same key asked for different things: {:?}", rig.provider.wrongs());
    let book = rig.provider.book();
    let done = |kind: &str, key: &str| book.get(&(kind.to_owned(), key.to_owned())).map(|done| done.status.clone()).unwrap_or_default();
    let (mut charges, mut refunds) = (0, 0);
    for sale in sales {
        let stands = payment(rig, &ana.token, sale).await?;
        ensure!(stands.text("id")? == sale.payment_id, "{}: one payment for one order: {stands:?}", sale.order);
        let (state, charge_key) = (stands.text("state")?, key("charge", &ana.id, &format!("lastro:payment:{}", sale.order)));
        let at_provider = done("charges", &charge_key);
        ensure!(["CAPTURED", "REFUNDED"].contains(&state.as_str()) == (at_provider == "DONE"), "{}: {at_provider} there, {stands:?}", sale.order);
        ensure!((state == "DECLINED") == (at_provider == "DECLINED"), "{}: {at_provider} there, {stands:?}", sale.order);
        ensure!(sale.approved == (at_provider == "DONE"), "{}: by its token", sale.order);
        charges += 1;
        for refund in stands.body["refunds"].as_array().into_iter().flatten() {
            let part = PARTS.iter().position(|amount| refund["amount"]["amount"] == *amount).context("an amount that was asked for")?;
            let at_provider = done("refunds", &refund_key(&shop.id, &format!("{}-{part}", sale.order), &charge_key));
            ensure!((refund["state"] == "COMPLETED") == (at_provider == "DONE"), "{}: {at_provider} there, {refund}", sale.order);
            ensure!((refund["state"] == "DECLINED") == (at_provider == "DECLINED"), "{}: {at_provider} there, {refund}", sale.order);
            refunds += 1;
        }
        let given = lastro_money::parse(
            stands.body["refundedAmount"]["amount"].as_str().unwrap_or_default(),
            lastro_money::Currency::from_code("BRL").context("BRL")?,
        )?;
        ensure!(given.get() <= 1000, "more was given back than was paid: {stands:?}");
    }
    let kept = |kind: &str| book.keys().filter(|(of, _)| of == kind).count();
    ensure!(
        kept("charges") == charges && kept("refunds") == refunds,
        "the provider has {} charges and {} refunds, the ledger {charges} and {refunds}",
        kept("charges"),
        kept("refunds")
    );
    ensure!(refunds > 0, "some refunds were made");
    Ok(())
}
