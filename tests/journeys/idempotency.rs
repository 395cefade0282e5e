//! The same key: the same transaction.

use std::collections::BTreeSet;

use anyhow::Result;
use lastro_tests::Api;
use lastro_tests::client::Someone;
use reqwest::Method;
use serde_json::{Value, json};

use crate::World;

async fn two_accounts(world: &World) -> Result<(Api, Someone, String, String)> {
    let (api, administrator) = (world.server.api(), world.server.administrator().await?);
    let someone = api.someone().await?;
    let (from, to) = (api.account(&someone.token, "BRL").await?, api.account(&someone.token, "BRL").await?);
    api.deposit(&administrator, &from, "BRL", "100.00").await?;
    Ok((api, someone, from, to))
}

pub async fn same_key_same_body(world: &World) -> Result<()> {
    let (api, someone, from, to) = two_accounts(world).await?;
    let first = api.transact(&someone.token, Api::transfer("k", &from, &to, "1.00")).await?;
    let mut same = Api::transfer("k", &from, &to, "1");
    same["sourceAccountId"] = json!(from.to_uppercase());
    let again = api.transact(&someone.token, same).await?;
    assert_eq!((first.status, again.status), (201, 200));
    assert_eq!(
        (first.body["id"].clone(), first.body["replayed"].clone(), again.body["replayed"].clone()),
        (again.body["id"].clone(), json!(false), json!(true))
    );
    assert_eq!(api.posted(&someone.token, &to).await?, "1.00");
    Ok(())
}

pub async fn same_key_other_body(world: &World) -> Result<()> {
    let (api, someone, from, to) = two_accounts(world).await?;
    api.transact(&someone.token, Api::transfer("k", &from, &to, "1")).await?;
    let changes: [&dyn Fn(&mut Value); 4] = [
        &|body| body["amount"]["amount"] = json!("2"),
        &|body| body["description"] = json!("x"),
        &|body| body["metadata"] = json!({ "a": "b" }),
        &|body| body["effectiveTime"] = json!("2026-01-01T00:00:00Z"),
    ];
    for change in changes {
        let mut body = Api::transfer("k", &from, &to, "1");
        change(&mut body);
        let refused = api.transact(&someone.token, body).await?;
        assert_eq!((refused.status, refused.text("reason")?.as_str()), (422, "IDEMPOTENCY_KEY_REUSED"), "{refused:?}");
    }
    assert_eq!(api.posted(&someone.token, &to).await?, "1.00");
    Ok(())
}

pub async fn same_key_from_fifty_callers(world: &World) -> Result<()> {
    let (api, someone, from, to) = two_accounts(world).await?;
    let calls = (0..50).map(|_| api.transact(&someone.token, Api::transfer("k", &from, &to, "1")));
    let answers: Vec<_> = futures_util::future::join_all(calls).await.into_iter().collect::<Result<_>>()?;
    let ids: BTreeSet<String> = answers.iter().map(|answer| answer.text("id")).collect::<Result<_>>()?;
    assert_eq!(ids.len(), 1);
    assert_eq!(answers.iter().filter(|answer| answer.body["replayed"] == json!(false)).count(), 1);
    assert!(answers.iter().all(|answer| answer.body["state"] == "COMPLETED"));
    assert_eq!(api.posted(&someone.token, &to).await?, "1.00");
    Ok(())
}

pub async fn keys_are_per_caller(world: &World) -> Result<()> {
    let (api, ana, from, to) = two_accounts(world).await?;
    let (_, rui, rui_from, rui_to) = two_accounts(world).await?;
    let first = api.transact(&ana.token, Api::transfer("k", &from, &to, "1")).await?;
    let second = api.transact(&rui.token, Api::transfer("k", &rui_from, &rui_to, "2")).await?;
    assert_eq!((first.status, second.status), (201, 201));
    assert_ne!(first.body["id"], second.body["id"]);
    Ok(())
}

pub async fn key_in_header(world: &World) -> Result<()> {
    let (api, someone, from, to) = two_accounts(world).await?;
    let create = async |header: Option<&str>, body: &str| {
        let headers: Vec<_> = header.map(|key| ("idempotency-key", key)).into_iter().chain([("prefer", "wait=10")]).collect();
        api.json(Method::POST, "/api/v1/transactions", Some(&someone.token), &headers, Some(Api::transfer(body, &from, &to, "1"))).await
    };
    let first = create(Some("h"), "").await?;
    assert_eq!((first.status, first.text("externalId")?.as_str()), (201, "h"));
    assert_eq!(create(Some("h"), "h").await?.body["id"], first.body["id"]);
    assert_eq!(create(None, "h").await?.body["id"], first.body["id"]);
    let conflict = create(Some("h"), "other").await?;
    assert_eq!((conflict.status, conflict.text("reason")?.as_str()), (400, "IDEMPOTENCY_KEY_CONFLICT"));
    let neither = create(None, "").await?;
    assert_eq!((neither.status, neither.body["errors"][0]["field"].clone()), (400, json!("externalId")));
    Ok(())
}
