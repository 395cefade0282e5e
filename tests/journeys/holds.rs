//! Holds: authorized, then captured, voided, or run out.

use std::time::Duration;

use anyhow::Result;
use lastro_proto::transactions::v1::transaction::{State, Type};
use lastro_proto::transactions::v1::transactions_service_client::TransactionsServiceClient;
use lastro_proto::transactions::v1::{CaptureTransactionRequest, CreateTransactionRequest, VoidTransactionRequest};
use lastro_proto::r#type::v1::Money;
use lastro_tests::{Answer, Api};
use serde_json::{Value, json};

use crate::World;
use crate::grpc::{channel, with_token};
use crate::legs::{balance, leg, money, of_legs, postings, with_money};

fn hold(key: &str, from: &str, to: &str, amount: &str, expiry: Option<&str>) -> Value {
    let mut body = Api::transfer(key, from, to, amount);
    body["hold"] = json!(true);
    if let Some(expiry) = expiry {
        body["holdExpiry"] = json!(expiry);
    }
    body
}

/// Captures, voids or reverses.
pub async fn verb(api: &Api, token: &str, id: &str, verb: &str, body: Value) -> Result<Answer> {
    api.post(&format!("/api/v1/transactions/{id}:{verb}"), Some(token), body).await
}

fn outcome(answer: &Answer) -> (u16, String) {
    let of = if answer.status < 300 { "state" } else { "reason" };
    (answer.status, answer.body[of].as_str().unwrap_or_default().to_owned())
}

fn is(answer: &Answer, status: u16, what: &str) {
    assert_eq!(outcome(answer), (status, what.to_owned()), "{answer:?}");
}

/// Whole and in part; limits are judged at the hold, so that a capture never fails for funds.
pub async fn holds_are_captured(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "100.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    let made = api.transact(&ana.token, hold("h1", &from, &to, "60.00", None)).await?;
    assert_eq!(
        (made.status, made.text("state")?.as_str(), &made.body["hold"], &made.body["capturedAmount"]),
        (201, "AUTHORIZED", &json!(true), &Value::Null)
    );
    let expires = unix_seconds(&made.text("holdExpireTime")?)? - unix_seconds(&made.text("createTime")?)?;
    assert_eq!(expires, 604_800, "seven days");
    assert_eq!(balance(&api, &ana.token, &from).await?, ["100.00", "60.00", "40.00"]);
    is(&api.transact(&ana.token, Api::transfer("t1", &from, &to, "40.01")).await?, 201, "REJECTED");
    is(&api.transact(&ana.token, hold("h2", &from, &to, "40.01", None)).await?, 201, "REJECTED");
    // It is no posting yet, and the destination has nothing.
    assert_eq!((postings(&made.body).len(), api.posted(&ana.token, &to).await?.as_str()), (0, "0.00"));

    let id = made.text("id")?;
    let captured = verb(&api, &ana.token, &id, "capture", json!({ "externalId": "c1", "amount": money("BRL", "25.50") })).await?;
    is(&captured, 200, "COMPLETED");
    assert_eq!(
        (&captured.body["capturedAmount"], &captured.body["amount"], &captured.body["replayed"]),
        (&money("BRL", "25.50"), &money("BRL", "60.00"), &json!(false))
    );
    let own = |account: &str, amount: &str, after: &str| (account.to_owned(), amount.to_owned(), after.to_owned());
    assert_eq!(postings(&captured.body), [own(&from, "-25.50", "74.50"), own(&to, "25.50", "25.50")]);
    assert_eq!(balance(&api, &ana.token, &from).await?, ["74.50", "0.00", "74.50"], "the rest is released");
    // The same key, verb and body: the same answer. Another body or verb: 422. Another key: it is resolved.
    let again = verb(&api, &ana.token, &id, "capture", json!({ "externalId": "c1", "amount": money("BRL", "25.5") })).await?;
    is(&again, 200, "COMPLETED");
    assert_eq!((&again.body["replayed"], postings(&again.body)), (&json!(true), postings(&captured.body)));
    is(&verb(&api, &ana.token, &id, "capture", json!({ "externalId": "c1" })).await?, 422, "IDEMPOTENCY_KEY_REUSED");
    is(&verb(&api, &ana.token, &id, "void", json!({ "externalId": "c1" })).await?, 422, "IDEMPOTENCY_KEY_REUSED");
    is(&verb(&api, &ana.token, &id, "capture", json!({ "externalId": "c2" })).await?, 409, "HOLD_RESOLVED");
    is(&verb(&api, &ana.token, &id, "void", json!({ "externalId": "c2" })).await?, 409, "HOLD_RESOLVED");
    // The key is the hold's own: the same one serves for a transfer, and for another hold, over the header too.
    is(&api.transact(&ana.token, Api::transfer("c1", &from, &to, "0.50")).await?, 201, "COMPLETED");
    let other = api.transact(&ana.token, hold("h3", &from, &to, "74.00", None)).await?.text("id")?;
    let header = [("idempotency-key", "c1")];
    let whole = api.json(reqwest::Method::POST, &format!("/api/v1/transactions/{other}:capture"), Some(&ana.token), &header, Some(json!({}))).await?;
    is(&whole, 200, "COMPLETED");
    assert_eq!(
        (&whole.body["capturedAmount"], balance(&api, &ana.token, &from).await?),
        (&money("BRL", "74.00"), ["0.00", "0.00", "0.00"].map(str::to_owned))
    );

    let events = api.get(&format!("/api/v1/transactions/{id}/events"), Some(&ana.token)).await?;
    let kinds: Vec<&Value> = events.body["events"].as_array().into_iter().flatten().map(|event| &event["type"]).collect();
    assert_eq!(kinds, ["SUBMITTED", "AUTHORIZED", "COMPLETED"]);
    assert_eq!(events.body["events"][2]["payload"]["completed"]["capturedMinor"], "2550");
    let watched = api.get(&format!("/api/v1/transactions/{id}:watch"), Some(&ana.token)).await?;
    assert!(watched.body.as_str().is_some_and(|text| text.contains("\"COMPLETED\"")), "{watched:?}");
    Ok(())
}

/// Unix seconds of `2026-11-26T14:56:51.123456Z`.
fn unix_seconds(text: &str) -> Result<i64> {
    let time: lastro_proto::time::Timestamp = serde_json::from_value(json!(text))?;
    Ok(time.seconds)
}

/// The submitter captures; it, the owner of every credited account, or an administrator voids.
pub async fn who_may_capture_and_void(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "100.00").await?;
    let (rui, eve, administrator) = (api.someone().await?, api.someone().await?, world.server.administrator().await?);
    let (to, of_eve) = (api.account(&rui.token, "BRL").await?, api.account(&eve.token, "BRL").await?);
    let hold_of = async |key: &str| anyhow::Ok(api.transact(&ana.token, hold(key, &from, &to, "1.00", None)).await?.text("id")?);
    let id = hold_of("h1").await?;
    let key = || json!({ "externalId": "k" });
    for (token, name, status, reason) in [
        (&eve.token, "capture", 404, "TRANSACTION_NOT_FOUND"),
        (&eve.token, "void", 404, "TRANSACTION_NOT_FOUND"),
        (&rui.token, "capture", 403, "HOLD_NOT_YOURS"),
        (&administrator, "capture", 403, "HOLD_NOT_YOURS"),
    ] {
        is(&verb(&api, token, &id, name, key()).await?, status, reason);
    }
    is(&verb(&api, &rui.token, &id, "void", key()).await?, 200, "VOIDED");
    is(&verb(&api, &rui.token, &id, "void", key()).await?, 200, "VOIDED");
    is(&verb(&api, &ana.token, &id, "void", key()).await?, 409, "HOLD_RESOLVED");
    is(&verb(&api, &administrator, &hold_of("h2").await?, "void", key()).await?, 200, "VOIDED");
    is(&verb(&api, &ana.token, &hold_of("h3").await?, "void", key()).await?, 200, "VOIDED");
    // Of legs to several owners none of them alone.
    let mut several = of_legs("h4", &[leg(&from, &to, "BRL", "1.00"), leg(&from, &of_eve, "BRL", "2.00")]);
    several["hold"] = json!(true);
    let id = api.transact(&ana.token, several).await?.text("id")?;
    is(&verb(&api, &rui.token, &id, "void", key()).await?, 403, "HOLD_NOT_YOURS");
    assert_eq!(balance(&api, &ana.token, &from).await?, ["100.00", "3.00", "97.00"]);
    is(&verb(&api, &ana.token, &id, "capture", json!({ "externalId": "k", "amount": money("BRL", "3.00") })).await?, 400, "INVALID_ARGUMENT");
    is(&verb(&api, &ana.token, &id, "capture", key()).await?, 200, "COMPLETED");
    assert_eq!((api.posted(&rui.token, &to).await?, api.posted(&eve.token, &of_eve).await?), ("1.00".to_owned(), "2.00".to_owned()));
    // What is no hold, or was rejected.
    let plain = api.transact(&ana.token, Api::transfer("t1", &from, &to, "1.00")).await?.text("id")?;
    is(&verb(&api, &ana.token, &plain, "capture", key()).await?, 409, "HOLD_NOT_AUTHORIZED");
    let rejected = api.transact(&ana.token, hold("h5", &from, &to, "1000.00", None)).await?;
    is(&verb(&api, &ana.token, &rejected.text("id")?, "void", key()).await?, 409, "HOLD_NOT_AUTHORIZED");
    Ok(())
}

/// Dead exactly at its expiry; the money is free within a second, and before somebody is refused for lacking it.
pub async fn holds_run_out(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    let made = api.transact(&ana.token, hold("h1", &from, &to, "10.00", Some("1s"))).await?;
    is(&made, 201, "AUTHORIZED");
    tokio::time::sleep(Duration::from_millis(1001)).await;
    // Whether or not its release was written yet.
    let late = verb(&api, &ana.token, &made.text("id")?, "capture", json!({ "externalId": "k" })).await?;
    is(&late, 409, "HOLD_EXPIRED");
    is(&api.transact(&ana.token, Api::transfer("t1", &from, &to, "10.00")).await?, 201, "COMPLETED");
    is(&verb(&api, &ana.token, &made.text("id")?, "void", json!({ "externalId": "k" })).await?, 409, "HOLD_EXPIRED");
    let since = std::time::Instant::now();
    let stands = loop {
        let stands = api.get(&format!("/api/v1/transactions/{}", made.text("id")?), Some(&ana.token)).await?;
        if stands.body["state"] != "AUTHORIZED" {
            break stands;
        }
        anyhow::ensure!(since.elapsed() < Duration::from_secs(2), "{stands:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(stands.body["state"], "EXPIRED");
    // Several at once, by themselves: within a second.
    for number in 0..5 {
        let mut several = of_legs(&format!("l{number}"), &[leg(&to, &from, "BRL", "1.00"), leg(&to, &from, "BRL", "1.00")]);
        (several["hold"], several["holdExpiry"]) = (json!(true), json!("1s"));
        is(&api.transact(&ana.token, several).await?, 201, "AUTHORIZED");
    }
    assert_eq!(balance(&api, &ana.token, &to).await?, ["10.00", "10.00", "0.00"]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(balance(&api, &ana.token, &to).await?, ["10.00", "0.00", "10.00"]);
    let listed = api.get("/api/v1/transactions?state=EXPIRED", Some(&ana.token)).await?;
    assert_eq!(listed.body["transactions"].as_array().map(Vec::len), Some(6));
    Ok(())
}

/// Two captures, or a capture and a void, at once: one wins.
pub async fn one_of_many_resolves_a_hold(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "100.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    for round in 0..5 {
        let id = api.transact(&ana.token, hold(&format!("h{round}"), &from, &to, "10.00", None)).await?.text("id")?;
        let at_once = (0..20).map(|number| {
            let (name, body) = (if number % 2 == 0 { "capture" } else { "void" }, json!({ "externalId": format!("k{number}") }));
            let (api, token, id) = (&api, &ana.token, &id);
            async move { verb(api, token, id, name, body).await }
        });
        let answers: Vec<Answer> = futures_util::future::join_all(at_once).await.into_iter().collect::<Result<_>>()?;
        let won: Vec<_> = answers.iter().filter(|answer| answer.status == 200).collect();
        assert_eq!(won.len(), 1, "{answers:?}");
        assert!(answers.iter().all(|answer| answer.status == 200 || outcome(answer) == (409, "HOLD_RESOLVED".to_owned())), "{answers:?}");
        // The same capture, ten times at once: one answer.
        let id = api.transact(&ana.token, hold(&format!("s{round}"), &from, &to, "1.00", None)).await?.text("id")?;
        let same = (0..10).map(|_| verb(&api, &ana.token, &id, "capture", json!({ "externalId": "k" })));
        let answers: Vec<Answer> = futures_util::future::join_all(same).await.into_iter().collect::<Result<_>>()?;
        assert!(answers.iter().all(|answer| outcome(answer) == (200, "COMPLETED".to_owned())), "{answers:?}");
        assert_eq!(answers.iter().filter(|answer| answer.body["replayed"] == json!(false)).count(), 1);
    }
    assert_eq!(balance(&api, &ana.token, &from).await?[1], "0.00");
    Ok(())
}

/// A destination that is closed meanwhile: the hold stays, to be voided or to run out.
pub async fn a_closed_destination_keeps_the_hold(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let rui = api.someone().await?;
    let to = api.account(&rui.token, "BRL").await?;
    let id = api.transact(&ana.token, hold("h1", &from, &to, "10.00", None)).await?.text("id")?;
    // A hand in the table: the API does not close what a hold names.
    let ledger = crate::ledger::Ledger::of(world).await?;
    ledger.close_account(to.parse()?).await?;
    let refused = verb(&api, &ana.token, &id, "capture", json!({ "externalId": "k" })).await?;
    is(&refused, 409, "ACCOUNT_CLOSED");
    assert_eq!(balance(&api, &ana.token, &from).await?, ["10.00", "10.00", "0.00"]);
    is(&verb(&api, &ana.token, &id, "void", json!({ "externalId": "k" })).await?, 200, "VOIDED");
    Ok(())
}

pub async fn bad_holds_are_named(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    let refused = |answer: Answer, field: &str| assert_eq!((answer.status, &answer.body["errors"][0]["field"]), (400, &json!(field)), "{answer:?}");
    for expiry in ["0s", "0.999s", "2592001s", "-1s"] {
        refused(api.transact(&ana.token, hold("bad", &from, &to, "1.00", Some(expiry))).await?, "holdExpiry");
    }
    let mut without = Api::transfer("bad", &from, &to, "1.00");
    without["holdExpiry"] = json!("5s");
    refused(api.transact(&ana.token, without).await?, "holdExpiry");
    let mut timed = hold("bad", &from, &to, "1.00", None);
    timed["effectiveTime"] = json!("2026-01-01T00:00:00Z");
    refused(api.transact(&ana.token, timed).await?, "effectiveTime");
    let deposit = json!({ "externalId": "bad", "type": "DEPOSIT", "destinationAccountId": from, "amount": money("BRL", "1"), "hold": true });
    refused(api.transact(&world.server.administrator().await?, deposit).await?, "hold");
    let id = api.transact(&ana.token, hold("h1", &from, &to, "1.00", None)).await?.text("id")?;
    let capture = async |amount: Value| verb(&api, &ana.token, &id, "capture", json!({ "externalId": "k", "amount": amount })).await;
    refused(capture(money("BRL", "1.01")).await?, "amount");
    refused(capture(money("BRL", "0.00")).await?, "amount.amount");
    refused(capture(money("USD", "1.00")).await?, "amount.currencyCode");
    refused(verb(&api, &ana.token, &id, "capture", json!({ "externalId": "" })).await?, "externalId");
    // A withdrawal is held too.
    let mut withdrawal = json!({ "externalId": "w", "type": "WITHDRAWAL", "sourceAccountId": from, "amount": money("BRL", "9.00"), "hold": true });
    let held = api.transact(&ana.token, withdrawal.take()).await?;
    is(&held, 201, "AUTHORIZED");
    is(&verb(&api, &ana.token, &held.text("id")?, "capture", json!({ "externalId": "k" })).await?, 200, "COMPLETED");
    assert_eq!(balance(&api, &ana.token, &from).await?, ["1.00", "1.00", "0.00"]);
    Ok(())
}

pub async fn holds_over_grpc(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    let mut client = TransactionsServiceClient::new(channel(world).await?);
    let money = |amount: &str| Some(Money { currency_code: "BRL".to_owned(), amount: amount.to_owned() });
    let request = |key: &str| CreateTransactionRequest {
        external_id: key.to_owned(),
        r#type: Type::Transfer as i32,
        source_account_id: Some(from.clone()),
        destination_account_id: Some(to.clone()),
        amount: money("4.00"),
        hold: true,
        wait: Some(pbjson_types::Duration { seconds: 10, nanos: 0 }),
        ..CreateTransactionRequest::default()
    };
    let held = client.create_transaction(with_token(&ana.token, request("g1"))?).await?.into_inner();
    assert_eq!((held.state(), held.hold_expire_time.is_some()), (State::Authorized, true));
    let capture = CaptureTransactionRequest { id: held.id, external_id: "k".to_owned(), amount: money("3.00"), validate_only: false };
    let captured = client.capture_transaction(with_token(&ana.token, capture)?).await?.into_inner();
    assert_eq!((captured.state(), captured.captured_amount, captured.postings.len()), (State::Completed, money("3.00"), 2));
    let held = client.create_transaction(with_token(&ana.token, request("g2"))?).await?.into_inner();
    let void = VoidTransactionRequest { id: held.id, external_id: "k".to_owned() };
    assert_eq!(client.void_transaction(with_token(&ana.token, void)?).await?.into_inner().state(), State::Voided);
    Ok(())
}
