//! Tokens that are dead stay dead, whatever else goes on. Each journey on a server of its own, since each of them holds something up.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use lastro_proto::customers::v1::DeleteUserRequest;
use lastro_proto::customers::v1::users_service_client::UsersServiceClient;
use lastro_proto::transactions::events::v1::{AccountEvent, AccountOpened, account_event};
use lastro_tests::client::{PASSWORD, Someone};
use lastro_tests::{Api, Server};
use libtest_mimic::Trial;
use prost::Message as _;
use reqwest::Method;
use serde_json::json;
use sqlx::Connection as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::grpc::with_token;
use crate::pipeline::Rig;
use crate::{block_on, failed};

pub fn trials() -> Vec<Trial> {
    let on_postgres = |name: &str, journey: fn(Rig) -> Result<()>| {
        Trial::test(format!("revocations::postgres::{name}"), move || failed(Rig::start(true).and_then(journey)))
    };
    let embedded = |name: &str, journey: fn(Rig) -> Result<()>| {
        Trial::test(format!("revocations::embedded::{name}"), move || failed(Rig::start(false).and_then(journey)))
    };
    vec![
        on_postgres("a_foreign_transaction_keeps_no_token_alive", |rig| block_on(a_foreign_transaction_keeps_no_token_alive(&rig))),
        embedded("who_hangs_up_is_logged_out_all_the_same", |rig| block_on(who_hangs_up_is_logged_out_all_the_same(&rig))),
        embedded("no_session_of_the_old_password_survives", |rig| block_on(no_session_of_the_old_password_survives(&rig))),
        on_postgres("no_session_of_the_old_password_survives", |rig| block_on(no_session_of_the_old_password_survives(&rig))),
        embedded("a_new_address_is_no_new_count", |rig| block_on(a_new_address_is_no_new_count(&rig))),
        embedded("nobody_elsewhere_locks_an_owner_out", |rig| block_on(nobody_elsewhere_locks_an_owner_out(&rig))),
        embedded("a_new_address_locks_no_owner_out", |rig| block_on(a_new_address_locks_no_owner_out(&rig))),
        on_postgres("of_who_is_deleted_no_count_is_left", |rig| block_on(of_who_is_deleted_no_count_is_left(&rig))),
        Trial::test("revocations::postgres::waits_grow", || {
            failed(Rig::start_with(true, &["--trusted-proxies", "127.0.0.1"]).and_then(|rig| block_on(waits_grow(&rig))))
        }),
        on_postgres("many_accounts_are_closed_at_once", |rig| block_on(many_accounts_are_closed_at_once(&rig))),
        Trial::test("revocations::embedded::a_refresh_token_expires_by_itself", || failed(block_on(a_refresh_token_expires_by_itself()))),
    ]
}

async fn until_dead(api: &Api, path: &str, token: &str, within: Duration) -> Result<()> {
    let since = Instant::now();
    while api.get(path, Some(token)).await?.status != 401 {
        ensure!(since.elapsed() < within, "{path} still takes a dead token");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The event store is complete only up to the oldest transaction that is open anywhere in the cluster, and dead tokens do not wait for it.
async fn a_foreign_transaction_keeps_no_token_alive(rig: &Rig) -> Result<()> {
    let (api, administrator) = (rig.server.api(), rig.server.administrator().await?);
    let (disabled, logged_out) = (api.someone().await?, api.someone().await?);
    let url = rig.postgres.as_ref().context("on PostgreSQL")?.url();
    let mut foreign = sqlx::PgConnection::connect(&format!("{url}/postgres")).await?;
    sqlx::raw_sql("BEGIN; SELECT pg_current_xact_id()").execute(&mut foreign).await?;
    let patch = json!({ "disabled": true });
    let answer = api.json(Method::PATCH, &format!("/api/v1/users/{}", disabled.id), Some(&administrator), &[], Some(patch)).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = api.post("/api/v1/auth/logout", Some(&logged_out.token), json!({})).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    for someone in [disabled, logged_out] {
        until_dead(&api, "/api/v1/users/me", &someone.token, Duration::from_secs(1)).await?;
        until_dead(&api, "/api/v1/accounts", &someone.token, Duration::from_secs(4)).await?;
    }
    sqlx::raw_sql("ROLLBACK").execute(&mut foreign).await?;
    Ok(())
}

/// A caller that leaves while its session is being ended: either it is ended, and its token is dead, or nothing happened.
async fn who_hangs_up_is_logged_out_all_the_same(rig: &Rig) -> Result<()> {
    let api = rig.server.api();
    let mut ended = 0;
    for number in 0..40_u64 {
        let someone = api.someone().await?;
        let mut stream = TcpStream::connect(&rig.server.rest).await?;
        let request = format!(
            "POST /api/v1/auth/logout HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}",
            someone.token
        );
        stream.write_all(request.as_bytes()).await?;
        tokio::time::sleep(Duration::from_micros(200 + 150 * number)).await;
        drop(stream);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let refreshed = api.post("/api/v1/auth/refresh", None, json!({ "refreshToken": someone.refresh_token })).await?;
        if refreshed.status == 401 {
            ended += 1;
            until_dead(&api, "/api/v1/users/me", &someone.token, Duration::from_millis(100)).await?;
        }
    }
    assert!(ended > 0, "no logout came through");
    Ok(())
}

async fn log_in(api: &Api, email: &str, password: &str) -> Result<Option<String>> {
    let answer = api.post("/api/v1/auth/login", None, json!({ "email": email, "password": password })).await?;
    if answer.status == 200 { Ok(Some(answer.text("accessToken")?)) } else { Ok(None) }
}

async fn change_password(api: &Api, token: &str, from: &str, to: &str) -> Result<u16> {
    let change = json!({ "currentPassword": from, "newPassword": to });
    Ok(api.post("/api/v1/users/me:changePassword", Some(token), change).await?.status)
}

/// Somebody who knows the old password logs in again and again while its owner changes it, twice at once.
async fn no_session_of_the_old_password_survives(rig: &Rig) -> Result<()> {
    let api = rig.server.api();
    for round in 0..6 {
        let someone = api.someone().await?;
        let logins = (0..9_u64).map(|number| {
            let (api, email) = (api.clone(), someone.email.clone());
            async move {
                tokio::time::sleep(Duration::from_millis(10 * number)).await;
                log_in(&api, &email, PASSWORD).await
            }
        });
        let changes = ["the first new password", "the second new password"].map(|new| change_password(&api, &someone.token, PASSWORD, new));
        let (sessions, changed) = tokio::join!(join_all(logins), join_all(changes));
        let changed = changed.into_iter().collect::<Result<Vec<u16>>>()?;
        assert_eq!(changed.iter().filter(|status| **status == 200).count(), 1, "round {round}: {changed:?}");
        for token in sessions.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten() {
            until_dead(&api, "/api/v1/users/me", &token, Duration::from_secs(2)).await?;
        }
    }
    Ok(())
}

/// Whoever has a stolen token changes the address to try the password more often.
async fn a_new_address_is_no_new_count(rig: &Rig) -> Result<()> {
    let api = rig.server.api();
    let someone = api.someone().await?;
    let wrong = async |_: usize| change_password(&api, &someone.token, "wrong", "another password").await;
    for number in 0..10 {
        assert_eq!(wrong(number).await?, 401);
    }
    assert_eq!(wrong(10).await?, 429);
    let email = format!("new-{}", someone.email);
    let patch = json!({ "email": email });
    let patched = api.json(Method::PATCH, &format!("/api/v1/users/{}", someone.id), Some(&someone.token), &[], Some(patch)).await?;
    assert_eq!(patched.status, 200, "{patched:?}");
    assert_eq!(wrong(11).await?, 429, "of changePassword");
    // Login counts by address, and its failures go along.
    let other = api.someone().await?;
    for number in 0..10 {
        let failed = api.post("/api/v1/auth/login", None, json!({ "email": other.email, "password": "wrong" })).await?;
        assert_eq!(failed.status, 401, "{number}: {failed:?}");
    }
    let patch = json!({ "email": format!("new-{}", other.email) });
    let patched = api.json(Method::PATCH, &format!("/api/v1/users/{}", other.id), Some(&other.token), &[], Some(patch)).await?;
    assert_eq!(patched.status, 200, "{patched:?}");
    let failed = api.post("/api/v1/auth/login", None, json!({ "email": format!("new-{}", other.email), "password": "wrong" })).await?;
    assert_eq!(failed.status, 429, "{failed:?}");
    Ok(())
}

fn from(address: [u8; 4], rig: &Rig) -> Result<Api> {
    let client = reqwest::Client::builder().local_address(std::net::IpAddr::from(address)).build()?;
    Ok(Api::through(client, &format!("http://{}", rig.server.rest)))
}

/// Anybody fails as often as it likes: who logged in before gets in from there, also the administrator; from elsewhere even the right password waits.
async fn nobody_elsewhere_locks_an_owner_out(rig: &Rig) -> Result<()> {
    let (api, attacker) = (rig.server.api(), from([127, 0, 0, 2], rig)?);
    let someone = api.someone().await?;
    rig.server.administrator().await?;
    let administrator: serde_json::Value = serde_json::from_slice(&std::fs::read(rig.server.data.join("admin.json"))?)?;
    for email in [someone.email.as_str(), administrator["email"].as_str().context("an address")?] {
        let mut statuses = Vec::new();
        for _ in 0..12 {
            statuses.push(attacker.post("/api/v1/auth/login", None, json!({ "email": email, "password": "wrong" })).await?.status);
        }
        assert_eq!((&statuses[..10], &statuses[10..]), (&[401; 10][..], &[429; 2][..]), "{email}");
    }
    let right = json!({ "email": someone.email, "password": PASSWORD });
    assert_eq!(attacker.post("/api/v1/auth/login", None, right.clone()).await?.status, 429, "from elsewhere");
    assert_eq!(api.post("/api/v1/auth/login", None, right).await?.status, 200, "from where it was before");
    rig.server.administrator().await?;
    // Where it is known it has a count of its own.
    for number in 0..11 {
        let status = api.post("/api/v1/auth/login", None, json!({ "email": someone.email, "password": "wrong" })).await?.status;
        assert_eq!(status, if number < 10 { 401 } else { 429 });
    }
    Ok(())
}

/// Others fail at an account whose owner then gives it another e-mail address: the owner gets in from where it was, and they do not.
async fn a_new_address_locks_no_owner_out(rig: &Rig) -> Result<()> {
    let (api, attacker) = (rig.server.api(), from([127, 0, 0, 2], rig)?);
    let someone = api.someone().await?;
    for _ in 0..10 {
        attacker.post("/api/v1/auth/login", None, json!({ "email": someone.email, "password": "wrong" })).await?;
    }
    let email = format!("new-{}", someone.email);
    let patched =
        api.json(Method::PATCH, &format!("/api/v1/users/{}", someone.id), Some(&someone.token), &[], Some(json!({ "email": email }))).await?;
    assert_eq!(patched.status, 200, "{patched:?}");
    let right = json!({ "email": email, "password": PASSWORD });
    assert_eq!(attacker.post("/api/v1/auth/login", None, right.clone()).await?.status, 429, "from elsewhere");
    assert_eq!(api.post("/api/v1/auth/login", None, right).await?.status, 200, "from where it was before");
    Ok(())
}

/// Counts of failures and known addresses of whoever is deleted go too, wherever they were counted.
async fn of_who_is_deleted_no_count_is_left(rig: &Rig) -> Result<()> {
    let (api, mut hand) = (rig.server.api(), rig.customers_session().await?);
    let count = "SELECT (SELECT count(*) FROM login_failures) + (SELECT count(*) FROM known_addresses)";
    let before: i64 = sqlx::query_scalar(count).fetch_one(&mut hand).await?;
    let someone = api.someone().await?;
    assert_eq!(change_password(&api, &someone.token, PASSWORD, "another password").await?, 200);
    let login = async |password: &str| api.post("/api/v1/auth/login", None, json!({ "email": someone.email, "password": password })).await;
    let token = login("another password").await?.text("accessToken")?;
    // From a known address, from elsewhere, and of a change of the password.
    assert_eq!(login("wrong").await?.status, 401);
    let elsewhere = Some(json!({ "email": someone.email, "password": "wrong" }));
    from([127, 0, 0, 2], rig)?.json(Method::POST, "/api/v1/auth/login", None, &[], elsewhere).await?;
    assert_eq!(change_password(&api, &token, "wrong", "yet another one").await?, 401);
    let counted: i64 = sqlx::query_scalar(count).fetch_one(&mut hand).await?;
    assert_eq!(counted - before, 5);
    let deleted = api.json(Method::DELETE, &format!("/api/v1/users/{}", someone.id), Some(&token), &[], None).await?;
    assert_eq!(deleted.status, 204, "{deleted:?}");
    let left: i64 = sqlx::query_scalar(count).fetch_one(&mut hand).await?;
    assert_eq!(left, before);
    Ok(())
}

/// After ten failures one attempt after a minute, one after two, and so on. The attempts come through a proxy, each from an address of its own.
async fn waits_grow(rig: &Rig) -> Result<()> {
    let api = rig.server.api();
    let (email, mut hand) = (format!("nobody-{}@example.com", uuid::Uuid::new_v4().simple()), rig.customers_session().await?);
    let mut addresses = 1..;
    let mut fail = async || {
        let address = format!("198.51.100.{}", addresses.next().unwrap_or_default());
        let body = Some(json!({ "email": email, "password": "wrong" }));
        api.json(Method::POST, "/api/v1/auth/login", None, &[("x-forwarded-for", &address)], body).await
    };
    for _ in 0..10 {
        assert_eq!(fail().await?.status, 401);
    }
    for minutes in [1_i64, 2, 4] {
        let waits = fail().await?;
        let retry_after: i64 = waits.header("retry-after").parse()?;
        assert!(waits.status == 429 && (minutes * 60 - 5..=minutes * 60).contains(&retry_after), "{waits:?}");
        sqlx::query("UPDATE login_failures SET last_us = last_us - $1").bind((minutes * 60 - 10) * 1_000_000).execute(&mut hand).await?;
        assert_eq!(fail().await?.status, 429, "ten seconds too early");
        sqlx::query("UPDATE login_failures SET last_us = last_us - $1").bind(11_000_000_i64).execute(&mut hand).await?;
        assert_eq!(fail().await?.status, 401, "one attempt");
    }
    Ok(())
}

/// A user with more accounts than a statement can have parameters is deleted within the time of a call.
async fn many_accounts_are_closed_at_once(rig: &Rig) -> Result<()> {
    let api = rig.server.api();
    let Someone { id, token, .. } = api.someone().await?;
    let mut hand = rig.session().await?;
    let opened = AccountOpened { owner_id: id.clone(), currency_code: "BRL".to_owned(), system: false };
    let opened = AccountEvent { event: Some(account_event::Event::Opened(opened)) }.encode_to_vec();
    // With the events that tell of them: whoever reads those learns of the accounts before they are closed.
    let many = "WITH made AS (INSERT INTO accounts (id, owner_id, currency_code, display_name, system, create_time_us) \
                SELECT gen_random_uuid(), $1, 'BRL', '', false, 0 FROM generate_series(1, 66000) RETURNING id), \
                told AS (INSERT INTO account_events (id, aggregate_id, version, kind, payload, digest, correlation_id, recorded_us, hash) \
                SELECT gen_random_uuid(), id, 1, 'OPENED', $2, sha256($2), '', 0, sha256($2) FROM made) \
                INSERT INTO balances (account_id, posted, held, version, system, closed) SELECT id, 0, 0, 0, false, false FROM made";
    sqlx::query(many).bind(uuid::Uuid::parse_str(&id)?).bind(opened).execute(&mut hand).await?;
    sqlx::raw_sql("ANALYZE").execute(&mut hand).await?;
    // Over gRPC, where the caller says for how long it waits: so much takes a debug build a while.
    let mut request = with_token(&token, DeleteUserRequest { id: id.clone() })?;
    request.set_timeout(Duration::from_secs(30));
    let (begun, channel) = (Instant::now(), rig.server.front().channel().await?);
    UsersServiceClient::new(channel).delete_user(request).await?;
    eprintln!("66,000 accounts were closed within {:.1?}", begun.elapsed());
    let open: i64 = sqlx::query_scalar("SELECT count(*) FROM balances WHERE NOT closed AND NOT system").fetch_one(&mut hand).await?;
    assert_eq!(open, 0);
    Ok(())
}

/// A token that was given and never traded: the session lives on by another one.
async fn a_refresh_token_expires_by_itself() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("data"), &["--refresh-token-ttl", "3"])?;
    let api = server.api();
    let someone = api.someone().await?;
    let trade = async |token: String| api.post("/api/v1/auth/refresh", None, json!({ "refreshToken": token })).await;
    let never_traded = trade(someone.refresh_token.clone()).await?.text("refreshToken")?;
    let mut lives = trade(someone.refresh_token).await?.text("refreshToken")?;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        lives = trade(lives).await?.text("refreshToken")?;
    }
    assert_eq!(trade(never_traded).await?.status, 401);
    assert_eq!(trade(lives).await?.status, 200, "the session lives");
    Ok(())
}
