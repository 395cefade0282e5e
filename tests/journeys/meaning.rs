//! Every request has one meaning. Goes through every route and every method of the contracts by machine, and tries on each what would give it a
//! second one; a new method is in it by itself. What is tried is refused by the rule alone, so that no request has to be a good one otherwise.

use anyhow::{Context as _, Result};
use lastro_mesh::identity::Access;
use lastro_proto::customers::v1::UpdateUserRequest;
use lastro_proto::methods::{METHODS, Method};
use lastro_proto::transactions::v1::CreateTransactionRequest;
use lastro_tests::{Answer, Api};
use prost::Message as _;
use reqwest::Method as Verb;
use serde_json::{Value, json};

use crate::World;
use crate::access::Callers;

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

/// Words of libraries that a caller does not know.
const FOREIGN_WORDS: [&str; 8] =
    ["untagged", "in list", "regex", "variant", "expected struct", "value length", "expected one of", "NumberDeserialize"];

fn frame(message: &[u8]) -> Vec<u8> {
    [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat()
}

/// A field that no message has, which is passed over: so many bytes in all.
fn unknown_field(bytes: usize) -> Vec<u8> {
    let mut message = Vec::new();
    prost::encoding::encode_key(1000, prost::encoding::WireType::LengthDelimited, &mut message);
    // Its length takes four bytes, whatever it is.
    let left = bytes - message.len() - 4;
    message.extend([(left & 0x7f) as u8 | 0x80, (left >> 7 & 0x7f) as u8 | 0x80, (left >> 14 & 0x7f) as u8 | 0x80, (left >> 21) as u8]);
    message.resize(bytes, b'x');
    message
}

/// No message, half a message, one that never ends, the largest and one byte more, 10,000 violations, a deadline of a day: each method says what is
/// wrong, in few words, and goes on.
pub async fn every_method_bounds_its_message(world: &World) -> Result<()> {
    let callers = Callers::of(world).await?;
    let mut client = reqwest::Client::builder().http2_prior_knowledge();
    if let Some(authority) = &world.server.authority {
        client = client.tls_certs_only([reqwest::Certificate::from_pem(&std::fs::read(authority)?)?]);
    }
    let client = client.build()?;
    let call = async |method: &Method, timeout: &str, body: reqwest::Body| {
        let request = client
            .post(format!("{}{}", world.server.grpc, method.path))
            .header("content-type", "application/grpc")
            .bearer_auth(callers.least_powerful(method));
        let answer = request.header("te", "trailers").header("grpc-timeout", timeout).body(body).send().await?;
        let headers: usize = answer.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        anyhow::ensure!(headers < 16_000, "{}: {headers} bytes of headers", method.path);
        let message =
            answer.headers().get("grpc-message").map(|message| String::from_utf8_lossy(message.as_bytes()).into_owned()).unwrap_or_default();
        anyhow::ensure!(!FOREIGN_WORDS.iter().any(|words| message.contains(words)), "{}: {message}", method.path);
        anyhow::ensure!(answer.status() == 200, "{}: {answer:?}", method.path);
        let status = answer.headers().get("grpc-status").and_then(|value| value.to_str().ok()).map(str::to_owned);
        // What succeeds, or took long behind nginx, says so at its end, which this client does not see; only what succeeds has a message.
        let is_empty = answer.bytes().await?.is_empty();
        anyhow::Ok(status.unwrap_or_else(|| if is_empty { "late" } else { "0" }.to_owned()))
    };
    // The one that ends the session comes last.
    let mut methods: Vec<_> = METHODS.iter().filter(|method| !method.service.starts_with("lastro.internal.")).collect();
    methods.sort_by_key(|method| method.name == "Logout");
    let waiting = methods.iter().map(|method| {
        let start = futures_util::stream::iter([Ok::<_, std::io::Error>(bytes::Bytes::from_static(&[0, 0, 0, 0, 100, 1]))]);
        let body = reqwest::Body::wrap_stream(futures_util::StreamExt::chain(start, futures_util::stream::pending()));
        async { (method.path, call(method, "30S", body).await) }
    });
    for (path, status) in futures_util::future::join_all(waiting).await {
        let status = status?;
        assert!(status == "4" || status == "late" && world.server.authority.is_some(), "{path}: a message that never ends: {status}");
    }
    // As many long violations as one answer names: behind a proxy they must fit into what it takes for headers.
    let create = METHODS.iter().find(|method| method.name == "CreateTransaction").context("a method")?;
    let metadata = (0..60).map(|key| (format!("{key:070}"), "x".to_owned())).collect();
    let long = CreateTransactionRequest { metadata, ..CreateTransactionRequest::default() }.encode_to_vec();
    assert_eq!(call(create, "30S", frame(&long).into()).await?, "3");
    for method in methods {
        let plain = async |message: Vec<u8>| call(method, "30S", message.into()).await;
        assert_eq!(plain(Vec::new()).await?, "3", "{}: no message", method.path);
        assert_eq!(plain(vec![0, 0, 0, 0, 100, 1, 2, 3]).await?, "3", "{}: half a message", method.path);
        assert_eq!(plain([frame(b""), frame(b"")].concat()).await?, "3", "{}: two messages", method.path);
        assert_eq!(plain(frame(&unknown_field(method.request_bytes_max + 1))).await?, "11", "{}: one byte too many", method.path);
        let violations = match method.name {
            "CreateTransaction" => {
                let metadata = (0..10_000).map(|number| (number.to_string(), "\0".to_owned())).collect();
                CreateTransactionRequest { metadata, ..CreateTransactionRequest::default() }.encode_to_vec()
            }
            "UpdateUser" => UpdateUserRequest { roles: vec![0; 10_000], ..UpdateUserRequest::default() }.encode_to_vec(),
            // Nothing else of theirs is a list.
            _ => vec![0xff; 10_000],
        };
        let status = plain(frame(&violations)).await?;
        assert!(status == "3" || status == "7" && method.access == Access::Permission("read:users"), "{}: 10,000 violations: {status}", method.path);
        let a_day = call(method, "24H", frame(&unknown_field(method.request_bytes_max)).into()).await?;
        assert!(["0", "3", "7"].contains(&a_day.as_str()), "{}: the largest message, with a deadline of a day: {a_day}", method.path);
    }
    Ok(())
}

/// The same of every route that takes a body.
pub async fn every_route_bounds_its_body(world: &World) -> Result<()> {
    let api = world.server.api();
    let callers = Callers::of(world).await?;
    let someone = &callers.user;
    // Whoever sends its whole body before it reads, and does not say how long it is, gets the answer all the same.
    let mut client = reqwest::Client::builder().http1_only();
    if let Some(authority) = &world.server.authority {
        client = client.tls_certs_only([reqwest::Certificate::from_pem(&std::fs::read(authority)?)?]);
    }
    let client = client.build()?;
    // Too large, at no resource, and by a method that it does not take.
    for (path, status) in [("auth/login", 413), ("nothing", 404), ("users/me", 405)].repeat(10) {
        let pieces = (0..200).map(|_| Ok::<_, std::io::Error>(vec![b' '; 4096]));
        let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
        let sent = client.post(format!("{}/api/v1/{path}", world.server.rest)).header("content-type", "application/json");
        assert_eq!(sent.body(body).send().await?.status(), status);
    }
    let metadata: serde_json::Map<String, Value> = (0..10_000).map(|number| (number.to_string(), json!("\0"))).collect();
    let answer = api.transact(&someone.token, json!({ "type": "TRANSFER", "metadata": metadata })).await?;
    assert_eq!((answer.status, answer.body["errors"].as_array().map(Vec::len)), (400, Some(20)), "10,000 violations");
    let mut methods: Vec<_> = routes().filter(|method| method.takes_body).collect();
    methods.sort_by_key(|method| method.name == "Logout");
    for method in methods {
        let (verb, path): (Verb, _) = (method.http_method.parse()?, method.http_path.replace("{id}", &someone.id));
        let bearer = &format!("Bearer {}", callers.least_powerful(method));
        let send = async |body: String| {
            let answer = api.send(verb.clone(), &path, &[("authorization", bearer), ("content-type", "application/json")], Some(body)).await?;
            let told = answer.body.to_string();
            anyhow::ensure!(!FOREIGN_WORDS.iter().any(|words| told.contains(words)), "{path}: {told}");
            anyhow::ensure!(told.len() < 12_000, "{path}: {} bytes of an answer", told.len());
            anyhow::Ok((answer.status, answer.body["reason"].as_str().unwrap_or_default().to_owned()))
        };
        let padded = |bytes: usize| format!("{{\"nope\":1}}{}", " ".repeat(bytes - 10));
        assert_eq!(send(padded(method.body_bytes_max)).await?, (400, "MALFORMED_JSON".to_owned()), "{path}: the largest body");
        assert_eq!(send(padded(method.body_bytes_max + 1)).await?, (413, "BODY_TOO_LARGE".to_owned()), "{path}: one byte more");
        let fields: Vec<String> = (0..6_000).map(|number| format!("\"f{number}\":1")).collect();
        assert_eq!(send(format!("{{{}}}", fields.join(","))).await?.0, 400, "{path}: 6,000 fields that it does not have");
        for body in ["{\"name\":", "{", "[", "5", "\"", "nonsense", "{\"a\":1}{", "[[[[[[[[[[[[[[[["] {
            assert_eq!(send(body.into()).await?.0, 400, "{path}: {body}");
        }
        // Where nothing is required, nothing is done.
        if !["Logout", "CloseAccount"].contains(&method.name) && method.http_method != "PATCH" {
            assert_eq!(send(String::new()).await?.0, 400, "{path}: no body");
        }
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
        let is_told = |name: &str| name == "x-lastro-freshness" || !(name.starts_with("x-lastro-") || name.starts_with("x-accel-"));
        assert!(answer.headers.keys().all(|name| is_told(name.as_str())), "{answer:?}");
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
            // Where what is asked for has a name of its own, such as the order that is paid for, that is the key itself.
            assert!(documented || !method.key.is_empty(), "{} creates and takes no key", method.path);
            creating.push(method.name);
        }
    }
    // Each has a journey of its own beside those of its service.
    assert!(creating.len() >= 8, "{creating:?}");

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
