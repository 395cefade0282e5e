//! Money that moves.

use std::time::{Duration, Instant};

use anyhow::Result;
use lastro_proto::transactions::v1::ListTransactionsRequest;
use lastro_proto::transactions::v1::transactions_service_client::TransactionsServiceClient;
use lastro_tests::Api;
use lastro_tests::client::Someone;
use reqwest::Method;
use serde_json::{Value, json};

use crate::World;
use crate::grpc::{channel, with_token};

/// Somebody with an account that has some money.
async fn with_money(world: &World, amount: &str) -> Result<(Api, Someone, String)> {
    let (api, administrator) = (world.server.api(), world.server.administrator().await?);
    let someone = api.someone().await?;
    let account = api.account(&someone.token, "BRL").await?;
    api.deposit(&administrator, &account, "BRL", amount).await?;
    Ok((api, someone, account))
}

fn brl(amount: &str) -> Value {
    json!({ "currencyCode": "BRL", "amount": amount })
}

pub async fn deposit_transfer_withdraw(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "100.00").await?;
    let rui = api.someone().await?;
    let to = api.account(&rui.token, "BRL").await?;
    let made = api.transact(&ana.token, Api::transfer("t1", &from, &to, "25.5")).await?;
    assert_eq!((made.status, made.text("state")?.as_str()), (201, "COMPLETED"), "{made:?}");
    assert_eq!(
        (made.header("preference-applied"), made.header("location").to_owned()),
        ("wait=10", format!("/api/v1/transactions/{}", made.text("id")?))
    );
    assert_eq!((made.body["amount"].clone(), made.body["replayed"].clone(), made.body["reason"].clone()), (brl("25.50"), json!(false), json!("")));
    assert_eq!((api.posted(&ana.token, &from).await?, api.posted(&rui.token, &to).await?), ("74.50".to_owned(), "25.50".to_owned()));

    let withdrawal = json!({ "externalId": "w1", "type": "WITHDRAWAL", "sourceAccountId": to, "amount": brl("25.50") });
    assert_eq!(api.transact(&rui.token, withdrawal).await?.body["state"], "COMPLETED");
    assert_eq!(api.posted(&rui.token, &to).await?, "0.00");

    // Without a wait it is accepted: 202, with the state as it stands.
    let accepted = api.post("/api/v1/transactions", Some(&ana.token), Api::transfer("t2", &from, &to, "1")).await?;
    assert_eq!((accepted.status, accepted.header("preference-applied")), (202, ""), "{accepted:?}");
    assert!(!accepted.header("location").is_empty());

    // Deposits need a permission of their own, and an administrator debits nobody.
    let deposit = json!({ "externalId": "d1", "type": "DEPOSIT", "destinationAccountId": from, "amount": brl("1") });
    assert_eq!(api.transact(&ana.token, deposit).await?.status, 403);
    let administrator = world.server.administrator().await?;
    let debit = api.transact(&administrator, Api::transfer(&uuid::Uuid::new_v4().to_string(), &from, &to, "1")).await?;
    assert_eq!(debit.status, 404);
    Ok(())
}

pub async fn lacking_funds_is_an_answer(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    let rejected = api.transact(&ana.token, Api::transfer("t1", &from, &to, "10.01")).await?;
    assert_eq!((rejected.status, rejected.text("state")?.as_str(), rejected.text("reason")?.as_str()), (201, "REJECTED", "INSUFFICIENT_FUNDS"));
    assert_eq!((api.posted(&ana.token, &from).await?, api.posted(&ana.token, &to).await?), ("10.00".to_owned(), "0.00".to_owned()));
    let events = api.get(&format!("/api/v1/transactions/{}/events", rejected.text("id")?), Some(&ana.token)).await?;
    let kinds: Vec<_> = events.body["events"].as_array().expect("a list").iter().map(|event| event["type"].clone()).collect();
    assert_eq!(kinds, ["SUBMITTED", "REJECTED"]);
    // It stays rejected, also when there is money later.
    api.deposit(&world.server.administrator().await?, &from, "BRL", "10.00").await?;
    let again = api.transact(&ana.token, Api::transfer("t1", &from, &to, "10.01")).await?;
    assert_eq!((again.status, again.text("state")?.as_str(), again.body["replayed"].clone()), (200, "REJECTED", json!(true)));
    Ok(())
}

pub async fn a_hundred_withdrawals_one_wins(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "50.00").await?;
    let withdrawals = (0..100).map(|number| {
        let body = json!({ "externalId": format!("w{number}"), "type": "WITHDRAWAL", "sourceAccountId": from, "amount": brl("50.00") });
        api.transact(&ana.token, body)
    });
    let answers: Vec<_> = futures_util::future::join_all(withdrawals).await.into_iter().collect::<Result<_>>()?;
    let states = |state: &str| answers.iter().filter(|answer| answer.body["state"] == state).count();
    assert_eq!((states("COMPLETED"), states("REJECTED")), (1, 99), "{:?}", answers.first());
    assert_eq!(api.posted(&ana.token, &from).await?, "0.00");
    Ok(())
}

pub async fn amounts_that_are_none(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    let usd = api.account(&ana.token, "USD").await?;
    let refused = async |change: &dyn Fn(&mut Value), field: &str| -> Result<()> {
        let mut body = Api::transfer("bad", &from, &to, "1.00");
        change(&mut body);
        let answer = api.transact(&ana.token, body.clone()).await?;
        assert_eq!((answer.status, answer.body["errors"][0]["field"].clone()), (400, json!(field)), "{body} {answer:?}");
        Ok(())
    };
    for amount in [
        "0",
        "0.00",
        "-1",
        "0.001",
        "1e3",
        "NaN",
        "Infinity",
        "",
        " 1",
        "1,00",
        "99999999999999999999",
        "92233720368547758.08",
        "999999999999999999999999999",
    ] {
        refused(&|body| body["amount"]["amount"] = json!(amount), "amount.amount").await?;
    }
    for number in [json!(1), json!(1.5), json!(true)] {
        refused(&|body| body["amount"]["amount"] = number.clone(), "amount.amount").await?;
    }
    refused(&|body| body["amount"] = Value::Null, "amount").await?;
    refused(&|body| body["amount"]["currencyCode"] = json!("USD"), "amount.currencyCode").await?;
    refused(&|body| body["amount"]["currencyCode"] = json!("brl"), "amount.currencyCode").await?;
    refused(&|body| body["destinationAccountId"] = json!(usd), "amount.currencyCode").await?;
    refused(&|body| body["destinationAccountId"] = json!(from), "destinationAccountId").await?;
    refused(&|body| body["destinationAccountId"] = json!("x"), "destinationAccountId").await?;
    refused(&|body| body["destinationAccountId"] = json!(""), "destinationAccountId").await?;
    refused(&|body| body["type"] = json!("DEPOSIT"), "sourceAccountId").await?;
    refused(&|body| body["type"] = json!("REVERSAL"), "type").await?;
    refused(&|body| body["type"] = json!("GIFT"), "type").await?;
    refused(&|body| body["externalId"] = json!(""), "externalId").await?;
    refused(&|body| body["externalId"] = json!("k".repeat(129)), "externalId").await?;
    refused(&|body| body["description"] = json!("d".repeat(501)), "description").await?;
    refused(&|body| body["effectiveTime"] = json!("1999-12-31T23:59:59Z"), "effectiveTime").await?;
    refused(&|body| body["surprise"] = json!(1), "surprise").await?;
    for account in ["00000000-0000-0000-0000-000000000000", &uuid::Uuid::now_v7().to_string()] {
        let answer = api.transact(&ana.token, Api::transfer("bad", &from, account, "1")).await?;
        assert_eq!(answer.status, 404, "{answer:?}");
    }
    assert_eq!(api.posted(&ana.token, &from).await?, "10.00");
    Ok(())
}

pub async fn waits(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    let create = async |key: &str, prefer: &str, wait: Value| {
        let mut body = Api::transfer(key, &from, &to, "0.01");
        body["wait"] = wait;
        api.json(Method::POST, "/api/v1/transactions", Some(&ana.token), &[("prefer", prefer)], Some(body)).await
    };
    let applied = create("a", "wait=5", json!("0s")).await?;
    assert_eq!((applied.status, applied.header("preference-applied")), (201, "wait=5"), "the header beats the body");
    let in_body = create("b", "", json!("5s")).await?;
    assert_eq!((in_body.status, in_body.header("preference-applied")), (201, ""));
    let none = create("c", "wait=0", json!("5s")).await?;
    assert_eq!((none.status, none.header("preference-applied")), (202, "wait=0"));
    for (prefer, wait) in [("wait=31", Value::Null), ("", json!("31s")), ("", json!("-1s"))] {
        let refused = create("d", prefer, wait).await?;
        assert_eq!((refused.status, refused.body["errors"][0]["field"].clone()), (400, json!("wait")), "{refused:?}");
    }
    let started = Instant::now();
    assert_eq!(create("e", "wait=30", Value::Null).await?.status, 201);
    assert!(started.elapsed() < Duration::from_secs(10), "a settled transfer is not waited for any longer");
    Ok(())
}

pub async fn histories_and_events(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    let mut made = Vec::new();
    for number in 0..5 {
        made.push(api.transact(&ana.token, Api::transfer(&format!("t{number}"), &from, &to, "1")).await?.text("id")?);
    }
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/api/v1/transactions?accountId={to}&pageSize=2&pageToken={token}"), Some(&ana.token)).await?;
        seen.extend(page.body["transactions"].as_array().expect("a list").iter().map(|one| one["id"].as_str().expect("an id").to_owned()));
        token = page.text("nextPageToken")?;
        if token.is_empty() {
            break;
        }
    }
    made.reverse();
    assert_eq!(seen, made, "newest first, none twice, none left out");
    // Of all accounts: the deposit as well.
    assert_eq!(api.get("/api/v1/transactions", Some(&ana.token)).await?.body["transactions"].as_array().map(Vec::len), Some(6));

    let events = api.get(&format!("/api/v1/transactions/{}/events", made[0]), Some(&ana.token)).await?;
    let events = events.body["events"].as_array().expect("a list").clone();
    assert_eq!(events.iter().map(|event| event["type"].clone()).collect::<Vec<_>>(), ["SUBMITTED", "COMPLETED"]);
    assert_eq!(events.iter().map(|event| event["version"].clone()).collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(events[1]["causationId"], events[0]["id"]);
    assert_ne!(events[0]["hash"], events[1]["hash"]);
    let submitted = &events[0]["payload"]["submitted"];
    assert!(submitted["type"].is_string() && submitted["type"] != "TYPE_UNSPECIFIED", "enums are words in events too: {submitted}");
    let postings = &events[1]["payload"]["completed"]["postings"];
    assert_eq!((postings[0]["amountMinor"].clone(), postings[1]["amountMinor"].clone()), (json!("-100"), json!("100")));
    assert_eq!((postings[1]["accountVersion"].clone(), postings[1]["balanceMinor"].clone()), (json!("5"), json!("500")));
    Ok(())
}

pub async fn what_others_may_see(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let (rui, eve) = (api.someone().await?, api.someone().await?);
    let to = api.account(&rui.token, "BRL").await?;
    let mut body = Api::transfer("secret-key", &from, &to, "1");
    body["metadata"] = json!({ "note": "mine" });
    let made = api.transact(&ana.token, body).await?;
    assert_eq!((made.body["externalId"].clone(), made.body["metadata"].clone()), (json!("secret-key"), json!({ "note": "mine" })));
    let path = format!("/api/v1/transactions/{}", made.text("id")?);
    let received = api.get(&path, Some(&rui.token)).await?;
    assert_eq!((received.status, received.body["externalId"].clone(), received.body["metadata"].clone()), (200, json!(""), json!({})));
    assert_eq!(api.get("/api/v1/transactions", Some(&rui.token)).await?.body["transactions"][0]["id"], made.body["id"]);
    let events = api.get(&format!("{path}/events"), Some(&rui.token)).await?;
    let postings = &events.body["events"][1]["payload"]["completed"]["postings"];
    assert_eq!((postings[0]["balanceMinor"].clone(), postings[1].clone()), (json!("100"), Value::Null), "its own posting alone");
    assert_eq!(events.body["events"][0]["payload"]["submitted"]["externalId"], "");
    for path in [path.clone(), format!("{path}/events")] {
        assert_eq!(api.get(&path, Some(&eve.token)).await?.status, 404);
    }
    assert_eq!(api.get("/api/v1/transactions", Some(&eve.token)).await?.body["transactions"], json!([]));
    assert_eq!(api.get(&path, Some(&world.server.administrator().await?)).await?.status, 200);
    Ok(())
}

/// By state, type, time, key and account, each alone and together; pages of a filtered list leave nothing out.
pub async fn lists_are_filtered(world: &World) -> Result<()> {
    let (api, administrator) = (world.server.api(), world.server.administrator().await?);
    let someone = api.someone().await?;
    let (from, to) = (api.account(&someone.token, "BRL").await?, api.account(&someone.token, "BRL").await?);
    api.deposit(&administrator, &from, "BRL", "10.00").await?;
    for number in 0..6 {
        // Every third one is refused.
        let amount = if number % 3 == 2 { "1000.00" } else { "1.00" };
        let mut body = lastro_tests::Api::transfer(&format!("filtered {number}"), &from, &to, amount);
        body["metadata"] = json!({ "batch": (number % 2).to_string(), "all": "é & co" });
        api.transact(&someone.token, body).await?;
    }
    let listed = async |query: &str| {
        let answer = api.get(&format!("/api/v1/transactions?{query}"), Some(&someone.token)).await?;
        anyhow::ensure!(answer.status == 200, "{query}: {answer:?}");
        anyhow::Ok((answer.body["transactions"].as_array().cloned().unwrap_or_default(), answer.text("nextPageToken")?))
    };
    let count = async |query: &str| anyhow::Ok(listed(query).await?.0.len());
    let all = listed("").await?.0;
    assert_eq!(all.len(), 7);
    for (query, expected) in [
        ("state=COMPLETED", 5),
        ("state=REJECTED", 2),
        ("state=PENDING", 0),
        ("type=DEPOSIT", 1),
        ("type=TRANSFER", 6),
        ("type=TRANSFER&state=REJECTED", 2),
        ("type=DEPOSIT&state=REJECTED", 0),
        ("externalId=filtered%202", 1),
        ("externalId=filtered%202&state=COMPLETED", 0),
        ("externalId=nobody's", 0),
        ("from=2001-01-01T00:00:00Z&to=2002-01-01T00:00:00Z", 0),
        ("from=2001-01-01T00:00:00Z", 7),
        ("state=STATE_UNSPECIFIED&type=TYPE_UNSPECIFIED", 7),
        ("metadataKey=batch", 6),
        ("metadataKey=batch&metadataValue=1", 3),
        ("metadataKey=batch&metadataValue=1&state=REJECTED", 1),
        ("metadataKey=batch&metadataValue=", 0),
        ("metadataKey=all&metadataValue=%C3%A9%20%26%20co", 6),
        ("metadataKey=Batch", 0),
    ] {
        assert_eq!(count(query).await?, expected, "{query}");
        let of_account = listed(&format!("{query}&accountId={to}")).await?.0;
        let elsewhere = all.iter().filter(|one| one["destinationAccountId"] != to.as_str()).count();
        assert!(of_account.len() <= expected && expected - of_account.len() <= elsewhere, "{query}");
    }
    // Metadata is its submitter's: nobody finds others' transactions by it, though it sees them.
    let of_administrator = api.get("/api/v1/transactions?metadataKey=batch&pageSize=1000", Some(&administrator)).await?;
    assert_eq!(of_administrator.body["transactions"].as_array().map(Vec::len), Some(0), "{of_administrator:?}");
    // The same over gRPC.
    let by_metadata = ListTransactionsRequest {
        metadata_key: Some("batch".to_owned()),
        metadata_value: Some("0".to_owned()),
        ..ListTransactionsRequest::default()
    };
    let mut client = TransactionsServiceClient::new(channel(world).await?);
    let over_grpc = client.list_transactions(with_token(&someone.token, by_metadata)?).await?.into_inner();
    assert_eq!(over_grpc.transactions.len(), 3);
    // From exactly when one was accepted: it and those after it; up to it: those before.
    let middle = &all[3];
    let at = middle["createTime"].as_str().unwrap_or_default();
    assert_eq!((count(&format!("from={at}")).await?, count(&format!("to={at}")).await?), (4, 3));
    let (mut paged, mut token) = (Vec::new(), String::new());
    loop {
        let (page, next) = listed(&format!("state=COMPLETED&type=TRANSFER&pageSize=1&pageToken={token}")).await?;
        paged.extend(page);
        if next.is_empty() {
            break;
        }
        token = next;
    }
    let expected: Vec<&serde_json::Value> = all.iter().filter(|one| one["state"] == "COMPLETED" && one["type"] == "TRANSFER").collect();
    assert_eq!(paged.iter().map(|one| &one["id"]).collect::<Vec<_>>(), expected.into_iter().map(|one| &one["id"]).collect::<Vec<_>>());
    for (query, field) in [
        ("state=DONE", "state"),
        ("state=3", "state"),
        ("type=GIFT", "type"),
        ("from=yesterday", "from"),
        ("from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", "to"),
        ("accountId=x", "accountId"),
        ("metadataValue=1", "metadataValue"),
        ("metadataKey=", "metadataKey"),
    ] {
        let answer = api.get(&format!("/api/v1/transactions?{query}"), Some(&someone.token)).await?;
        assert_eq!((answer.status, answer.body["errors"][0]["field"].as_str()), (400, Some(field)), "{query}: {answer:?}");
    }
    let stranger = api.someone().await?;
    let theirs = api.get("/api/v1/transactions?externalId=filtered%202", Some(&stranger.token)).await?;
    assert_eq!(theirs.body["transactions"], serde_json::json!([]), "a key is its caller's own");
    Ok(())
}
