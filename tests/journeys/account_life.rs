//! Accounts that are renamed, frozen, given a credit limit, and closed.

use anyhow::Result;
use lastro_proto::transactions::v1::account::State;
use lastro_proto::transactions::v1::accounts_service_client::AccountsServiceClient;
use lastro_proto::transactions::v1::{CloseAccountRequest, UpdateAccountRequest};
use lastro_tests::{Answer, Api};
use reqwest::Method;
use serde_json::{Value, json};

use crate::World;
use crate::grpc::{channel, with_token};
use crate::ledger::Ledger;
use crate::legs::{balance, money, with_money};

pub async fn patch(api: &Api, token: &str, account: &str, body: Value) -> Result<Answer> {
    api.json(Method::PATCH, &format!("/api/v1/accounts/{account}"), Some(token), &[], Some(body)).await
}

pub async fn close(api: &Api, token: &str, account: &str) -> Result<Answer> {
    api.post(&format!("/api/v1/accounts/{account}:close"), Some(token), json!({})).await
}

async fn reason_of(api: &Api, token: &str, key: &str, from: &str, to: &str, amount: &str) -> Result<String> {
    let answer = api.transact(token, Api::transfer(key, from, to, amount)).await?;
    anyhow::ensure!(answer.status == 201, "{answer:?}");
    Ok(format!("{} {}", answer.text("state")?, answer.text("reason")?))
}

/// Its owner says what it is called; an administrator says how far it may go below zero, and whether it is frozen.
pub async fn accounts_are_changed(world: &World) -> Result<()> {
    let (api, ana, account) = with_money(world, "10.00").await?;
    let (administrator, eve) = (world.server.administrator().await?, api.someone().await?);
    let named = patch(&api, &ana.token, &account, json!({ "displayName": "Savings" })).await?;
    assert_eq!((named.status, named.text("displayName")?.as_str(), named.text("state")?.as_str()), (200, "Savings", "OPEN"), "{named:?}");
    let expected = [
        (&eve.token, json!({ "displayName": "x" }), 404, "ACCOUNT_NOT_FOUND"),
        (&administrator, json!({ "displayName": "x" }), 403, "ACCOUNT_NOT_YOURS"),
        (&ana.token, json!({ "frozen": true }), 403, "PERMISSION_MISSING"),
        (&ana.token, json!({ "creditLimit": money("BRL", "5.00") }), 403, "PERMISSION_MISSING"),
        (&administrator, json!({ "creditLimit": money("USD", "5.00") }), 400, "INVALID_ARGUMENT"),
        (&administrator, json!({ "creditLimit": money("BRL", "-0.01") }), 400, "INVALID_ARGUMENT"),
        (&administrator, json!({ "creditLimit": money("BRL", "0.001") }), 400, "INVALID_ARGUMENT"),
        (&administrator, json!({ "creditLimit": money("BRL", "10000000000000.01") }), 400, "INVALID_ARGUMENT"),
        (&ana.token, json!({ "displayName": "n".repeat(201) }), 400, "INVALID_ARGUMENT"),
    ];
    for (token, body, status, reason) in expected {
        let answer = patch(&api, token, &account, body.clone()).await?;
        assert_eq!((answer.status, answer.text("reason")?.as_str()), (status, reason), "{body} {answer:?}");
    }
    let unchanged = patch(&api, &ana.token, &account, json!({})).await?;
    assert_eq!((unchanged.status, unchanged.text("displayName")?.as_str()), (200, "Savings"));

    // A credit limit lowers the floor; lowered below what is used it refuses new debits and holds, and nothing else.
    let to = api.account(&ana.token, "BRL").await?;
    let limited = patch(&api, &administrator, &account, json!({ "creditLimit": money("BRL", "50.00") })).await?;
    assert_eq!((limited.status, &limited.body["creditLimit"], &limited.body["available"]), (200, &money("BRL", "50.00"), &money("BRL", "60.00")));
    assert_eq!(reason_of(&api, &ana.token, "c1", &account, &to, "60.01").await?, "REJECTED INSUFFICIENT_FUNDS");
    assert_eq!(reason_of(&api, &ana.token, "c2", &account, &to, "40.00").await?, "COMPLETED ");
    assert_eq!(balance(&api, &ana.token, &account).await?, ["-30.00", "0.00", "20.00"]);
    let lowered = patch(&api, &administrator, &account, json!({ "creditLimit": money("BRL", "0.00") })).await?;
    assert_eq!((lowered.status, &lowered.body["available"]), (200, &money("BRL", "-30.00")), "shown as it is");
    assert_eq!(reason_of(&api, &ana.token, "c3", &account, &to, "0.01").await?, "REJECTED INSUFFICIENT_FUNDS");
    assert_eq!(reason_of(&api, &ana.token, "c4", &to, &account, "10.00").await?, "COMPLETED ", "it receives");
    assert_eq!(balance(&api, &ana.token, &account).await?, ["-20.00", "0.00", "-20.00"]);
    assert_eq!(reason_of(&api, &ana.token, "c5", &to, &account, "25.00").await?, "COMPLETED ");
    assert_eq!(reason_of(&api, &ana.token, "c6", &account, &to, "5.01").await?, "REJECTED INSUFFICIENT_FUNDS", "the floor is zero again");

    // Frozen: debits and new holds are refused; credits and captures of existing holds go on.
    let mut hold = Api::transfer("h1", &account, &to, "2.00");
    hold["hold"] = json!(true);
    let held = api.transact(&ana.token, hold.clone()).await?.text("id")?;
    assert_eq!(patch(&api, &administrator, &account, json!({ "frozen": true })).await?.text("state")?, "FROZEN");
    assert_eq!(reason_of(&api, &ana.token, "f1", &account, &to, "1.00").await?, "REJECTED ACCOUNT_FROZEN");
    hold["externalId"] = json!("h2");
    assert_eq!(api.transact(&ana.token, hold).await?.text("reason")?, "ACCOUNT_FROZEN");
    assert_eq!(reason_of(&api, &ana.token, "f2", &to, &account, "1.00").await?, "COMPLETED ");
    let captured = api.post(&format!("/api/v1/transactions/{held}:capture"), Some(&ana.token), json!({ "externalId": "k" })).await?;
    assert_eq!((captured.status, captured.text("state")?.as_str()), (200, "COMPLETED"), "{captured:?}");
    assert_eq!(patch(&api, &administrator, &account, json!({ "frozen": false })).await?.text("state")?, "OPEN");
    assert_eq!(reason_of(&api, &ana.token, "f3", &account, &to, "1.00").await?, "COMPLETED ");

    // Each change is one event of the account's own stream; what is so already is none.
    patch(&api, &administrator, &account, json!({ "frozen": false, "creditLimit": money("BRL", "0.00") })).await?;
    let ledger = Ledger::of(world).await?;
    let kinds = ledger.event_kinds("account_events", account.parse()?).await?;
    assert_eq!(kinds, ["OPENED", "RENAMED", "CREDIT_LIMIT_CHANGED", "CREDIT_LIMIT_CHANGED", "FROZEN", "UNFROZEN"]);
    Ok(())
}

/// Closed at zero, with nothing held, and while nothing open names it; for ever.
pub async fn accounts_are_closed(world: &World) -> Result<()> {
    let (api, ana, account) = with_money(world, "10.00").await?;
    let (administrator, eve) = (world.server.administrator().await?, api.someone().await?);
    let to = api.account(&ana.token, "BRL").await?;
    assert_eq!(close(&api, &eve.token, &account).await?.status, 404);
    let full = close(&api, &ana.token, &account).await?;
    assert_eq!((full.status, full.text("reason")?.as_str()), (409, "ACCOUNT_NOT_EMPTY"), "{full:?}");
    // Held on one side, and named on the other.
    let mut hold = Api::transfer("h", &account, &to, "10.00");
    hold["hold"] = json!(true);
    let held = api.transact(&ana.token, hold).await?.text("id")?;
    let named = close(&api, &ana.token, &to).await?;
    assert_eq!((named.status, named.text("reason")?.as_str()), (409, "ACCOUNT_IN_USE"), "{named:?}");
    assert_eq!(close(&api, &ana.token, &account).await?.text("reason")?, "ACCOUNT_NOT_EMPTY");
    assert_eq!(api.post(&format!("/api/v1/transactions/{held}:void"), Some(&ana.token), json!({ "externalId": "v" })).await?.status, 200);
    let closed = close(&api, &ana.token, &to).await?;
    assert_eq!((closed.status, closed.text("state")?.as_str()), (200, "CLOSED"), "{closed:?}");
    assert_eq!((close(&api, &ana.token, &to).await?.status, close(&api, &administrator, &to).await?.status), (200, 200), "it stays closed");
    assert_eq!(reason_of(&api, &ana.token, "t1", &account, &to, "1.00").await?, "REJECTED ACCOUNT_CLOSED");
    for body in [json!({ "displayName": "x" }), json!({})] {
        let answer = patch(&api, &ana.token, &to, body).await?;
        assert_eq!((answer.status, answer.text("reason")?.as_str()), (409, "ACCOUNT_CLOSED"), "{answer:?}");
    }
    // A hold is dead when its time is over, whether or not its release is written: it keeps no account, neither that which it names nor that which it holds.
    let (from, named) = (api.account(&ana.token, "BRL").await?, api.account(&ana.token, "BRL").await?);
    assert_eq!(api.transact(&ana.token, Api::transfer("all", &account, &from, "10.00")).await?.status, 201);
    let mut hold = Api::transfer("short", &from, &named, "10.00");
    (hold["hold"], hold["holdExpiry"]) = (json!(true), json!("1s"));
    let held = api.transact(&ana.token, hold).await?;
    assert_eq!(held.body["state"], "AUTHORIZED", "{held:?}");
    tokio::time::sleep(std::time::Duration::from_millis(1010)).await;
    assert_eq!(close(&api, &ana.token, &named).await?.status, 200);
    assert_eq!(api.transact(&ana.token, Api::transfer("back", &from, &account, "10.00")).await?.status, 201);
    assert_eq!(close(&api, &ana.token, &from).await?.status, 200);
    // An administrator closes one of somebody else.
    let another = api.account(&ana.token, "BRL").await?;
    assert_eq!(close(&api, &administrator, &another).await?.text("state")?, "CLOSED");
    assert_eq!(Ledger::of(world).await?.event_kinds("account_events", to.parse()?).await?, ["OPENED", "CLOSED"]);
    let listed = api.get("/api/v1/accounts", Some(&ana.token)).await?;
    let states: Vec<&Value> = listed.body["accounts"].as_array().into_iter().flatten().map(|one| &one["state"]).collect();
    assert_eq!(states, ["CLOSED", "CLOSED", "CLOSED", "CLOSED", "OPEN"].map(Value::from).iter().collect::<Vec<_>>());
    Ok(())
}

/// Whoever closes an account and whoever pays into it at the same time: it is closed and empty, or open.
pub async fn closing_and_paying_at_once(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    for round in 0..10 {
        let to = api.account(&ana.token, "BRL").await?;
        let key = format!("p{round}");
        let (paid, closed) = tokio::join!(reason_of(&api, &ana.token, &key, &from, &to, "0.01"), close(&api, &ana.token, &to));
        let (paid, closed) = (paid?, closed?);
        match closed.status {
            200 => assert_eq!(paid, "REJECTED ACCOUNT_CLOSED"),
            409 => assert!(paid == "COMPLETED " && ["ACCOUNT_NOT_EMPTY", "ACCOUNT_IN_USE"].contains(&closed.text("reason")?.as_str()), "{closed:?}"),
            _ => panic!("{closed:?}"),
        }
    }
    Ok(())
}

pub async fn accounts_over_grpc(world: &World) -> Result<()> {
    let api = world.server.api();
    let (ana, administrator) = (api.someone().await?, world.server.administrator().await?);
    let id = api.account(&ana.token, "JPY").await?;
    let mut client = AccountsServiceClient::new(channel(world).await?);
    let rename = UpdateAccountRequest { id: id.clone(), display_name: Some("Yen".to_owned()), ..UpdateAccountRequest::default() };
    assert_eq!(client.update_account(with_token(&ana.token, rename)?).await?.into_inner().display_name, "Yen");
    let freeze = UpdateAccountRequest { id: id.clone(), frozen: Some(true), ..UpdateAccountRequest::default() };
    assert_eq!(client.update_account(with_token(&administrator, freeze)?).await?.into_inner().state(), State::Frozen);
    let closed = client.close_account(with_token(&ana.token, CloseAccountRequest { id })?).await?.into_inner();
    assert_eq!(closed.state(), State::Closed);
    Ok(())
}

/// What the table refuses, whatever the code says; and who is seen or not by the others.
pub async fn the_edges_of_accounts(world: &World) -> Result<()> {
    let (api, ana, account) = with_money(world, "10.00").await?;
    let (administrator, eve) = (world.server.administrator().await?, api.someone().await?);
    let ledger = Ledger::of(world).await?;
    let below = ledger.try_write("UPDATE balances SET posted = -1 WHERE account_id = $1", account.parse()?).await;
    assert!(below.is_err(), "the table keeps the floor");
    for body in [json!({ "frozen": true }), json!({ "creditLimit": money("BRL", "1.00") }), json!({})] {
        let answer = patch(&api, &eve.token, &account, body).await?;
        assert_eq!((answer.status, answer.text("reason")?.as_str()), (404, "ACCOUNT_NOT_FOUND"), "a stranger: {answer:?}");
    }
    // EXTERNAL is a provider's, for deposits.
    for (token, kind, status) in [(&ana.token, "TRANSFER", 400), (&administrator, "DEPOSIT", 400)] {
        let mut body = Api::transfer("e", &account, &account, "1.00");
        (body["type"], body["settlement"]) = (json!(kind), json!("EXTERNAL"));
        if kind == "DEPOSIT" {
            body["sourceAccountId"] = Value::Null;
        }
        let answer = api.transact(token, body).await?;
        assert_eq!((answer.status, &answer.body["errors"][0]["field"]), (status, &json!("settlement")), "{answer:?}");
    }
    // A disabled user keeps its accounts, and they receive; it opens no more.
    let of_eve = api.account(&eve.token, "BRL").await?;
    let disabled =
        api.json(Method::PATCH, &format!("/api/v1/users/{}", eve.id), Some(&administrator), &[], Some(json!({ "disabled": true }))).await?;
    assert_eq!(disabled.status, 200, "{disabled:?}");
    assert_eq!(reason_of(&api, &ana.token, "d", &account, &of_eve, "1.00").await?, "COMPLETED ");
    assert_eq!(api.posted(&administrator, &of_eve).await?, "1.00");
    Ok(())
}

/// When a transaction counts: as given, else when it was posted; until then when it was accepted.
pub async fn effective_times(world: &World) -> Result<()> {
    let (api, ana, account) = with_money(world, "10.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    let mut given = Api::transfer("g", &account, &to, "1.00");
    given["effectiveTime"] = json!("2026-01-31T12:00:00Z");
    assert_eq!(api.transact(&ana.token, given).await?.text("effectiveTime")?, "2026-01-31T12:00:00Z");
    let plain = api.transact(&ana.token, Api::transfer("p", &account, &to, "1.00")).await?;
    assert_eq!(plain.text("effectiveTime")?, plain.text("updateTime")?);
    let mut hold = Api::transfer("h", &account, &to, "1.00");
    hold["hold"] = json!(true);
    let held = api.transact(&ana.token, hold).await?;
    assert_eq!(held.text("effectiveTime")?, held.text("createTime")?);
    let captured = api.post(&format!("/api/v1/transactions/{}:capture", held.text("id")?), Some(&ana.token), json!({ "externalId": "k" })).await?;
    assert_eq!(captured.text("effectiveTime")?, captured.text("updateTime")?);
    Ok(())
}
