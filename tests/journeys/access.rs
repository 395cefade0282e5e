//! Every RPC, from the table of methods: no token, bad input, somebody else's things. A new RPC is in the table as soon as it exists, and
//! fails here until it is refused as it should be.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Buf as _, BufMut as _};
use lastro_mesh::identity::Access;
use lastro_mesh::outbound::Class;
use lastro_proto::methods::{METHODS, Method};
use reqwest::Method as Verb;
use serde_json::json;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};

use lastro_tests::client::Someone;

use crate::World;
use crate::inventory::Shop;
use crate::market::new_order;

/// Sends and receives bytes as they are.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

/// Calls any method with any bytes over gRPC.
pub async fn call(world: &World, path: &'static str, token: Option<&str>, message: Vec<u8>) -> Result<Result<Vec<u8>, Status>> {
    let channel = world.server.channel().await?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let mut request = tonic::Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    }
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
    Ok(client.unary(request, path, Raw).await.map(tonic::Response::into_inner))
}

fn public() -> impl Iterator<Item = &'static Method> {
    METHODS.iter().filter(|method| !method.service.starts_with("lastro.internal."))
}

/// A path of the REST route with some id in it.
fn rest_path(method: &Method) -> String {
    method.http_path.replace("{id}", &uuid::Uuid::nil().to_string())
}

pub async fn every_method_wants_a_token(world: &World) -> Result<()> {
    let api = world.server.api();
    for method in public().filter(|method| method.access != Access::Public) {
        for token in [None, Some("garbage")] {
            let status = call(world, method.path, token, Vec::new()).await?.expect_err("no token");
            assert_eq!(status.code(), Code::Unauthenticated, "{}", method.path);
            if method.http_path.is_empty() {
                continue; // REST does not offer it.
            }
            let answer = api
                .json(method.http_method.parse::<Verb>()?, &rest_path(method), token, &[], Some(json!({})).filter(|_| method.http_method != "GET"))
                .await?;
            assert_eq!(
                (answer.status, answer.body["reason"].clone()),
                (401, json!("UNAUTHENTICATED")),
                "{} {}",
                method.http_method,
                method.http_path
            );
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
    }
    Ok(())
}

pub async fn every_method_refuses_bad_input(world: &World) -> Result<()> {
    let callers = Callers::of(world).await?;
    let token = |method: &Method| Some(callers.most_powerful(method));
    for method in public() {
        // Logout has no fields to be wrong; that it takes no bytes that are no message is seen with it as well, before it acts.
        let status = call(world, method.path, token(method), vec![0xff; 7]).await?.expect_err("no message");
        assert_eq!(status.code(), Code::InvalidArgument, "{}: {status:?}", method.path);
    }
    // An empty message lacks what is required. Whoever changes something, or reads something by its id, has to say what; what else reads need not.
    let is_required = |method: &Method| method.class != Class::Read || !method.path_fields.is_empty();
    for method in public().filter(|method| method.name != "Logout") {
        let status = match call(world, method.path, token(method), Vec::new()).await? {
            Ok(_) if !is_required(method) => continue,
            Ok(_) => anyhow::bail!("{} takes an empty message", method.path),
            Err(status) => status,
        };
        assert_eq!(status.code(), Code::InvalidArgument, "{}: {status:?}", method.path);
        assert!(!tonic_types::StatusExt::get_error_details(&status).bad_request().expect("the fields").field_violations.is_empty());
    }
    Ok(())
}

/// A user, a provider and an administrator: for each method one whose token has its permission.
pub struct Callers {
    pub user: Someone,
    /// With what each may, those with less before those with more.
    tokens: Vec<(String, Vec<String>)>,
}

impl Callers {
    pub async fn of(world: &World) -> Result<Self> {
        let user = world.server.api().someone().await?;
        let tokens = [user.token.clone(), world.server.provider().await?.token, world.server.administrator().await?];
        let with_permissions = |token: String| {
            let claims = token.split('.').nth(1).context("claims")?;
            let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
            let may = claims["permissions"].as_array().context("permissions")?.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect();
            anyhow::Ok((token, may))
        };
        Ok(Self { user, tokens: tokens.into_iter().map(with_permissions).collect::<Result<_>>()? })
    }

    fn who_may<'a>(&'a self, method: &Method) -> impl DoubleEndedIterator<Item = &'a str> {
        let permission = match method.access {
            Access::Permission(permission) => Some(permission),
            Access::Public | Access::Service => None,
        };
        let may = move |(_, may): &&(String, Vec<String>)| permission.is_none_or(|permission| may.iter().any(|one| one == permission));
        self.tokens.iter().filter(may).map(|(token, _)| token.as_str())
    }

    /// The token of the one with the least who may call it.
    pub fn least_powerful(&self, method: &Method) -> &str {
        self.who_may(method).next().unwrap_or_else(|| panic!("nobody may call {}", method.path))
    }

    /// The token of the one with the most who may call it.
    pub fn most_powerful(&self, method: &Method) -> &str {
        self.who_may(method).next_back().unwrap_or_else(|| panic!("nobody may call {}", method.path))
    }
}

pub async fn somebody_elses_things_are_not_found(world: &World) -> Result<()> {
    let (api, administrator) = (world.server.api(), world.server.administrator().await?);
    let (owner, stranger) = (api.someone().await?, api.someone().await?);
    let account = api.account(&owner.token, "BRL").await?;
    let transaction = api.deposit(&administrator, &account, "BRL", "1.00").await?.text("id")?;
    let product = Shop::open(&world.server).await?.product;
    let order = api.post("/api/v1/orders", Some(&owner.token), new_order("own", &[(&product, 1)], &account)).await?.text("id")?;
    let mut checked = Vec::new();
    for method in public().filter(|method| method.http_path.contains("{id}") && !method.shared) {
        let own = match method.http_path.split('/').nth(3) {
            Some("users") => &owner.id,
            Some("accounts") => &account,
            Some("transactions") => &transaction,
            Some("orders") => &order,
            other => panic!("say here what {other:?} of {} is", method.path),
        };
        let verb: Verb = method.http_method.parse()?;
        let body = match method.name {
            "UpdateUser" => Some(json!({ "name": "x" })),
            "UpdateAccount" => Some(json!({ "displayName": "x" })),
            _ if method.takes_body && method.takes_idempotency_key => Some(json!({ "externalId": "k" })),
            _ => method.takes_body.then(|| json!({})),
        };
        let theirs = api.json(verb.clone(), &method.http_path.replace("{id}", own), Some(&stranger.token), &[], body.clone()).await?;
        let none = api.json(verb, &method.http_path.replace("{id}", &uuid::Uuid::now_v7().to_string()), Some(&stranger.token), &[], body).await?;
        assert_eq!((theirs.status, none.status), (404, 404), "{}", method.path);
        let strip = |mut body: serde_json::Value| {
            body.as_object_mut().expect("a problem").remove("correlationId");
            body
        };
        assert_eq!(strip(theirs.body), strip(none.body), "nobody can tell somebody else's from none");
        checked.push(method.name);
    }
    assert!(checked.len() >= 7, "{checked:?}");
    // What is named in a body.
    let mine = api.account(&stranger.token, "BRL").await?;
    for source in [account.clone(), uuid::Uuid::now_v7().to_string()] {
        let answer = api.transact(&stranger.token, lastro_tests::Api::transfer("k", &source, &mine, "1.00")).await?;
        assert_eq!((answer.status, answer.text("detail")?.as_str()), (404, "there is no such account"));
    }
    let listed = api.get(&format!("/api/v1/transactions?accountId={account}"), Some(&stranger.token)).await?;
    assert_eq!(listed.status, 404);
    Ok(())
}
