//! What only REST has: statuses, problems, the edge's limits, OpenAPI.

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::World;

pub async fn problems_and_statuses(world: &World) -> Result<()> {
    let api = world.server.api();
    let someone = api.someone().await?;
    let nothing = api.get("/api/v1/nothing", None).await?;
    assert_eq!((nothing.status, nothing.header("content-type")), (404, "application/problem+json"));
    for field in ["type", "title", "status", "detail", "reason", "correlationId", "errors"] {
        assert!(nothing.body.get(field).is_some(), "{field} in {nothing:?}");
    }
    // What is escaped without need is the same path, and what is escaped in a query the same value.
    for (path, status) in
        [("/%61pi/v1/%75sers/%6d%65", 200), ("/api/v1/transactions?page%53ize=%31%30", 200), ("/api/v1/users/%zz", 400), ("/api/v1%2Fusers/me", 404)]
    {
        let answer = api.get(path, Some(&someone.token)).await?;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
    }
    let method = api.send(Method::PUT, "/api/v1/users", &[], None).await?;
    assert_eq!((method.status, method.header("allow")), (405, "GET, HEAD, POST"));
    let media = api.send(Method::POST, "/api/v1/users", &[("content-type", "text/plain")], Some("x".to_owned())).await?;
    assert_eq!((media.status, media.text("reason")?.as_str()), (415, "UNSUPPORTED_MEDIA_TYPE"));
    for body in ["{", "[]", "5", "{\"name\":", "\u{feff}{}", "{\"name\":\"a\"}x"] {
        let malformed = api.send(Method::POST, "/api/v1/users", &[("content-type", "application/json")], Some(body.to_owned())).await?;
        assert_eq!((malformed.status, malformed.header("content-type")), (400, "application/problem+json"), "{body}: {malformed:?}");
    }
    for (body, field) in [
        (r#"{"effectiveTime":"2024-01-01"}"#, "effectiveTime"),
        (r#"{"externalId":"a","amount":{"amount":"1","x":1}}"#, "amount.x"),
        (r#"{"type":"DEPOSIT","amount":{"amount":"1"},"type":"WITHDRAWAL"}"#, "type"),
        (r#"{"amount":5}"#, "amount"),
        (r#"{"metadata":{"a":5}}"#, "metadata.a"),
    ] {
        let headers = [("content-type", "application/json"), ("authorization", &format!("Bearer {}", someone.token))];
        let malformed = api.send(Method::POST, "/api/v1/transactions", &headers, Some(body.to_owned())).await?;
        assert_eq!((malformed.status, &malformed.body["errors"][0]["field"]), (400, &json!(field)), "{malformed:?}");
    }
    for (query, field) in [
        ("pageSize=abc", "pageSize"),
        ("pageSize=1.0", "pageSize"),
        ("pageSize=99999999999", "pageSize"),
        ("pageSize=1&pageSize=2", "pageSize"),
        ("x=1", "x"),
    ] {
        let malformed = api.get(&format!("/api/v1/accounts?{query}"), Some(&someone.token)).await?;
        assert_eq!((malformed.status, &malformed.body["errors"][0]["field"]), (400, &json!(field)), "{malformed:?}");
    }
    let charset = api.send(Method::POST, "/api/v1/users", &[("content-type", "application/json; charset=utf-8")], Some("{}".to_owned())).await?;
    assert_eq!(charset.text("reason")?, "INVALID_ARGUMENT");

    let head = api.send(Method::HEAD, "/api/v1/users/me", &[("authorization", &format!("Bearer {}", someone.token))], None).await?;
    assert_eq!((head.status, head.body), (200, Value::Null));

    // The correlation id is the caller's if it may be, and in the answer and the problem alike.
    for (sent, kept) in [("abc-1._Z", true), ("has space", false), ("", false)] {
        let answer = api.send(Method::GET, "/api/v1/users/me", &[("x-correlation-id", sent)], None).await?;
        let id = answer.header("x-correlation-id").to_owned();
        assert_eq!((id == sent, !id.is_empty()), (kept, true), "{sent:?} {id:?}");
        assert_eq!(answer.text("correlationId")?, id);
    }
    for (header, value) in
        [("x-content-type-options", "nosniff"), ("x-frame-options", "DENY"), ("referrer-policy", "no-referrer"), ("cache-control", "no-store")]
    {
        assert_eq!(nothing.header(header), value);
    }
    assert!(nothing.header("strict-transport-security").contains("max-age="));
    assert!(nothing.header("content-security-policy").contains("default-src 'none'"));
    Ok(())
}

pub async fn limits_of_the_edge(world: &World) -> Result<()> {
    let api = world.server.api();
    let json = [("content-type", "application/json")];
    let large = json!({ "name": "n".repeat(1 << 20), "email": "a@example.com", "password": "p" }).to_string();
    let too_large = api.send(Method::POST, "/api/v1/users", &json, Some(large)).await?;
    assert_eq!((too_large.status, too_large.text("reason")?.as_str()), (413, "BODY_TOO_LARGE"));

    // Limits are per address; a server of its own, so that nobody else meets them.
    let folder = tempfile::tempdir()?;
    let server = lastro_tests::Server::start(&folder.path().join("data"), &["--rate-limit-per-address", "5"])?;
    let mut statuses = Vec::new();
    for _ in 0..12 {
        statuses.push(server.api().get("/api/v1/users/me", None).await?);
    }
    let refused = statuses.iter().find(|answer| answer.status == 429).expect("more than five in a second");
    assert_eq!((refused.text("reason")?.as_str(), refused.header("retry-after")), ("RATE_LIMITED", "1"));
    assert_eq!(statuses[0].status, 401);

    // A body that does not come is not waited for. Once is enough: it takes ten seconds.
    if world.postgres.is_none() {
        let mut stream = tokio::net::TcpStream::connect(world.server.rest.trim_start_matches("http://")).await?;
        stream.write_all(b"POST /api/v1/users HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{").await?;
        let mut answer = vec![0; 4096];
        let read = tokio::time::timeout(std::time::Duration::from_secs(15), stream.read(&mut answer)).await??;
        assert!(answer[..read].starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer[..read]));
    }
    Ok(())
}

/// Both databases take the same texts, and JSON's null is a field that is not given.
pub async fn texts_and_nulls(world: &World) -> Result<()> {
    let api = world.server.api();
    let someone = api.someone().await?;
    let account = api.account(&someone.token, "BRL").await?;
    for (path, body, field) in [
        ("/api/v1/auth/login", json!({ "email": "a\0b", "password": "x" }), "email"),
        ("/api/v1/users", json!({ "name": "a\0b", "email": "a@example.com", "password": "long enough" }), "name"),
        ("/api/v1/accounts", json!({ "currencyCode": "BRL", "displayName": "\0" }), "displayName"),
        (
            "/api/v1/transactions",
            json!({ "externalId": "a\0", "type": "WITHDRAWAL", "sourceAccountId": account, "amount": { "currencyCode": "BRL", "amount": "1" } }),
            "externalId",
        ),
        (
            "/api/v1/transactions",
            json!({ "externalId": "a", "type": "WITHDRAWAL", "sourceAccountId": account, "amount": { "currencyCode": "BRL", "amount": "1" }, "metadata": { "k": "\0" } }),
            "metadata",
        ),
        (
            "/api/v1/transactions",
            json!({ "externalId": "a", "type": "WITHDRAWAL", "sourceAccountId": account, "amount": { "currencyCode": "B\0", "amount": "1" } }),
            "amount.currencyCode",
        ),
    ] {
        let refused = api.post(path, Some(&someone.token), body).await?;
        assert_eq!(refused.status, 400, "{refused:?}");
        assert!(refused.body["errors"].as_array().expect("a list").iter().any(|error| error["field"] == field), "{field}: {refused:?}");
    }
    let nulls = json!({
        "externalId": "nulls", "type": "WITHDRAWAL", "sourceAccountId": account, "destinationAccountId": null, "description": null,
        "amount": { "currencyCode": "BRL", "amount": "1" }, "metadata": null, "effectiveTime": null, "wait": null, "hold": null,
    });
    let accepted = api.transact(&someone.token, nulls).await?;
    assert_eq!((accepted.status, accepted.text("reason")?.as_str()), (201, "INSUFFICIENT_FUNDS"), "{accepted:?}");
    let missing = api.post("/api/v1/users", None, json!({ "name": null, "email": "a@example.com", "password": "long enough" })).await?;
    assert_eq!((missing.status, missing.body["errors"][0]["field"].clone()), (400, json!("name")), "{missing:?}");
    let packed =
        api.send(Method::POST, "/api/v1/users", &[("content-type", "application/json"), ("content-encoding", "gzip")], Some("x".to_owned())).await?;
    assert_eq!(packed.status, 415, "{packed:?}");
    Ok(())
}

pub async fn cross_origin_requests(world: &World) -> Result<()> {
    let stranger = world.server.api().send(Method::GET, "/livez", &[("origin", "https://evil.example")], None).await?;
    assert_eq!(stranger.header("access-control-allow-origin"), "");
    let folder = tempfile::tempdir()?;
    let server = lastro_tests::Server::start(&folder.path().join("data"), &["--cors-origins", "https://app.example,https://other.example"])?;
    let preflight =
        [("origin", "https://app.example"), ("access-control-request-method", "POST"), ("access-control-request-headers", "authorization")];
    let allowed = server.api().send(Method::OPTIONS, "/api/v1/transactions", &preflight, None).await?;
    assert_eq!((allowed.status, allowed.header("access-control-allow-origin")), (204, "https://app.example"));
    assert!(
        allowed.header("access-control-allow-headers").contains("idempotency-key") && allowed.header("access-control-allow-methods").contains("POST")
    );
    let refused = server.api().send(Method::OPTIONS, "/api/v1/transactions", &[("origin", "https://evil.example")], None).await?;
    assert_eq!((refused.header("access-control-allow-origin"), refused.header("access-control-allow-methods")), ("", ""));
    Ok(())
}

pub async fn openapi_and_reference(world: &World) -> Result<()> {
    let api = world.server.api();
    let document = api.get("/openapi.json", None).await?;
    assert_eq!((document.status, document.header("content-type")), (200, "application/json"));
    assert!(document.text("openapi")?.starts_with("3.1"));
    let page = api.get("/docs/", None).await?;
    assert_eq!(page.status, 200);
    let page = page.body.as_str().expect("a page").to_owned();
    for outside in ["http://", "https://", "//cdn"] {
        assert!(!page.contains(&format!("src=\"{outside}")) && !page.contains(&format!("href=\"{outside}")), "nothing comes from outside");
    }
    assert_eq!(api.get("/readyz", None).await?.body["status"], "ready");
    assert_eq!(api.get("/livez", None).await?.status, 200);
    let ops = lastro_tests::Api::new(&format!("http://{}", world.server.ops));
    let metrics = ops.get("/metrics", None).await?.body.as_str().expect("text").to_owned();
    assert!(metrics.contains("lastro_http_total") && metrics.contains("lastro_breaker_state"), "{metrics}");
    assert_eq!((ops.get("/livez", None).await?.status, ops.get("/readyz", None).await?.status), (200, 200));
    Ok(())
}
