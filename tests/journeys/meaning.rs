//! Every request has one meaning. Goes through every route and every method of the contracts by machine, and tries on each what would give it a
//! second one; a new method is in it by itself. What is tried is refused by the rule alone, so that no request has to be a good one otherwise.

use anyhow::{Context as _, Result};
use lastro_mesh::identity::Access;
use lastro_proto::methods::{METHODS, Method};
use lastro_tests::{Answer, Api};
use reqwest::Method as Verb;
use serde_json::{Value, json};

use crate::World;

/// The routes of REST.
fn routes() -> impl Iterator<Item = &'static Method> {
    METHODS.iter().filter(|method| !method.http_path.is_empty())
}

/// A route's path with some id in it.
fn path_of(method: &Method) -> String {
    method.http_path.replace("{id}", "0190b3a2-7c1e-7d5e-9a3b-2f6c1d0e4b5a")
}

/// The proto's name of a field: `externalId` is `external_id`.
fn snake_case(name: &str) -> String {
    name.chars().fold(
        String::new(),
        |text, one| if one.is_ascii_uppercase() { format!("{text}_{}", one.to_ascii_lowercase()) } else { format!("{text}{one}") },
    )
}

/// What the OpenAPI document says of the fields of a request's body: the path to each, and whether it is a map.
fn fields(document: &Value, schema: &Value, within: &[String], found: &mut Vec<(Vec<String>, bool)>) {
    let schema = schema["$ref"].as_str().and_then(|reference| document.pointer(&reference[1..])).unwrap_or(schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = [within, std::slice::from_ref(name)].concat();
        found.push((path.clone(), property["additionalProperties"].is_object()));
        fields(document, property, &path, found);
    }
}

async fn body_fields(api: &Api, method: &Method) -> Result<Vec<(Vec<String>, bool)>> {
    let document = api.get("/openapi.json", None).await?.body;
    let schema = &document["paths"][method.http_path][method.http_method.to_lowercase()]["requestBody"]["content"]["application/json"]["schema"];
    let mut found = Vec::new();
    fields(&document, schema, &[], &mut found);
    Ok(found)
}

/// `{"a":{"b":INNER}}` for the path a, b.
fn nested(path: &[String], inner: &str) -> String {
    path.iter().rev().fold(inner.to_owned(), |inner, name| format!("{{{name:?}:{inner}}}"))
}

struct Try<'a> {
    api: &'a Api,
    method: &'a Method,
    token: &'a str,
}

impl Try<'_> {
    async fn send(&self, query: &str, headers: &[(&str, &str)], body: Option<String>) -> Result<Answer> {
        let bearer = format!("Bearer {}", self.token);
        let mut all = headers.to_vec();
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            all.push(("authorization", &bearer));
        }
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            all.push(("content-type", "application/json"));
        }
        let path = path_of(self.method);
        let target = if query.is_empty() { path } else { format!("{path}?{query}") };
        self.api.send(self.method.http_method.parse::<Verb>()?, &target, &all, body).await
    }

    fn check(&self, what: &str, answer: &Answer, field: &str) {
        assert_eq!(answer.status, 400, "{} {}: {what}: {answer:?}", self.method.http_method, self.method.http_path);
        assert_eq!(answer.body["errors"][0]["field"], json!(field), "{} {}: {what}: {answer:?}", self.method.http_method, self.method.http_path);
        let private = answer.headers.keys().find(|name| name.as_str().starts_with("x-lastro-") || name.as_str().starts_with("x-accel-"));
        assert!(private.is_none(), "{what}: {private:?}");
    }

    async fn refused(&self, what: &str, query: &str, headers: &[(&str, &str)], body: Option<String>, field: &str) -> Result<()> {
        let answer = self.send(query, headers, body).await?;
        self.check(what, &answer, field);
        Ok(())
    }
}

pub async fn every_route_has_one_channel(world: &World) -> Result<()> {
    let (api, token) = (world.server.api(), world.server.administrator().await?);
    let mut tried = 0;
    for method in routes() {
        let attempt = Try { api: &api, method, token: &token };
        let empty = || method.takes_body.then(|| "{}".to_owned());
        attempt.refused("an unknown parameter", "nothingOfTheKind=1", &[], empty(), "nothingOfTheKind").await?;
        attempt
            .refused("a parameter without a name", "=1", &[], empty(), "")
            .await
            .or_else(|error| if method.takes_body { Err(error) } else { Ok(()) })?;
        for name in method.path_fields {
            attempt.refused("the path's field in the query", &format!("{name}=x"), &[], empty(), name).await?;
            if method.takes_body {
                let other = json!({ *name: uuid::Uuid::now_v7() }).to_string();
                attempt.refused("another id in the body", "", &[], Some(other), name).await?;
            }
        }
        for parameter in method.query {
            for (first, second) in [(parameter.name, parameter.name), (parameter.name, parameter.proto_name), (parameter.proto_name, parameter.name)]
            {
                let query = format!("{first}=1&{second}=2");
                attempt.refused("a parameter twice", &query, &[], None, parameter.name).await?;
            }
            let escaped = format!("{}=1&%{:02X}{}=1", parameter.name, parameter.name.as_bytes()[0], &parameter.name[1..]);
            attempt.refused("a parameter twice, once escaped", &escaped, &[], None, parameter.name).await?;
        }
        let other = "Bearer another";
        let bearer = format!("Bearer {token}");
        let two = attempt.send("", &[("authorization", &bearer), ("authorization", other)], empty()).await?;
        if two.header("server") == "nginx" && two.body["errors"] == json!([]) {
            // nginx refuses it itself, and does not say which header it was.
            assert_eq!((two.status, two.header("content-type")), (400, "application/problem+json"), "{two:?}");
        } else {
            attempt.check("two tokens", &two, "Authorization");
        }
        attempt.refused("two keys", "", &[("idempotency-key", "a"), ("idempotency-key", "b")], empty(), "Idempotency-Key").await?;
        attempt.refused("two types", "", &[("content-type", "application/json"), ("content-type", "text/plain")], empty(), "Content-Type").await?;
        if method.takes_body {
            for (path, is_map) in body_fields(&api, method).await? {
                let (dotted, name) = (path.join("."), path.last().context("a name")?);
                attempt.refused("a field in the query", &format!("{dotted}=1"), &[], empty(), &dotted).await?;
                let snake: Vec<String> = path.iter().map(|name| snake_case(name)).collect();
                attempt
                    .refused("a field in the query", &format!("{}=1", snake.join(".")), &[], empty(), if path.len() == 1 { name } else { &dotted })
                    .await?;
                let within = &path[..path.len() - 1];
                let twice = nested(within, &format!("{{{name:?}:\"a\",{name:?}:\"a\"}}"));
                attempt.refused("a field twice", "", &[], Some(twice), &dotted).await?;
                if snake_case(name) != *name {
                    let both = nested(within, &format!("{{{name:?}:\"a\",{:?}:\"a\"}}", snake_case(name)));
                    attempt.refused("a field under both of its names", "", &[], Some(both), &dotted).await?;
                }
                if is_map {
                    let twice = nested(&path, "{\"k\":\"a\",\"l\":\"b\",\"k\":\"a\"}");
                    attempt.refused("a key of a map twice", "", &[], Some(twice), &format!("{dotted}.k")).await?;
                }
                let unknown = nested(within, "{\"nothingOfTheKind\":null}");
                let named = [within, &["nothingOfTheKind".to_owned()]].concat().join(".");
                attempt.refused("an unknown field", "", &[], Some(unknown), &named).await?;
            }
        } else {
            let answer = attempt.send("", &[], Some("{\"x\":1}".to_owned())).await?;
            assert_eq!((answer.status, answer.text("reason")?.as_str()), (400, "MALFORMED_JSON"), "{}", method.http_path);
        }
        tried += 1;
    }
    assert_eq!(tried, routes().count());
    Ok(())
}

/// The same over gRPC: what stands beside the message has one meaning too.
pub async fn every_method_has_one_caller_and_one_deadline(world: &World) -> Result<()> {
    let token = world.server.administrator().await?;
    let mut client = reqwest::Client::builder().http2_prior_knowledge();
    if let Some(authority) = &world.server.authority {
        client = client.tls_certs_only([reqwest::Certificate::from_pem(&std::fs::read(authority)?)?]);
    }
    let client = client.build()?;
    let call = async |method: &Method, headers: &[(&str, &str)]| {
        let mut request =
            client.post(format!("{}{}", world.server.grpc, method.path)).header("content-type", "application/grpc").header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.body(vec![0; 5]).send().await?;
        let private = answer.headers().keys().find(|name| name.as_str().starts_with("x-lastro-")).cloned();
        anyhow::ensure!(private.is_none(), "{}: {private:?}", method.path);
        anyhow::Ok(answer.headers().get("grpc-status").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned())
    };
    for method in METHODS.iter().filter(|method| !method.service.starts_with("lastro.internal.")) {
        let bearer = format!("Bearer {token}");
        if method.access != Access::Public {
            let two = call(method, &[("authorization", &bearer), ("authorization", "Bearer another")]).await?;
            assert_eq!(two, "3", "{}: two tokens", method.path);
        }
        for timeouts in [&[("grpc-timeout", "soon")][..], &[("grpc-timeout", "5S"), ("grpc-timeout", "6S")], &[("grpc-timeout", "123456789S")]] {
            assert_eq!(call(method, timeouts).await?, "3", "{}: {timeouts:?}", method.path);
        }
        // What parts of Lastro say to each other is not believed, whoever says it.
        call(method, &[("x-lastro-heartbeat", "1"), ("x-lastro-patience", "1"), ("x-lastro-dependency", "customers")]).await?;
    }
    Ok(())
}

/// A second channel used to move another amount, and a header of ours to store nothing.
pub async fn what_stands_beside_a_transfer_changes_nothing(world: &World) -> Result<()> {
    let (api, administrator) = (world.server.api(), world.server.administrator().await?);
    let someone = api.someone().await?;
    let (from, to) = (api.account(&someone.token, "BRL").await?, api.account(&someone.token, "BRL").await?);
    api.deposit(&administrator, &from, "BRL", "100.00").await?;
    let send = async |query: &str, headers: &[(&str, &str)], key: &str| {
        let headers = [headers, &[("prefer", "wait=10")]].concat();
        api.json(Verb::POST, &format!("/api/v1/transactions{query}"), Some(&someone.token), &headers, Some(Api::transfer(key, &from, &to, "1.00")))
            .await
    };
    for query in ["?amount.amount=7.77", "?externalId=other", "?amount%2Eamount=7.77", "?destination_account_id=x", "?wait=1s", "?hold=true"] {
        assert_eq!(send(query, &[], "second").await?.status, 400, "{query}");
    }
    assert_eq!(api.posted(&someone.token, &to).await?, "0.00");
    for (number, headers) in [
        &[("x-lastro-patience", "1")][..],
        &[("x-lastro-patience", "1"), ("x-lastro-heartbeat", "1"), ("x-lastro-status", "500"), ("x-lastro-client-address", "203.0.113.7")],
    ]
    .into_iter()
    .enumerate()
    {
        let answer = send("", headers, &format!("headers {number}")).await?;
        assert_eq!((answer.status, answer.text("state")?.as_str()), (201, "COMPLETED"), "{answer:?}");
        assert!(answer.headers.keys().all(|name| !name.as_str().starts_with("x-lastro-") && !name.as_str().starts_with("x-accel-")), "{answer:?}");
    }
    assert_eq!(api.posted(&someone.token, &to).await?, "2.00");
    // A login without a body would leave the password in every log on the way.
    let login = api.send(Verb::POST, &format!("/api/v1/auth/login?email={}&password=x", someone.email), &[], None).await?;
    assert_eq!(login.status, 400, "{login:?}");
    // A long address costs no more than a short one.
    let long = (0..9000).map(|number| format!("p{number}=1")).collect::<Vec<_>>().join("&");
    let started = std::time::Instant::now();
    for _ in 0..20 {
        let answer = api.get(&format!("/api/v1/accounts?{}", &long[..60_000]), Some(&someone.token)).await;
        assert!(answer.map_or(true, |answer| answer.status >= 400));
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(4), "{:?}", started.elapsed());
    Ok(())
}

/// Whatever is created is created once a key.
pub async fn a_key_is_honoured_wherever_something_is_created(world: &World) -> Result<()> {
    let api = world.server.api();
    let document = api.get("/openapi.json", None).await?.body;
    let mut creating = Vec::new();
    for method in routes() {
        let operation = &document["paths"][method.http_path][method.http_method.to_lowercase()];
        if operation["responses"]["201"].is_object() {
            let documented = operation["parameters"].as_array().into_iter().flatten().any(|one| one["name"] == "Idempotency-Key");
            assert!(documented, "{} creates and takes no key", method.path);
            creating.push(method.name);
        }
    }
    // Users and transactions have journeys of their own. Say here where a new one is tried.
    assert_eq!(creating, ["CreateUser", "CreateAccount", "CreateTransaction"]);

    let (someone, other) = (api.someone().await?, api.someone().await?);
    let open = async |token: &str, key: &str, body: Value| {
        api.json(Verb::POST, "/api/v1/accounts", Some(token), &[("idempotency-key", key)], Some(body)).await
    };
    let brl = || json!({ "currencyCode": "BRL", "displayName": "one" });
    let at_once: Vec<Answer> =
        futures_util::future::join_all((0..10).map(|_| open(&someone.token, "k", brl()))).await.into_iter().collect::<Result<_>>()?;
    let ids: std::collections::BTreeSet<String> = at_once.iter().map(|answer| answer.text("id")).collect::<Result<_>>()?;
    assert_eq!(ids.len(), 1);
    assert_eq!(at_once.iter().filter(|answer| answer.status == 201).count(), 1);
    assert!(at_once.iter().all(|answer| answer.status == 201 || (answer.status == 200 && answer.body["replayed"] == json!(true))), "{at_once:?}");
    for other_body in [json!({ "currencyCode": "USD", "displayName": "one" }), json!({ "currencyCode": "BRL", "displayName": "two" })] {
        let refused = open(&someone.token, "k", other_body).await?;
        assert_eq!((refused.status, refused.text("reason")?.as_str()), (422, "IDEMPOTENCY_KEY_REUSED"));
    }
    assert_eq!(open(&other.token, "k", brl()).await?.status, 201, "somebody else's key is another one");
    let in_body = json!({ "currencyCode": "BRL", "displayName": "one", "externalId": "k" });
    assert_eq!(api.post("/api/v1/accounts", Some(&someone.token), in_body.clone()).await?.status, 200);
    assert_eq!(open(&someone.token, "different", in_body).await?.text("reason")?, "IDEMPOTENCY_KEY_CONFLICT");
    assert_eq!(api.get("/api/v1/accounts", Some(&someone.token)).await?.body["accounts"].as_array().map(Vec::len), Some(1));
    Ok(())
}

/// A page ends before its bytes are too many, and paging on comes to the end.
pub async fn pages_end_by_bytes(world: &World) -> Result<()> {
    let (api, administrator) = (world.server.api(), world.server.administrator().await?);
    let someone = api.someone().await?;
    let account = api.account(&someone.token, "BRL").await?;
    api.deposit(&administrator, &account, "BRL", "1000.00").await?;
    let too_much: serde_json::Map<String, Value> = (0..41).map(|number| (format!("k{number:02}"), json!("é".repeat(200)))).collect();
    let full: serde_json::Map<String, Value> = too_much.iter().take(40).map(|(key, value)| (key.clone(), value.clone())).collect();
    let withdrawal = |key: String, metadata: &serde_json::Map<String, Value>| json!({ "externalId": key, "type": "WITHDRAWAL", "sourceAccountId": account, "amount": { "currencyCode": "BRL", "amount": "0.01" }, "metadata": metadata });
    let refused = api.transact(&someone.token, withdrawal("too much".to_owned(), &too_much)).await?;
    assert_eq!((refused.status, refused.body["errors"][0]["field"].clone()), (400, json!("metadata")), "{refused:?}");
    let made = futures_util::future::join_all((0..100).map(|number| api.transact(&someone.token, withdrawal(format!("w{number}"), &full)))).await;
    for answer in made {
        let answer = answer?;
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    let (mut seen, mut token) = (0, String::new());
    loop {
        let page = api.get(&format!("/api/v1/transactions?pageSize=1000&pageToken={token}"), Some(&someone.token)).await?;
        assert_eq!(page.status, 200, "{page:?}");
        let items = page.body["transactions"].as_array().context("a list")?.len();
        assert!(items > 0 && items < 101, "{items}");
        seen += items;
        token = page.text("nextPageToken")?;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, 101);
    Ok(())
}
