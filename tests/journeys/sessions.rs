//! Sessions: how they live and die.

use std::time::{Duration, Instant};

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lastro_tests::client::PASSWORD;
use lastro_tests::{Answer, Api};
use reqwest::Method;
use sea_orm::ConnectionTrait as _;
use serde_json::json;

use crate::World;
use crate::ledger::Ledger;

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

async fn refresh(api: &Api, token: &str) -> Result<Answer> {
    api.post("/api/v1/auth/refresh", None, json!({ "refreshToken": token })).await
}

pub async fn reused_refresh_token_ends_the_session(world: &World) -> Result<()> {
    let api = world.server.api();
    let someone = api.someone().await?;
    let next = refresh(&api, &someone.refresh_token).await?;
    // What came of it was traded on, so that its answer was not lost.
    let last = refresh(&api, &next.text("refreshToken")?).await?;
    let reused = refresh(&api, &someone.refresh_token).await?;
    assert_eq!((reused.status, reused.text("reason")?.as_str()), (401, "INVALID_REFRESH_TOKEN"));
    // The whole family is dead: the thief's and the owner's.
    assert_eq!(refresh(&api, &last.text("refreshToken")?).await?.status, 401);
    dies_within_3s(&api, "/api/v1/users/me", &last.text("accessToken")?).await
}

/// The answer to a trade may be lost, or two windows trade at once: within the grace nobody is thrown out. Later it is in two hands.
pub async fn the_last_traded_refresh_token_may_come_again(world: &World) -> Result<()> {
    let api = world.server.api();
    let someone = api.someone().await?;
    let (first, second) = tokio::join!(refresh(&api, &someone.refresh_token), refresh(&api, &someone.refresh_token));
    let (first, second) = (first?, second?);
    assert_eq!((first.status, second.status), (200, 200), "{first:?} {second:?}");
    for pair in [&first, &second] {
        assert_eq!(api.get("/api/v1/users/me", Some(&pair.text("accessToken")?)).await?.status, 200);
        assert_eq!(refresh(&api, &pair.text("refreshToken")?).await?.status, 200, "each pair goes on");
    }
    if world.postgres.is_none() {
        let folder = tempfile::tempdir()?;
        let server = lastro_tests::Server::start(&folder.path().join("data"), &["--refresh-reuse-grace", "1"])?;
        let api = server.api();
        let someone = api.someone().await?;
        let next = refresh(&api, &someone.refresh_token).await?;
        assert_eq!(refresh(&api, &someone.refresh_token).await?.status, 200);
        tokio::time::sleep(Duration::from_millis(1300)).await;
        assert_eq!(refresh(&api, &someone.refresh_token).await?.status, 401);
        assert_eq!(refresh(&api, &next.text("refreshToken")?).await?.status, 401, "the family is over");
        dies_within_3s(&api, "/api/v1/users/me", &next.text("accessToken")?).await?;
    }
    Ok(())
}

/// A token that was never given ends nothing, whatever session it names: the id of a session is in every access token.
pub async fn a_token_that_was_never_given_ends_nothing(world: &World) -> Result<()> {
    let api = world.server.api();
    let someone = api.someone().await?;
    let claims = someone.token.split('.').nth(1).expect("a JWT");
    let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
    let session = uuid::Uuid::parse_str(claims["sid"].as_str().expect("sid"))?;
    for secret in [[0; 32], [7; 32]] {
        let forged = URL_SAFE_NO_PAD.encode([session.as_bytes().as_slice(), &secret].concat());
        assert_eq!(refresh(&api, &forged).await?.status, 401);
    }
    // Nor does the secret of another session.
    let other = api.someone().await?;
    let theirs = URL_SAFE_NO_PAD.decode(&other.refresh_token)?;
    let mixed = URL_SAFE_NO_PAD.encode([session.as_bytes().as_slice(), &theirs[16..]].concat());
    assert_eq!(refresh(&api, &mixed).await?.status, 401);
    tokio::time::sleep(Duration::from_millis(300)).await;
    for whose in [&someone, &other] {
        assert_eq!(api.get("/api/v1/users/me", Some(&whose.token)).await?.status, 200);
        assert_eq!(refresh(&api, &whose.refresh_token).await?.status, 200);
    }
    Ok(())
}

/// Of many wrong passwords at once no more are looked at than one after the other; many right ones at once all get in.
pub async fn attempts_are_counted_before_they_are_made(world: &World) -> Result<()> {
    let api = world.server.api();
    let someone = api.someone().await?;
    let right = (0..25).map(|_| api.post("/api/v1/auth/login", None, json!({ "email": someone.email, "password": PASSWORD })));
    for answer in futures_util::future::join_all(right).await {
        let answer = answer?;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let count = |answers: &[Answer]| {
        let of = |status| answers.iter().filter(|answer| answer.status == status).count();
        (of(401), of(429), answers.len())
    };
    let wrong = (0..60).map(|_| api.post("/api/v1/auth/login", None, json!({ "email": someone.email, "password": "wrong" })));
    let answers: Vec<Answer> = futures_util::future::join_all(wrong).await.into_iter().collect::<Result<_>>()?;
    assert_eq!(count(&answers), (10, 50, 60));
    let owner = api.someone().await?;
    let guess = json!({ "currentPassword": "wrong", "newPassword": "another long one" });
    let guesses = (0..60).map(|_| api.post("/api/v1/users/me:changePassword", Some(&owner.token), guess.clone()));
    let answers: Vec<Answer> = futures_util::future::join_all(guesses).await.into_iter().collect::<Result<_>>()?;
    assert_eq!(count(&answers), (10, 50, 60));
    Ok(())
}

/// However many sessions a user has, one statement and one event end them all.
pub async fn a_user_with_40000_sessions_can_be_disabled(world: &World) -> Result<()> {
    let (api, administrator) = (world.server.api(), world.server.administrator().await?);
    let customers = Ledger::of(world).await?.customers;
    for change in ["disabled", "password"] {
        let someone = api.someone().await?;
        let id = uuid::Uuid::parse_str(&someone.id)?;
        let expires_us = lastro_mesh::clock::now_us() + 3_600_000_000;
        let rows = if world.postgres.is_some() {
            format!(
                "INSERT INTO sessions (id, user_id, refresh_hash, create_time_us, refresh_expires_us, forget_after_s) \
                 SELECT gen_random_uuid(), '{id}', decode(md5(n::text), 'hex'), 0, {expires_us}, {} FROM generate_series(1, 40000) n",
                expires_us / 1_000_000
            )
        } else {
            format!(
                "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 40000) \
                 INSERT INTO sessions (id, user_id, refresh_hash, create_time_us, refresh_expires_us, forget_after_s) \
                 SELECT randomblob(16), x'{}', randomblob(32), 0, {expires_us}, {} FROM n",
                id.simple(),
                expires_us / 1_000_000
            )
        };
        customers.writer().execute_unprepared(&rows).await?;
        let changed = if change == "disabled" {
            let path = format!("/api/v1/users/{}", someone.id);
            api.json(Method::PATCH, &path, Some(&administrator), &[], Some(json!({ "disabled": true }))).await?
        } else {
            let body = json!({ "currentPassword": PASSWORD, "newPassword": "another one" });
            api.post("/api/v1/users/me:changePassword", Some(&someone.token), body).await?
        };
        assert_eq!(changed.status, 200, "{changed:?}");
        dies_within_3s(&api, "/api/v1/users/me", &someone.token).await?;
        dies_within_3s(&api, "/api/v1/accounts", &someone.token).await?;
        assert_eq!(refresh(&api, &someone.refresh_token).await?.status, 401);
        let events = if world.postgres.is_some() { format!("'{id}'") } else { format!("x'{}'", id.simple()) };
        #[derive(sea_orm::FromQueryResult)]
        struct Count {
            count: i64,
        }
        let sql =
            format!("SELECT count(*) AS count FROM user_events WHERE aggregate_id = {events} AND kind IN ('SESSION_REVOKED', 'TOKENS_REVOKED')");
        let told: Option<Count> = lastro_database::one(customers.reader(), &sql, []).await?;
        assert_eq!(told.map(|row| row.count), Some(1), "one event, however many sessions");
    }
    Ok(())
}

/// Sessions of a user are capped, and the oldest go.
pub async fn the_oldest_session_goes(world: &World) -> Result<()> {
    if world.postgres.is_some() {
        return Ok(()); // A server of its own, once: nothing in it depends on the database.
    }
    let folder = tempfile::tempdir()?;
    let server = lastro_tests::Server::start(&folder.path().join("data"), &["--sessions-per-user-max", "3"])?;
    let api = server.api();
    let someone = api.someone().await?;
    let mut tokens = vec![someone.token.clone()];
    for _ in 0..3 {
        let login = api.post("/api/v1/auth/login", None, json!({ "email": someone.email, "password": PASSWORD })).await?;
        tokens.push(login.text("accessToken")?);
    }
    dies_within_3s(&api, "/api/v1/users/me", &tokens[0]).await?;
    for token in &tokens[1..] {
        assert_eq!(api.get("/api/v1/users/me", Some(token)).await?.status, 200);
    }
    Ok(())
}

/// More sessions are revoked than any page holds: the newest is as dead as the first, after a restart too.
pub async fn no_revocation_is_forgotten(world: &World) -> Result<()> {
    if world.postgres.is_some() {
        return Ok(()); // It restarts: a server of its own. Replicas and pages on PostgreSQL: `edge::a_frozen_replica_learns_what_it_missed`.
    }
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let mut server = lastro_tests::Server::start(&data, &[])?;
    let api = server.api();
    let (someone, administrator) = (api.someone().await?, server.administrator().await?);
    server.terminate()?;
    {
        let customers = lastro_database::Database::open_sqlite(&data.join("customers.db")).await?;
        // Revoked before the newest, and as alive as it.
        let rows = format!(
            "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 10500) \
             INSERT INTO sessions (id, user_id, refresh_hash, create_time_us, refresh_expires_us, forget_after_s, revoked_us) \
             SELECT randomblob(16), x'{}', randomblob(32), 0, {far}, {}, 1 + n / 3 FROM n",
            uuid::Uuid::parse_str(&someone.id)?.simple(),
            lastro_mesh::clock::now_s() + 18_000,
            far = lastro_mesh::clock::now_us() + 3_600_000_000,
        );
        customers.writer().execute_unprepared(&rows).await?;
        customers.close().await;
    }
    let mut server = server.start_again(&[])?;
    let api = server.api();
    assert_eq!(api.post("/api/v1/auth/logout", Some(&administrator), json!({})).await?.status, 200);
    for _ in 0..2 {
        server.terminate()?;
        server = server.start_again(&[])?;
        let api = server.api();
        let enable = json!({ "disabled": false });
        let refused = api.json(Method::PATCH, &format!("/api/v1/users/{}", someone.id), Some(&administrator), &[], Some(enable)).await?;
        assert_eq!(refused.status, 401, "{refused:?}");
        // Transactions forgets nothing either, and learns what it has not been told.
        dies_within_3s(&api, "/api/v1/accounts", &administrator).await?;
        for file in ["transactions.db", "transactions.db-wal", "transactions.db-shm"] {
            let _ = std::fs::remove_file(data.join(file));
        }
    }
    Ok(())
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
