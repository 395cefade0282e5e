//! Sessions: how they live and die.

use std::time::{Duration, Instant};

use anyhow::Result;
use lastro_tests::Api;
use lastro_tests::client::PASSWORD;
use reqwest::Method;
use serde_json::json;

use crate::World;

pub async fn refresh_rotates(world: &World) -> Result<()> {
    let api = world.server.api();
    let someone = api.someone().await?;
    let next = api.post("/api/v1/auth/refresh", None, json!({ "refreshToken": someone.refresh_token })).await?;
    assert_eq!(next.status, 200, "{next:?}");
    assert_ne!(next.text("refreshToken")?, someone.refresh_token);
    assert_eq!(api.get("/api/v1/users/me", Some(&next.text("accessToken")?)).await?.text("id")?, someone.id);
    for garbage in ["x", "", &someone.token] {
        let refused = api.post("/api/v1/auth/refresh", None, json!({ "refreshToken": garbage })).await?;
        assert!([400, 401].contains(&refused.status), "{refused:?}");
    }
    Ok(())
}

/// A token of a session that is over is refused by every replica, however many there are: several answers in a row.
pub async fn dies_within_3s(api: &Api, path: &str, token: &str) -> Result<()> {
    let (since, mut refusals) = (Instant::now(), 0);
    while refusals < 8 {
        let refused = api.get(path, Some(token)).await?.status == 401;
        assert!(refused || since.elapsed() < Duration::from_secs(3), "{path} still takes a token of a session that is over");
        refusals = if refused { refusals + 1 } else { 0 };
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    Ok(())
}

pub async fn reused_refresh_token_ends_the_session(world: &World) -> Result<()> {
    let api = world.server.api();
    let someone = api.someone().await?;
    let next = api.post("/api/v1/auth/refresh", None, json!({ "refreshToken": someone.refresh_token })).await?;
    let reused = api.post("/api/v1/auth/refresh", None, json!({ "refreshToken": someone.refresh_token })).await?;
    assert_eq!((reused.status, reused.text("reason")?.as_str()), (401, "INVALID_REFRESH_TOKEN"));
    // The whole family is dead: the thief's and the owner's.
    let family = api.post("/api/v1/auth/refresh", None, json!({ "refreshToken": next.text("refreshToken")? })).await?;
    assert_eq!(family.status, 401);
    dies_within_3s(&api, "/api/v1/users/me", &next.text("accessToken")?).await
}

pub async fn logout_is_dead_everywhere(world: &World) -> Result<()> {
    let api = world.server.api();
    let someone = api.someone().await?;
    let other = api.post("/api/v1/auth/login", None, json!({ "email": someone.email, "password": PASSWORD })).await?;
    assert_eq!(api.get("/api/v1/accounts", Some(&someone.token)).await?.status, 200);
    assert_eq!(api.post("/api/v1/auth/logout", Some(&someone.token), json!({})).await?.status, 200);
    dies_within_3s(&api, "/api/v1/users/me", &someone.token).await?;
    dies_within_3s(&api, "/api/v1/accounts", &someone.token).await?;
    assert_eq!(api.post("/api/v1/auth/refresh", None, json!({ "refreshToken": someone.refresh_token })).await?.status, 401);
    // Another session of the same user lives on.
    assert_eq!(api.get("/api/v1/accounts", Some(&other.text("accessToken")?)).await?.status, 200);
    Ok(())
}

pub async fn password_change_ends_sessions(world: &World) -> Result<()> {
    let api = world.server.api();
    let someone = api.someone().await?;
    let path = "/api/v1/users/me:changePassword";
    let wrong = api.post(path, Some(&someone.token), json!({ "currentPassword": "not it", "newPassword": "another one" })).await?;
    assert_eq!(wrong.status, 401);
    let weak = api.post(path, Some(&someone.token), json!({ "currentPassword": PASSWORD, "newPassword": "short" })).await?;
    assert_eq!((weak.status, weak.body["errors"][0]["field"].clone()), (400, json!("newPassword")));
    let changed = api.post(path, Some(&someone.token), json!({ "currentPassword": PASSWORD, "newPassword": "another one" })).await?;
    assert_eq!(changed.status, 200, "{changed:?}");
    dies_within_3s(&api, "/api/v1/users/me", &someone.token).await?;
    assert_eq!(api.post("/api/v1/auth/login", None, json!({ "email": someone.email, "password": PASSWORD })).await?.status, 401);
    assert_eq!(api.post("/api/v1/auth/login", None, json!({ "email": someone.email, "password": "another one" })).await?.status, 200);
    Ok(())
}

pub async fn logins_are_throttled(world: &World) -> Result<()> {
    let api = world.server.api();
    let someone = api.someone().await?;
    let nobody = format!("nobody-{}@example.com", uuid::Uuid::new_v4().simple());
    for email in [&someone.email, &nobody] {
        let mut answers = Vec::new();
        for _ in 0..11 {
            answers.push(api.post("/api/v1/auth/login", None, json!({ "email": email, "password": "wrong" })).await?);
        }
        // Known and unknown addresses get the same answers.
        assert!(answers[..10].iter().all(|answer| answer.status == 401 && answer.body["reason"] == "INVALID_CREDENTIALS"), "{answers:?}");
        assert_eq!((answers[10].status, answers[10].body["reason"].clone()), (429, json!("LOGIN_THROTTLED")));
        assert!(!answers[10].header("retry-after").is_empty());
    }
    // Even the right password has to wait now.
    let right = api.json(Method::POST, "/api/v1/auth/login", None, &[], Some(json!({ "email": someone.email, "password": PASSWORD }))).await?;
    assert_eq!(right.status, 429);
    // Nor does a stolen token guess the password.
    let owner = api.someone().await?;
    let mut guessed = Vec::new();
    for _ in 0..11 {
        let guess = json!({ "currentPassword": "wrong", "newPassword": "another long one" });
        guessed.push(api.post("/api/v1/users/me:changePassword", Some(&owner.token), guess).await?.status);
    }
    assert_eq!((&guessed[..10], guessed[10]), (&[401; 10][..], 429));
    // Who keeps trying harms nobody else: a service that says no is not away.
    for _ in 0..30 {
        assert_eq!(api.post("/api/v1/auth/login", None, json!({ "email": nobody, "password": "wrong" })).await?.status, 429);
    }
    api.someone().await?;
    Ok(())
}
