//! Deposits that a provider settles: what it reports may come twice, in any order, and before the deposit itself.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::{join_all, try_join_all};
use lastro_proto::transactions::v1::operations_service_client::OperationsServiceClient;
use lastro_proto::transactions::v1::transaction::{Settlement, State, Type};
use lastro_proto::transactions::v1::transactions_service_client::TransactionsServiceClient;
use lastro_proto::transactions::v1::{CreateTransactionRequest, GetOperationRequest, IngestEventRequest, provider_event};
use lastro_proto::r#type::v1::Money;
use lastro_tests::{Answer, Api};
use serde_json::{Value, json};

use crate::World;
use crate::grpc::{channel, with_token};
use crate::ledger::Ledger;
use crate::legs::money;

pub fn external_deposit(key: &str, to: &str, amount: &str) -> Value {
    json!({ "externalId": key, "type": "DEPOSIT", "destinationAccountId": to, "amount": money("BRL", amount), "settlement": "EXTERNAL" })
}

pub async fn report(api: &Api, token: &str, key: &str, event_type: &str, payload: Value) -> Result<Answer> {
    api.post("/api/v1/operations", Some(token), json!({ "externalId": key, "eventType": event_type, "payload": payload })).await
}

/// Type, applied and contradicts of each event.
fn events(answer: &Answer) -> Vec<(String, bool, bool)> {
    let event = |event: &Value| {
        let is = |name: &str| event[name].as_bool().unwrap_or_default();
        (event["eventType"].as_str().unwrap_or_default().to_owned(), is("applied"), is("contradicts"))
    };
    answer.body["events"].as_array().into_iter().flatten().map(event).collect()
}

fn event(event_type: &str, applied: bool, contradicts: bool) -> (String, bool, bool) {
    (event_type.to_owned(), applied, contradicts)
}

pub async fn a_provider_settles_deposits(world: &World) -> Result<()> {
    let (api, provider, ana) = (world.server.api(), world.server.provider().await?, world.server.api().someone().await?);
    let to = api.account(&ana.token, "BRL").await?;
    let made = api.transact(&provider.token, external_deposit("d1", &to, "10.00")).await;
    // Nobody reports anything: it waits as long as it was asked to.
    let made = made?;
    assert_eq!((made.status, &made.body["state"], &made.body["settlement"]), (202, &json!("PROCESSING"), &json!("EXTERNAL")), "{made:?}");
    assert_eq!(api.posted(&ana.token, &to).await?, "0.00");
    let settled = report(&api, &provider.token, "d1", "SETTLED", json!({ "trace": "4711" })).await?;
    assert_eq!((settled.status, &settled.body["state"], &settled.body["transactionId"]), (202, &json!("COMPLETED"), &made.body["id"]), "{settled:?}");
    assert_eq!((events(&settled), &settled.body["events"][0]["duplicate"]), (vec![event("SETTLED", true, false)], &json!(false)));
    assert_eq!(api.posted(&ana.token, &to).await?, "10.00");
    // The same again, the same in other words, and the contrary: nothing changes.
    let again = report(&api, &provider.token, "d1", "SETTLED", json!({ "trace": "4711" })).await?;
    assert_eq!((again.status, &again.body["events"][0]["duplicate"], events(&again).len()), (202, &json!(true), 1), "{again:?}");
    report(&api, &provider.token, "d1", "SETTLED", json!({})).await?;
    let contrary = report(&api, &provider.token, "d1", "FAILED", json!({ "reason": "RETURNED" })).await?;
    let expected = vec![event("SETTLED", true, false), event("SETTLED", false, false), event("FAILED", false, true)];
    assert_eq!((contrary.status, &contrary.body["state"], events(&contrary)), (202, &json!("COMPLETED"), expected.clone()), "{contrary:?}");
    let stands = api.get("/api/v1/operations/d1", Some(&provider.token)).await?;
    assert_eq!((stands.status, events(&stands), &stands.body["events"][0]["payload"]), (200, expected, &json!({ "trace": "4711" })), "{stands:?}");
    assert_eq!(stands.body["events"][0]["duplicate"], json!(false));
    assert_eq!(api.posted(&ana.token, &to).await?, "10.00");
    let told = api.get(&format!("/api/v1/transactions/{}/events", made.text("id")?), Some(&ana.token)).await?;
    let kinds: Vec<&str> = told.body["events"].as_array().into_iter().flatten().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(kinds, ["SUBMITTED", "PROCESSING", "COMPLETED"]);
    assert_eq!(told.body["events"][2]["causationId"], stands.body["events"][0]["id"]);

    // One that fails, with its reason and without.
    for (key, payload, reason) in
        [("f1", json!({ "reason": "account of the sender is blocked" }), "account of the sender is blocked"), ("f2", json!({}), "PROVIDER_FAILED")]
    {
        api.post("/api/v1/transactions", Some(&provider.token), external_deposit(key, &to, "5.00")).await?;
        let failed = report(&api, &provider.token, key, "FAILED", payload).await?;
        assert_eq!((&failed.body["state"], &failed.body["reason"]), (&json!("REJECTED"), &json!(reason)), "{failed:?}");
        let late = report(&api, &provider.token, key, "SETTLED", json!({})).await?;
        assert_eq!((&late.body["state"], events(&late)[1].clone()), (&json!("REJECTED"), event("SETTLED", false, true)), "{late:?}");
        let read = api.get(&format!("/api/v1/transactions/{}", failed.text("transactionId")?), Some(&ana.token)).await?;
        assert_eq!((&read.body["state"], &read.body["reason"]), (&json!("REJECTED"), &json!(reason)));
    }
    assert_eq!(api.posted(&ana.token, &to).await?, "10.00");
    Ok(())
}

pub async fn events_may_come_first(world: &World) -> Result<()> {
    let (api, provider, ana) = (world.server.api(), world.server.provider().await?, world.server.api().someone().await?);
    let to = api.account(&ana.token, "BRL").await?;
    let first = report(&api, &provider.token, "early", "SETTLED", json!({})).await?;
    assert_eq!((first.status, &first.body["state"], &first.body["transactionId"]), (202, &json!("PENDING"), &json!("")), "{first:?}");
    assert_eq!(events(&first), [event("SETTLED", false, false)]);
    report(&api, &provider.token, "early", "SUBMITTED", json!({})).await?;
    let made = api.transact(&provider.token, external_deposit("early", &to, "3.00")).await?;
    assert_eq!((made.status, &made.body["state"]), (201, &json!("COMPLETED")), "{made:?}");
    let stands = api.get("/api/v1/operations/early", Some(&provider.token)).await?;
    assert_eq!(events(&stands), [event("SETTLED", true, false), event("SUBMITTED", true, false)], "{stands:?}");
    assert_eq!(api.posted(&ana.token, &to).await?, "3.00");
    // All at once, again and again: once.
    let all = (0..30).map(|number| {
        let (api, provider, to) = (&api, &provider, &to);
        async move {
            match number % 3 {
                0 => report(api, &provider.token, "crowd", "SETTLED", json!({ "same": "words" })).await,
                1 => report(api, &provider.token, "crowd", "SUBMITTED", json!({})).await,
                _ => api.transact(&provider.token, external_deposit("crowd", to, "1.00")).await,
            }
        }
    });
    for answer in join_all(all).await {
        assert!([200, 201, 202].contains(&answer?.status));
    }
    let stands = api.get("/api/v1/operations/crowd", Some(&provider.token)).await?;
    let mut came = events(&stands);
    came.sort();
    assert_eq!(
        (came, &stands.body["state"]),
        (vec![event("SETTLED", true, false), event("SUBMITTED", true, false)], &json!("COMPLETED")),
        "{stands:?}"
    );
    assert_eq!(api.posted(&ana.token, &to).await?, "4.00");
    Ok(())
}

pub async fn who_reports_what(world: &World) -> Result<()> {
    let (api, provider, other) = (world.server.api(), world.server.provider().await?, world.server.provider().await?);
    let (ana, administrator) = (api.someone().await?, world.server.administrator().await?);
    let to = api.account(&ana.token, "BRL").await?;
    api.post("/api/v1/transactions", Some(&provider.token), external_deposit("mine", &to, "1.00")).await?;
    // Keys are the provider's own.
    let of_other = report(&api, &other.token, "mine", "SETTLED", json!({})).await?;
    assert_eq!((of_other.status, &of_other.body["transactionId"]), (202, &json!("")), "{of_other:?}");
    assert_eq!(api.get("/api/v1/operations/mine", Some(&provider.token)).await?.body["state"], "PROCESSING");
    assert_eq!(api.get("/api/v1/operations/none", Some(&provider.token)).await?.body["reason"], "OPERATION_NOT_FOUND");
    for token in [&ana.token, &administrator] {
        assert_eq!(report(&api, token, "mine", "SETTLED", json!({})).await?.status, 403);
        assert_eq!(api.get("/api/v1/operations/mine", Some(token)).await?.status, 403);
    }
    // Only a provider's deposits are settled so, and only one by one.
    let told = api.post("/api/v1/transactions", Some(&administrator), external_deposit("not a provider", &to, "1.00")).await?;
    assert_eq!((told.status, &told.body["errors"][0]["field"]), (400, &json!("settlement")), "{told:?}");
    let batch = json!({ "requests": [external_deposit("b", &to, "1.00")] });
    let told = api.post("/api/v1/transactions:batchCreate", Some(&provider.token), batch).await?;
    assert_eq!(told.body["results"][0]["error"]["fields"][0]["field"], "settlement", "{told:?}");
    // Nobody reports what the ledger alone settles.
    let internal = json!({ "externalId": "internal", "type": "DEPOSIT", "destinationAccountId": to, "amount": money("BRL", "1.00") });
    assert_eq!(api.transact(&provider.token, internal).await?.status, 201);
    let told = report(&api, &provider.token, "internal", "FAILED", json!({})).await?;
    assert_eq!((told.status, &told.body["reason"]), (409, &json!("OPERATION_NOT_EXTERNAL")), "{told:?}");
    // What breaks a rule is not stored.
    let long: serde_json::Map<String, Value> = (0..5).map(|number| (format!("k{number}"), json!("x".repeat(4000)))).collect();
    for (event_type, payload, field) in [
        ("PAID", json!({}), "eventType"),
        ("TYPE_UNSPECIFIED", json!({}), "eventType"),
        ("SETTLED", Value::Object(long), "payload"),
        ("FAILED", json!({ "reason": "x".repeat(201) }), "payload"),
        ("SETTLED", Value::Object((0..51).map(|number| (format!("k{number}"), json!("x"))).collect()), "payload"),
    ] {
        let told = report(&api, &provider.token, "bad", event_type, payload).await?;
        let named = told.body["errors"][0]["field"].as_str().unwrap_or_default();
        assert!(told.status == 400 && named.starts_with(field), "{event_type} {told:?}");
    }
    assert_eq!(api.get("/api/v1/operations/bad", Some(&provider.token)).await?.status, 404);
    // Keys are free, and so are values, as far as 16 KB go.
    let free = json!({ "": "x", "a key with spaces, é, and far more letters than a name would have, since it is nobody's but the provider's": "y".repeat(16_000) });
    assert_eq!(report(&api, &provider.token, "free", "SETTLED", free.clone()).await?.status, 202);
    assert_eq!(report(&api, &provider.token, "free", "SETTLED", free).await?.body["events"][0]["duplicate"], true);
    // A dry run waits for nobody; a provider is waited for.
    let mut dry = external_deposit("dry", &to, "1.00");
    dry["validateOnly"] = json!(true);
    let told = api.transact(&provider.token, dry).await?;
    assert_eq!((told.status, &told.body["state"], &told.body["id"]), (200, &json!("PROCESSING"), &json!("")), "{told:?}");
    // Nor is a provider deleted whose deposits wait for what it reports.
    let told = api.json(reqwest::Method::DELETE, &format!("/api/v1/users/{}", provider.id), Some(&administrator), &[], None).await?;
    assert_eq!((told.status, &told.body["reason"]), (409, &json!("USER_HAS_MONEY")), "{told:?}");
    // An account with a deposit under way is not closed.
    let told = api.post(&format!("/api/v1/accounts/{to}:close"), Some(&ana.token), json!({})).await?;
    assert_eq!((told.status, &told.body["reason"]), (409, &json!("ACCOUNT_NOT_EMPTY")), "{told:?}");
    let fresh = api.account(&ana.token, "BRL").await?;
    api.post("/api/v1/transactions", Some(&provider.token), external_deposit("open", &fresh, "1.00")).await?;
    let told = api.post(&format!("/api/v1/accounts/{fresh}:close"), Some(&ana.token), json!({})).await?;
    assert_eq!((told.status, &told.body["reason"]), (409, &json!("ACCOUNT_IN_USE")), "{told:?}");
    Ok(())
}

/// Whoever waits, at whichever replica, has the outcome soon after it was reported, long before its time is over.
pub async fn news_reaches_whoever_waits(world: &World) -> Result<()> {
    let (api, provider, ana) = (world.server.api(), world.server.provider().await?, world.server.api().someone().await?);
    let to = api.account(&ana.token, "BRL").await?;
    let wait = |number: usize| {
        let (api, provider, to) = (api.clone(), &provider, &to);
        async move {
            let body = external_deposit(&format!("w{number}"), to, "1.00");
            let answer = api.json(reqwest::Method::POST, "/api/v1/transactions", Some(&provider.token), &[("prefer", "wait=25")], Some(body)).await?;
            anyhow::Ok((answer, Instant::now()))
        }
    };
    let reported = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let reports = (0..20).map(|number| {
            let (api, token) = (&api, &provider.token);
            async move { report(api, token, &format!("w{number}"), "SETTLED", json!({})).await }
        });
        try_join_all(reports).await?;
        anyhow::Ok(Instant::now())
    };
    let (waited, reported) = tokio::join!(try_join_all((0..20).map(wait)), reported);
    let reported = reported?;
    for (answer, at) in waited? {
        assert_eq!((answer.status, &answer.body["state"]), (201, &json!("COMPLETED")), "{answer:?}");
        assert!(at < reported + Duration::from_secs(2), "{:?} after it was reported", at - reported);
    }
    Ok(())
}

pub async fn provider_events_over_grpc(world: &World) -> Result<()> {
    let (api, provider, ana) = (world.server.api(), world.server.provider().await?, world.server.api().someone().await?);
    let to = api.account(&ana.token, "BRL").await?;
    let deposit = CreateTransactionRequest {
        external_id: "g/1".to_owned(),
        r#type: Type::Deposit as i32,
        destination_account_id: Some(to.clone()),
        amount: Some(Money { currency_code: "BRL".to_owned(), amount: "2.50".to_owned() }),
        settlement: Settlement::External as i32,
        ..CreateTransactionRequest::default()
    };
    let made = TransactionsServiceClient::new(channel(world).await?).create_transaction(with_token(&provider.token, deposit)?).await?.into_inner();
    assert_eq!((made.state(), made.settlement()), (State::Processing, Settlement::External));
    let mut client = OperationsServiceClient::new(channel(world).await?);
    let request = IngestEventRequest {
        external_id: "g/1".to_owned(),
        event_type: provider_event::Type::Settled as i32,
        payload: [("k".to_owned(), "v".to_owned())].into(),
    };
    let settled = client.ingest_event(with_token(&provider.token, request.clone())?).await?.into_inner();
    assert_eq!((settled.state(), &settled.transaction_id, settled.events[0].applied), (State::Completed, &made.id, true));
    assert!(client.ingest_event(with_token(&provider.token, request)?).await?.into_inner().events[0].duplicate);
    let stands = client.get_operation(with_token(&provider.token, GetOperationRequest { external_id: "g/1".to_owned() })?).await?.into_inner();
    assert_eq!((stands.events.len(), stands.events[0].duplicate), (1, false));
    // Whoever waits over gRPC is told as well, long before its time is over.
    let waits = CreateTransactionRequest {
        external_id: "g/2".to_owned(),
        r#type: Type::Deposit as i32,
        destination_account_id: Some(to.clone()),
        amount: Some(Money { currency_code: "BRL".to_owned(), amount: "1.00".to_owned() }),
        settlement: Settlement::External as i32,
        wait: Some(pbjson_types::Duration { seconds: 25, nanos: 0 }),
        ..CreateTransactionRequest::default()
    };
    let mut waiting = TransactionsServiceClient::new(channel(world).await?);
    let since = Instant::now();
    let reported = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let event_type = provider_event::Type::Failed as i32;
        let request = IngestEventRequest { external_id: "g/2".to_owned(), event_type, payload: [("reason".to_owned(), "NO".to_owned())].into() };
        client.ingest_event(with_token(&provider.token, request)?).await.map_err(anyhow::Error::from)
    };
    let (waited, reported) = tokio::join!(waiting.create_transaction(with_token(&provider.token, waits)?), reported);
    let (waited, reported) = (waited?.into_inner(), reported?.into_inner());
    assert_eq!((waited.state(), waited.reason.as_str(), reported.state()), (State::Rejected, "NO", State::Rejected));
    assert!(since.elapsed() < Duration::from_secs(6), "{:?}", since.elapsed());
    let over_rest = api.get("/api/v1/operations/g%2F1", Some(&provider.token)).await?;
    assert_eq!((over_rest.status, &over_rest.body["externalId"]), (200, &json!("g/1")), "{over_rest:?}");
    assert_eq!(api.posted(&ana.token, &to).await?, "2.50");
    Ok(())
}

/// The database itself keeps what was reported, and what became of it.
pub async fn reports_stay_as_they_were(world: &World) -> Result<()> {
    let (api, provider, ana) = (world.server.api(), world.server.provider().await?, world.server.api().someone().await?);
    let to = api.account(&ana.token, "BRL").await?;
    api.post("/api/v1/transactions", Some(&provider.token), external_deposit("stays", &to, "1.00")).await?;
    let settled = report(&api, &provider.token, "stays", "SETTLED", json!({})).await?;
    let waiting = report(&api, &provider.token, "not there yet", "SETTLED", json!({})).await?;
    let ledger = Ledger::of(world).await?;
    for answer in [&settled, &waiting] {
        let id = answer.body["events"][0]["id"].as_str().unwrap_or_default().parse()?;
        for change in ["payload = '{}'", "kind = 3", "external_id = 'x'", "create_time_us = 0", "digest = 'x'"] {
            let changed = ledger.try_write(&format!("UPDATE provider_events SET {change} WHERE id = $1"), id).await;
            assert!(changed.is_err(), "{change}");
        }
        assert!(ledger.try_write("DELETE FROM provider_events WHERE id = $1", id).await.is_err());
    }
    let id = settled.body["events"][0]["id"].as_str().unwrap_or_default().parse()?;
    assert!(ledger.try_write("UPDATE provider_events SET outcome = 3 WHERE id = $1", id).await.is_err(), "what became of it is said once");
    Ok(())
}
