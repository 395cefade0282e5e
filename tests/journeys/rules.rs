//! Sentences of docs/LEDGER.md that no other journey tells: in which order rules are judged, and what happens at the edges.

use anyhow::{Context as _, Result};
use lastro_proto::transactions::v1::transaction::Type;
use lastro_proto::transactions::v1::transactions_service_client::TransactionsServiceClient;
use lastro_proto::transactions::v1::{BatchCreateTransactionsRequest, CreateTransactionRequest};
use lastro_proto::r#type::v1::Money;
use lastro_tests::{Answer, Api};
use serde_json::{Value, json};

use crate::World;
use crate::account_life::{close, patch};
use crate::grpc::{channel, with_token};
use crate::holds::verb;
use crate::ledger::Ledger;
use crate::legs::{balance, leg, money, of_legs, with_money};

fn is(answer: &Answer, status: u16, reason: &str) {
    assert_eq!((answer.status, answer.body["reason"].as_str()), (status, Some(reason)), "{answer:?}");
}

fn held(key: &str, from: &str, to: &str, amount: &str) -> Value {
    let mut body = Api::transfer(key, from, to, amount);
    body["hold"] = json!(true);
    body
}

/// Each request breaks two rules that follow each other, and is told the first.
pub async fn rules_are_judged_in_their_order(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let (rui, eve, administrator) = (api.someone().await?, api.someone().await?, world.server.administrator().await?);
    let to = api.account(&rui.token, "BRL").await?;
    let field = |answer: &Answer| answer.body["errors"][0]["field"].as_str().unwrap_or_default().to_owned();
    // At the call: the fields, the permission, the accounts, the currency, the key.
    api.transact(&ana.token, Api::transfer("used", &from, &to, "1.00")).await?;
    let stranger = uuid::Uuid::now_v7().to_string();
    let deposit = |amount: &str| json!({ "externalId": "used", "type": "DEPOSIT", "destinationAccountId": stranger, "amount": money("BRL", amount) });
    assert_eq!(field(&api.transact(&ana.token, deposit("0")).await?), "amount.amount");
    is(&api.transact(&ana.token, deposit("1")).await?, 403, "PERMISSION_MISSING");
    let mut other = Api::transfer("used", &from, &stranger, "1.00");
    other["amount"]["currencyCode"] = json!("USD");
    is(&api.transact(&ana.token, other.clone()).await?, 400, "INVALID_ARGUMENT");
    other["amount"]["currencyCode"] = json!("BRL");
    is(&api.transact(&ana.token, other).await?, 404, "ACCOUNT_NOT_FOUND");
    is(&api.transact(&ana.token, Api::transfer("used", &from, &to, "2.00")).await?, 422, "IDEMPOTENCY_KEY_REUSED");

    // A change of an account.
    let bad_limit = || json!({ "displayName": "x", "creditLimit": money("BRL", "-1") });
    is(&patch(&api, &eve.token, &from, bad_limit()).await?, 404, "ACCOUNT_NOT_FOUND");
    is(&patch(&api, &administrator, &from, bad_limit()).await?, 403, "ACCOUNT_NOT_YOURS");
    is(&patch(&api, &ana.token, &from, bad_limit()).await?, 403, "PERMISSION_MISSING");
    let empty = api.account(&ana.token, "BRL").await?;
    assert_eq!(close(&api, &ana.token, &empty).await?.status, 200);
    is(&patch(&api, &administrator, &empty, json!({ "creditLimit": money("BRL", "-1") })).await?, 400, "INVALID_ARGUMENT");
    is(&patch(&api, &administrator, &empty, json!({ "creditLimit": money("BRL", "1") })).await?, 409, "ACCOUNT_CLOSED");

    // A capture: who sees it, who may, the amount, the state.
    let hold = api.transact(&ana.token, held("h", &from, &to, "1.00")).await?.text("id")?;
    assert_eq!(verb(&api, &ana.token, &hold, "void", json!({ "externalId": "v" })).await?.status, 200);
    let too_much = || json!({ "externalId": "k", "amount": money("BRL", "1.01") });
    is(&verb(&api, &eve.token, &hold, "capture", too_much()).await?, 404, "TRANSACTION_NOT_FOUND");
    is(&verb(&api, &rui.token, &hold, "capture", too_much()).await?, 403, "HOLD_NOT_YOURS");
    is(&verb(&api, &ana.token, &hold, "capture", too_much()).await?, 400, "INVALID_ARGUMENT");
    is(&verb(&api, &ana.token, &hold, "capture", json!({ "externalId": "k" })).await?, 409, "HOLD_RESOLVED");

    // An atomic batch: what is refused at the call, before what would be REJECTED.
    let requests = json!([Api::transfer("b1", &from, &to, "1000.00"), Api::transfer("b2", &from, &to, "x")]);
    let refused = api.post("/api/v1/transactions:batchCreate", Some(&ana.token), json!({ "requests": requests, "atomic": true })).await?;
    is(&refused, 422, "BATCH_REFUSED");
    assert_eq!(refused.body["metadata"], json!({ "index": "1", "reason": "INVALID_ARGUMENT" }));
    let unknown = json!({ "requests": [Api::transfer("b1", &from, &to, "1.00"), { "wat": 1 }] });
    is(&api.post("/api/v1/transactions:batchCreate", Some(&ana.token), unknown).await?, 400, "MALFORMED_JSON");
    assert_eq!(api.posted(&ana.token, &from).await?, "9.00");
    Ok(())
}

/// Nobody names a clearing account; an administrator sees everybody's postings, and nobody's key.
pub async fn the_outside_world_is_nobodys_to_name(world: &World) -> Result<()> {
    let (api, ana, account) = with_money(world, "10.00").await?;
    let administrator = world.server.administrator().await?;
    let mut body = Api::transfer("secret", &account, &api.account(&ana.token, "BRL").await?, "1.00");
    body["metadata"] = json!({ "note": "mine" });
    let made = api.transact(&ana.token, body).await?;
    let seen = api.get(&format!("/api/v1/transactions/{}", made.text("id")?), Some(&administrator)).await?;
    assert_eq!(
        (seen.text("externalId")?.as_str(), &seen.body["metadata"], seen.body["postings"].as_array().map(Vec::len)),
        ("", &json!({}), Some(2))
    );
    let withdrawal = json!({ "externalId": "w", "type": "WITHDRAWAL", "sourceAccountId": account, "amount": money("BRL", "1.00") });
    let gone = api.transact(&ana.token, withdrawal).await?;
    let events = api.get(&format!("/api/v1/transactions/{}/events", gone.text("id")?), Some(&administrator)).await?;
    let clearing = events.body["events"][1]["payload"]["completed"]["postings"][1]["accountId"].as_str().context("an account")?.to_owned();
    for body in [Api::transfer("c1", &account, &clearing, "1.00"), Api::transfer("c2", &clearing, &account, "1.00")] {
        is(&api.transact(&ana.token, body).await?, 404, "ACCOUNT_NOT_FOUND");
    }
    is(&close(&api, &administrator, &clearing).await?, 404, "ACCOUNT_NOT_FOUND");
    Ok(())
}

/// What is not settled yet keeps accounts open, and is neither captured nor reversed. By hand: nothing stays so by itself.
pub async fn what_is_not_settled_yet(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let (rui, administrator) = (api.someone().await?, world.server.administrator().await?);
    let to = api.account(&rui.token, "BRL").await?;
    // A hold names an account of somebody, who cannot be deleted meanwhile.
    let hold = api.transact(&ana.token, held("h1", &from, &to, "1.00")).await?.text("id")?;
    let delete = async || api.json(reqwest::Method::DELETE, &format!("/api/v1/users/{}", rui.id), Some(&administrator), &[], None).await;
    is(&delete().await?, 409, "USER_HAS_MONEY");
    let ledger = Ledger::of(world).await?;
    ledger.set_state(hold.parse()?, 8).await?;
    for name in ["capture", "void"] {
        is(&verb(&api, &ana.token, &hold, name, json!({ "externalId": "k" })).await?, 409, "HOLD_NOT_AUTHORIZED");
    }
    is(&verb(&api, &administrator, &hold, "reverse", json!({ "externalId": format!("r {hold}") })).await?, 409, "NOT_REVERSIBLE");
    is(&close(&api, &rui.token, &to).await?, 409, "ACCOUNT_IN_USE");
    is(&delete().await?, 409, "USER_HAS_MONEY");
    ledger.set_state(hold.parse()?, 3).await?;
    // A capture that would bring a balance out of 64 bits is refused, and the hold stays.
    ledger.set_posted(to.parse()?, i64::MAX).await?;
    is(&verb(&api, &ana.token, &hold, "capture", json!({ "externalId": "k" })).await?, 409, "BALANCE_OVERFLOW");
    ledger.set_posted(to.parse()?, 0).await?;
    assert_eq!(balance(&api, &ana.token, &from).await?, ["10.00", "1.00", "9.00"]);
    let captured = verb(&api, &ana.token, &hold, "capture", json!({ "externalId": "k" })).await?;
    assert_eq!(captured.text("state")?, "COMPLETED", "{captured:?}");
    // A reversal counts on its own day.
    let back = verb(&api, &rui.token, &hold, "reverse", json!({ "externalId": "r" })).await?;
    assert_eq!(back.text("effectiveTime")?, back.text("updateTime")?);
    let original = api.get(&format!("/api/v1/transactions/{hold}"), Some(&ana.token)).await?;
    assert_eq!(original.text("effectiveTime")?, captured.text("effectiveTime")?);
    Ok(())
}

/// What cannot be stored without its locks waits about 2 s for them, and is then told so. On SQLite one writer has all locks.
pub async fn what_gets_no_locks_is_told_so(world: &World) -> Result<()> {
    if world.postgres.is_none() {
        return Ok(());
    }
    let (api, ana, from) = with_money(world, "10.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    let hold = api.transact(&ana.token, held("h", &from, &to, "1.00")).await?.text("id")?;
    let done = api.transact(&ana.token, Api::transfer("t", &from, &to, "1.00")).await?.text("id")?;
    let ledger = Ledger::of(world).await?;
    let locked = ledger.lock_balance(from.parse()?).await?;
    let requests = json!({ "requests": [Api::transfer("a1", &from, &to, "1.00")], "atomic": true });
    let (captured, reversed, batch) = tokio::join!(
        verb(&api, &ana.token, &hold, "capture", json!({ "externalId": "k" })),
        verb(&api, &ana.token, &done, "reverse", json!({ "externalId": "r" })),
        api.post("/api/v1/transactions:batchCreate", Some(&ana.token), requests.clone())
    );
    is(&captured?, 503, "UNAVAILABLE");
    is(&reversed?, 503, "UNAVAILABLE");
    is(&batch?, 503, "UNAVAILABLE");
    assert_eq!(balance(&api, &ana.token, &from).await?, ["9.00", "1.00", "8.00"]);
    locked.rollback().await?;
    // An attempt of the gateway may still have waited; the same key tells, and nothing is done twice.
    let captured = verb(&api, &ana.token, &hold, "capture", json!({ "externalId": "k" })).await?;
    assert_eq!((captured.status, captured.text("state")?.as_str()), (200, "COMPLETED"), "{captured:?}");
    assert_eq!(verb(&api, &ana.token, &done, "reverse", json!({ "externalId": "r" })).await?.body["state"], "COMPLETED");
    assert_eq!(api.post("/api/v1/transactions:batchCreate", Some(&ana.token), requests).await?.status, 200);
    assert_eq!(balance(&api, &ana.token, &from).await?, ["8.00", "0.00", "8.00"]);
    Ok(())
}

/// A dry run with a key that was used for the same tells what that became.
pub async fn a_dry_run_of_what_was_done(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    let body = of_legs("d", &[leg(&from, &to, "BRL", "10.00"), leg(&from, &to, "BRL", "0.01")]);
    assert_eq!(api.transact(&ana.token, body.clone()).await?.text("state")?, "REJECTED");
    api.deposit(&world.server.administrator().await?, &from, "BRL", "1.00").await?;
    let mut dry = body;
    dry["validateOnly"] = json!(true);
    let told = api.transact(&ana.token, dry).await?;
    assert_eq!((told.status, told.text("state")?.as_str(), told.text("id")?.as_str()), (200, "REJECTED", ""), "{told:?}");
    Ok(())
}

/// What would make an answer that no client takes is refused before anything is stored.
pub async fn batches_are_bounded(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "100.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    let of_100 = |key: usize| of_legs(&format!("b{key}"), &vec![leg(&from, &to, "BRL", "0.01"); 100]);
    for (count, is_refused) in [(40, false), (41, true)] {
        let requests: Vec<Value> = (0..count).map(of_100).collect();
        for atomic in [true, false] {
            let body = json!({ "requests": requests, "atomic": atomic, "validateOnly": true });
            let told = api.post("/api/v1/transactions:batchCreate", Some(&ana.token), body).await?;
            assert_eq!(
                (told.status == 400, told.body["errors"][0]["field"] == "requests"),
                (is_refused, is_refused),
                "{count} {atomic} {:?}",
                told.status
            );
        }
    }
    let one = |number: usize| CreateTransactionRequest {
        external_id: format!("large {number}"),
        r#type: Type::Transfer as i32,
        source_account_id: Some(from.clone()),
        destination_account_id: Some(to.clone()),
        amount: Some(Money { currency_code: "BRL".to_owned(), amount: "0.01".to_owned() }),
        metadata: (0..25).map(|n| (format!("k{n}"), "x".repeat(500))).collect(),
        ..CreateTransactionRequest::default()
    };
    let requests: Vec<_> = (0..280).map(one).collect();
    let batch = BatchCreateTransactionsRequest { requests, ..BatchCreateTransactionsRequest::default() };
    let mut client = TransactionsServiceClient::new(channel(world).await?);
    let refused = client.batch_create_transactions(with_token(&ana.token, batch)?).await.expect_err("refused");
    assert!(refused.code() == tonic::Code::InvalidArgument && refused.message().contains("several batches"), "{refused:?}");
    assert_eq!(balance(&api, &ana.token, &to).await?[0], "0.00");
    Ok(())
}
