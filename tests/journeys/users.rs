//! Users: who somebody is.

use anyhow::Result;
use lastro_tests::Api;
use lastro_tests::client::PASSWORD;
use reqwest::Method;
use serde_json::json;

use crate::World;
use crate::sessions::dies_within_3s;

pub async fn registers_and_reads(world: &World) -> Result<()> {
    let api = world.server.api();
    let email = format!("Mixed.{}@Example.COM", uuid::Uuid::new_v4().simple());
    let made = api.post("/api/v1/users", None, json!({ "name": "Zé", "email": email, "password": PASSWORD })).await?;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(made.header("location"), format!("/api/v1/users/{}", made.text("id")?));
    assert_eq!((made.body["roles"].clone(), made.body["email"].clone()), (json!(["USER"]), json!(email.to_lowercase())));
    assert!(made.text("createTime")?.ends_with('Z'));
    assert!(made.body.get("password").is_none());

    let taken = api.post("/api/v1/users", None, json!({ "name": "Other", "email": email.to_uppercase(), "password": PASSWORD })).await?;
    assert_eq!((taken.status, taken.text("reason")?.as_str()), (409, "EMAIL_TAKEN"));

    let login = api.post("/api/v1/auth/login", None, json!({ "email": email, "password": PASSWORD })).await?;
    assert_eq!((login.body["tokenType"].clone(), login.body["expiresIn"].clone()), (json!("Bearer"), json!(18000)));
    let token = login.text("accessToken")?;
    let me = api.get("/api/v1/users/me", Some(&token)).await?;
    assert_eq!(me.body, made.body);
    let renamed = api.json(Method::PATCH, &format!("/api/v1/users/{}", made.text("id")?), Some(&token), &[], Some(json!({ "name": "José" }))).await?;
    assert_eq!((renamed.status, renamed.text("name")?.as_str()), (200, "José"));
    // And again, and back: what happens twice is told twice.
    for name in ["Joseph", "José", "Joseph"] {
        let renamed =
            api.json(Method::PATCH, &format!("/api/v1/users/{}", made.text("id")?), Some(&token), &[], Some(json!({ "name": name }))).await?;
        assert_eq!(renamed.status, 200, "{renamed:?}");
    }
    api.json(Method::PATCH, &format!("/api/v1/users/{}", made.text("id")?), Some(&token), &[], Some(json!({ "name": "José" }))).await?;
    // Without a version the current one is meant.
    assert_eq!(api.get("/api/users/me", Some(&token)).await?.text("name")?, "José");
    Ok(())
}

pub async fn validates(world: &World) -> Result<()> {
    let api = world.server.api();
    for (body, field) in [
        (json!({ "name": "", "email": "a@example.com", "password": PASSWORD }), "name"),
        (json!({ "name": "n".repeat(201), "email": "a@example.com", "password": PASSWORD }), "name"),
        (json!({ "name": "n", "email": "nobody", "password": PASSWORD }), "email"),
        (json!({ "name": "n", "email": "a@example.com", "password": "short" }), "password"),
        (json!({ "name": "n", "email": "a@example.com", "password": "p".repeat(129) }), "password"),
        (json!({ "name": 5, "email": "a@example.com", "password": PASSWORD }), "name"),
        (json!({ "name": "n", "email": "a@example.com", "password": PASSWORD, "roles": ["ADMIN"] }), "roles"),
    ] {
        let answer = api.post("/api/v1/users", None, body).await?;
        assert_eq!((answer.status, answer.body["errors"][0]["field"].clone()), (400, json!(field)), "{answer:?}");
    }
    // An address is what its documentation says: of HTML, not of RFC 5321.
    let unique = uuid::Uuid::new_v4().simple();
    for (email, status) in [
        (format!("o'brien+{unique}@localhost"), 201),
        (format!("a..{unique}.@example.com"), 201),
        (format!("{}@{}.example", "a".repeat(64), unique), 201),
        (format!("\"{unique}\"@example.com"), 400),
        (format!("{unique}@ex\u{e4}mple.com"), 400),
        (format!("\u{e4}{unique}@example.com"), 400),
        (format!("{unique}@[127.0.0.1]"), 400),
        (format!("{unique}@-example.com"), 400),
        (format!(" {unique}@example.com"), 400),
        (format!("Name <{unique}@example.com>"), 400),
    ] {
        let answer = api.post("/api/v1/users", None, json!({ "name": "n", "email": email, "password": PASSWORD })).await?;
        assert_eq!(answer.status, status, "{email}: {answer:?}");
    }
    Ok(())
}

pub async fn administrators_manage_users(world: &World) -> Result<()> {
    let (api, administrator) = (world.server.api(), world.server.administrator().await?);
    let someone = api.someone().await?;
    let path = format!("/api/v1/users/{}", someone.id);

    // A user changes neither its roles nor whether it is disabled, and lists nobody.
    for body in [json!({ "roles": ["ADMIN"] }), json!({ "disabled": false })] {
        assert_eq!(api.json(Method::PATCH, &path, Some(&someone.token), &[], Some(body)).await?.status, 403);
    }
    assert_eq!(api.get("/api/v1/users", Some(&someone.token)).await?.status, 403);
    let listed = api.get("/api/v1/users?pageSize=1000", Some(&administrator)).await?;
    assert!(listed.body["users"].as_array().expect("a list").iter().any(|user| user["id"] == json!(someone.id)), "{listed:?}");

    // New roles end the sessions, whose tokens said the old ones.
    let promoted = api.json(Method::PATCH, &path, Some(&administrator), &[], Some(json!({ "roles": ["USER", "PROVIDER"] }))).await?;
    assert_eq!((promoted.status, promoted.body["roles"].clone()), (200, json!(["USER", "PROVIDER"])));
    dies_within_3s(&api, "/api/v1/users/me", &someone.token).await?;

    let disabled = api.json(Method::PATCH, &path, Some(&administrator), &[], Some(json!({ "disabled": true }))).await?;
    assert_eq!((disabled.status, disabled.body["disabled"].clone()), (200, json!(true)));
    let login = api.post("/api/v1/auth/login", None, json!({ "email": someone.email, "password": PASSWORD })).await?;
    assert_eq!((login.status, login.text("reason")?.as_str()), (401, "INVALID_CREDENTIALS"));
    api.json(Method::PATCH, &path, Some(&administrator), &[], Some(json!({ "disabled": false }))).await?;
    // To and fro, as often as it takes.
    for body in [json!({ "disabled": true, "roles": ["USER"] }), json!({ "disabled": false, "roles": ["USER", "PROVIDER"] })].iter().cycle().take(4) {
        let changed = api.json(Method::PATCH, &path, Some(&administrator), &[], Some(body.clone())).await?;
        assert_eq!(changed.status, 200, "{changed:?}");
    }
    assert_eq!(api.post("/api/v1/auth/login", None, json!({ "email": someone.email, "password": PASSWORD })).await?.status, 200);
    Ok(())
}

pub async fn the_last_administrator_stays(world: &World) -> Result<()> {
    let (api, administrator) = (world.server.api(), world.server.administrator().await?);
    let me = api.get("/api/v1/users/me", Some(&administrator)).await?.text("id")?;
    let path = format!("/api/v1/users/{me}");
    for body in [json!({ "roles": ["USER"] }), json!({ "disabled": true })] {
        let refused = api.json(Method::PATCH, &path, Some(&administrator), &[], Some(body)).await?;
        assert_eq!((refused.status, refused.text("reason")?.as_str()), (409, "LAST_ADMINISTRATOR"));
    }
    let refused = api.json(Method::DELETE, &path, Some(&administrator), &[], None).await?;
    assert_eq!((refused.status, refused.text("reason")?.as_str()), (409, "LAST_ADMINISTRATOR"));
    Ok(())
}

pub async fn a_deleted_user_is_anonymous(world: &World) -> Result<()> {
    let (api, administrator) = (world.server.api(), world.server.administrator().await?);
    let someone = api.someone().await?;
    let account = api.account(&someone.token, "BRL").await?;
    let empty = api.account(&someone.token, "BRL").await?;
    api.deposit(&administrator, &account, "BRL", "5.00").await?;
    let path = format!("/api/v1/users/{}", someone.id);

    // Whoever has money stays, whole: nothing is closed, nobody is logged out.
    for token in [&someone.token, &administrator] {
        let refused = api.json(Method::DELETE, &path, Some(token), &[], None).await?;
        assert_eq!((refused.status, refused.text("reason")?.as_str()), (409, "USER_HAS_MONEY"), "{refused:?}");
    }
    api.transact(&someone.token, Api::transfer("still open", &account, &empty, "1.00")).await?;
    assert_eq!(api.posted(&someone.token, &empty).await?, "1.00");
    let withdraw = |key: &str, account: &str, amount: &str| json!({ "externalId": key, "type": "WITHDRAWAL", "sourceAccountId": account, "amount": { "currencyCode": "BRL", "amount": amount } });
    for (key, account, amount) in [("out", &account, "4.00"), ("out too", &empty, "1.00")] {
        assert_eq!(api.transact(&someone.token, withdraw(key, account, amount)).await?.text("state")?, "COMPLETED");
    }
    assert_eq!(api.json(Method::DELETE, &path, Some(&someone.token), &[], None).await?.status, 204);
    // Its accounts are closed: nothing gets in, and money stays with those who would send it.
    for account in [&account, &empty] {
        let body = json!({ "externalId": format!("late {account}"), "type": "DEPOSIT", "destinationAccountId": account, "amount": { "currencyCode": "BRL", "amount": "1" } });
        let late = api.transact(&administrator, body).await?;
        assert_eq!((late.text("state")?, late.text("reason")?), ("REJECTED".to_owned(), "ACCOUNT_CLOSED".to_owned()), "{late:?}");
    }
    assert_eq!(api.get(&path, Some(&administrator)).await?.status, 404);
    let login = api.post("/api/v1/auth/login", None, json!({ "email": someone.email, "password": PASSWORD })).await?;
    assert_eq!(login.status, 401);
    // Its ledger stays, and its address is free again.
    assert_eq!(api.posted(&administrator, &account).await?, "0.00");
    let again = api.post("/api/v1/users", None, json!({ "name": "n", "email": someone.email, "password": PASSWORD })).await?;
    assert_eq!(again.status, 201, "{again:?}");
    Ok(())
}

/// Registering again with the same key is one registration, and no way to guess a password.
pub async fn registering_is_idempotent_by_key(world: &World) -> Result<()> {
    let api = world.server.api();
    let email = format!("key-{}@example.com", uuid::Uuid::new_v4().simple());
    let body = |name: &str, password: &str| json!({ "name": name, "email": email, "password": password });
    let register =
        async |key: &str, body: serde_json::Value| api.json(Method::POST, "/api/v1/users", None, &[("idempotency-key", key)], Some(body)).await;
    let (first, second) = tokio::join!(register("k", body("Ana", PASSWORD)), register("k", body("Ana", PASSWORD)));
    let (first, second) = (first?, second?);
    let mut statuses = [first.status, second.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 201], "{first:?} {second:?}");
    assert_eq!(first.body["id"], second.body["id"]);
    let again = register("k", body("Ana", PASSWORD)).await?;
    assert_eq!((again.status, again.body["id"].clone(), again.body["replayed"].clone()), (200, first.body["id"].clone(), json!(true)));
    for (key, body, status, reason) in [
        ("k", body("Eve", PASSWORD), 422, "IDEMPOTENCY_KEY_REUSED"),
        ("k", body("Ana", "another password"), 422, "IDEMPOTENCY_KEY_REUSED"),
        ("other", body("Ana", PASSWORD), 409, "EMAIL_TAKEN"),
    ] {
        let refused = register(key, body).await?;
        assert_eq!((refused.status, refused.text("reason")?.as_str()), (status, reason), "{refused:?}");
    }
    let mut guesses = Vec::new();
    for number in 0..15 {
        guesses.push(register("k", body("Ana", &format!("a guess {number}"))).await?.status);
    }
    assert!(guesses.contains(&429), "{guesses:?}");
    Ok(())
}
