//! Accounts.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::json;

use crate::World;

pub async fn opens_lists_and_reads_accounts(world: &World) -> Result<()> {
    let (api, administrator) = (world.server.api(), world.server.administrator().await?);
    let someone = api.someone().await?;
    let made = api.post("/api/v1/accounts", Some(&someone.token), json!({ "currencyCode": "JPY", "displayName": "Yen" })).await?;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(made.header("location"), format!("/api/v1/accounts/{}", made.text("id")?));
    let zero = json!({ "currencyCode": "JPY", "amount": "0" });
    for balance in ["posted", "held", "available"] {
        assert_eq!(made.body[balance], zero);
    }
    assert_eq!(made.body["ownerId"], json!(someone.id));
    let path = format!("/api/v1/accounts/{}", made.text("id")?);
    assert_eq!(api.get(&path, Some(&someone.token)).await?.body, made.body);
    assert_eq!(api.get(&path, Some(&administrator)).await?.body, made.body);
    assert_eq!(api.get("/api/v1/accounts", Some(&someone.token)).await?.body, json!({ "accounts": [made.body], "nextPageToken": "" }));
    // Somebody else's owner id finds nothing; an administrator finds what it asks for.
    let other = api.someone().await?;
    let by_owner = format!("/api/v1/accounts?ownerId={}", someone.id);
    assert_eq!(api.get(&by_owner, Some(&other.token)).await?.body["accounts"], json!([]));
    assert_eq!(api.get(&by_owner, Some(&administrator)).await?.body["accounts"][0]["id"], made.body["id"]);
    Ok(())
}

pub async fn pages_through_accounts(world: &World) -> Result<()> {
    let api = world.server.api();
    let someone = api.someone().await?;
    let mut made = BTreeSet::new();
    for _ in 0..5 {
        made.insert(api.account(&someone.token, "BRL").await?);
    }
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/api/v1/accounts?pageSize=2&pageToken={token}"), Some(&someone.token)).await?;
        seen.extend(page.body["accounts"].as_array().expect("a list").iter().map(|account| account["id"].as_str().expect("an id").to_owned()));
        token = page.text("nextPageToken")?;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen.len(), 5);
    assert_eq!(seen.iter().cloned().collect::<BTreeSet<_>>(), made);
    assert!(seen.is_sorted_by(|a, b| a > b), "newest first");
    Ok(())
}

pub async fn refuses_bad_accounts(world: &World) -> Result<()> {
    let api = world.server.api();
    let someone = api.someone().await?;
    for currency in ["", "brl", "XXX", "BR", "BRLL", "R$"] {
        let answer = api.post("/api/v1/accounts", Some(&someone.token), json!({ "currencyCode": currency })).await?;
        assert_eq!((answer.status, answer.body["errors"][0]["field"].clone()), (400, json!("currencyCode")), "{answer:?}");
    }
    for (query, field) in
        [("pageSize=-1", "pageSize"), ("pageSize=1001", "pageSize"), ("pageToken=x", "pageToken"), ("ownerId=x", "ownerId"), ("foo=1", "foo")]
    {
        let answer = api.get(&format!("/api/v1/accounts?{query}"), Some(&someone.token)).await?;
        assert_eq!((answer.status, answer.body["errors"][0]["field"].clone()), (400, json!(field)), "{answer:?}");
    }
    Ok(())
}
