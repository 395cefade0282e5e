//! The same over gRPC, by generated clients.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Result;
use base64::Engine as _;
use lastro_proto::customers::v1::users_service_client::UsersServiceClient;
use lastro_proto::customers::v1::{ListUsersRequest, LoginRequest, TokenResponse};
use lastro_proto::transactions::v1::transaction::{State, Type};
use lastro_proto::transactions::v1::transactions_service_client::TransactionsServiceClient;
use lastro_proto::transactions::v1::{CreateTransactionRequest, GetTransactionRequest, ListTransactionsRequest};
use lastro_proto::r#type::v1::Money;
use lastro_tests::client::PASSWORD;
use prost::Message as _;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use crate::World;

pub async fn channel(world: &World) -> Result<Channel> {
    world.server.channel().await
}

pub fn with_token<T>(token: &str, message: T) -> Result<Request<T>> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    Ok(request)
}

pub async fn moves_money_over_grpc(world: &World) -> Result<()> {
    let (api, administrator) = (world.server.api(), world.server.administrator().await?);
    let someone = api.someone().await?;
    let (from, to) = (api.account(&someone.token, "BRL").await?, api.account(&someone.token, "BRL").await?);
    api.deposit(&administrator, &from, "BRL", "10.00").await?;
    let mut client = TransactionsServiceClient::new(channel(world).await?);
    let transfer = CreateTransactionRequest {
        external_id: "g1".to_owned(),
        r#type: Type::Transfer as i32,
        source_account_id: Some(from),
        destination_account_id: Some(to),
        amount: Some(Money { currency_code: "BRL".to_owned(), amount: "4.00".to_owned() }),
        wait: Some(pbjson_types::Duration { seconds: 5, nanos: 0 }),
        ..CreateTransactionRequest::default()
    };
    let mut request = with_token(&someone.token, transfer.clone())?;
    request.metadata_mut().insert("x-correlation-id", "from-the-test".parse()?);
    let answer = client.create_transaction(request).await?;
    assert_eq!(answer.metadata().get("x-correlation-id").map(|id| id.to_str().expect("ascii")), Some("from-the-test"));
    let made = answer.into_inner();
    assert_eq!((made.state(), made.replayed), (State::Completed, false));
    assert!(client.create_transaction(with_token(&someone.token, transfer)?).await?.into_inner().replayed);
    let read =
        client.get_transaction(with_token(&someone.token, GetTransactionRequest { id: made.id.clone(), external_id: None })?).await?.into_inner();
    assert_eq!(read.id, made.id);
    let listed = client.list_transactions(with_token(&someone.token, ListTransactionsRequest::default())?).await?.into_inner();
    assert_eq!(listed.transactions.len(), 2);

    // A deadline that is over before anything happens is told as such.
    // Sent by hand: tonic's own client gives up by itself, and calls that CANCELLED.
    let mut hurried = reqwest::Client::builder().http2_prior_knowledge();
    if let Some(authority) = &world.server.authority {
        hurried = hurried.tls_certs_only([reqwest::Certificate::from_pem(&std::fs::read(authority)?)?]);
    }
    let path = "lastro.transactions.v1.TransactionsService/ListTransactions";
    let hurried = hurried.build()?.post(format!("{}/{path}", world.server.grpc)).bearer_auth(&someone.token);
    let hurried = hurried.header("content-type", "application/grpc").header("te", "trailers").header("grpc-timeout", "1n").body(vec![0; 5]);
    let status = hurried.send().await?.headers().get("grpc-status").cloned();
    assert_eq!(status.as_ref().map(reqwest::header::HeaderValue::as_bytes), Some(&b"4"[..]), "DEADLINE_EXCEEDED");
    Ok(())
}

pub async fn errors_carry_details(world: &World) -> Result<()> {
    let someone = world.server.api().someone().await?;
    let mut client = TransactionsServiceClient::new(channel(world).await?);
    let status = client.create_transaction(with_token(&someone.token, CreateTransactionRequest::default())?).await.expect_err("empty");
    let details = status.get_error_details();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(details.error_info().map(|info| (info.reason.as_str(), info.domain.as_str())), Some(("INVALID_ARGUMENT", "lastro")));
    let fields: Vec<_> = details.bad_request().expect("fields").field_violations.iter().map(|one| one.field.clone()).collect();
    assert_eq!(fields, ["external_id", "type"]);
    assert_eq!(details.error_info().and_then(|info| info.metadata.get("field").cloned()).as_deref(), Some("external_id"));
    let mut users = UsersServiceClient::new(channel(world).await?);
    let status = users.list_users(with_token(&someone.token, ListUsersRequest::default())?).await.expect_err("administrators only");
    let info = status.get_error_details().error_info().cloned().expect("why");
    assert_eq!((info.reason.as_str(), info.metadata.get("permission").map(String::as_str)), ("PERMISSION_MISSING", Some("read:users")));
    let status = client
        .get_transaction(with_token(&someone.token, GetTransactionRequest { id: uuid::Uuid::now_v7().to_string(), external_id: None })?)
        .await
        .expect_err("none");
    assert_eq!(
        (status.code(), status.get_error_details().error_info().map(|info| info.reason.clone())),
        (Code::NotFound, Some("TRANSACTION_NOT_FOUND".to_owned()))
    );
    Ok(())
}

pub async fn serves_health_and_reflection(world: &World) -> Result<()> {
    // Both are asked for as bytes: the messages are `grpc.health.v1.HealthCheckRequest` with and without a service.
    let service = "lastro.transactions.v1.TransactionsService";
    let named = [vec![0x0a, service.len() as u8], service.as_bytes().to_vec()].concat();
    for message in [Vec::new(), named] {
        let mut answer = Vec::new();
        // Serving within a moment of the start.
        for _ in 0..50 {
            answer = crate::access::call(world, "/grpc.health.v1.Health/Check", None, message.clone()).await??;
            if answer == [0x08, 0x01] {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(answer, [0x08, 0x01], "SERVING");
    }
    Ok(())
}

/// JSON, HTTP/1.1 or no content type at the port of gRPC.
fn plain_client(world: &World) -> Result<reqwest::ClientBuilder> {
    let client = reqwest::Client::builder();
    match &world.server.authority {
        Some(authority) => Ok(client.tls_certs_only([reqwest::Certificate::from_pem(&std::fs::read(authority)?)?])),
        None => Ok(client),
    }
}

fn frame(flag: u8, message: &[u8]) -> Vec<u8> {
    [&[flag][..], &(message.len() as u32).to_be_bytes(), message].concat()
}

/// As a browser speaks it: over either version of HTTP, in binary or in base64, with the status at the end of the body.
pub async fn grpc_web_works(world: &World) -> Result<()> {
    let someone = world.server.api().someone().await?;
    let url = |method: &str| format!("{}/lastro.customers.v1.{method}", world.server.grpc);
    let login = |password: &str| LoginRequest { email: someone.email.clone(), password: password.to_owned() }.encode_to_vec();
    for client in [plain_client(world)?.http1_only().build()?, plain_client(world)?.http2_prior_knowledge().build()?] {
        let send = async |method: &str, content_type: &str, body: Vec<u8>| {
            let request =
                client.post(url(method)).header("content-type", content_type).header("accept", content_type).header("x-grpc-web", "1").body(body);
            anyhow::Ok(request.send().await?)
        };
        let answer = send("AuthService/Login", "application/grpc-web+proto", frame(0, &login(PASSWORD))).await?;
        assert_eq!((answer.status().as_u16(), answer.headers()["content-type"].to_str()?), (200, "application/grpc-web+proto"));
        let body = answer.bytes().await?.to_vec();
        let length = u32::from_be_bytes(body[1..5].try_into()?) as usize;
        let tokens = TokenResponse::decode(&body[5..5 + length])?;
        assert!(!tokens.access_token.is_empty());
        let end = String::from_utf8_lossy(&body[5 + length..]).into_owned();
        assert_eq!(body[5 + length], 0x80, "a frame of trailers");
        assert!(end.contains("grpc-status:0") || end.contains("grpc-status: 0"), "{end:?}");
        let text = base64::engine::general_purpose::STANDARD.encode(frame(0, &login(PASSWORD)));
        let answer = send("AuthService/Login", "application/grpc-web-text+proto", text.into_bytes()).await?;
        // Each piece is base64 by itself.
        let decode = |piece: &[u8]| base64::engine::general_purpose::STANDARD_NO_PAD.decode(piece).unwrap_or_default();
        let body: Vec<u8> = answer.bytes().await?.split(|byte| *byte == b'=').flat_map(decode).collect();
        let length = u32::from_be_bytes(body[1..5].try_into()?) as usize;
        assert!(!TokenResponse::decode(&body[5..5 + length])?.access_token.is_empty());
        // A refusal comes with its details, and limits hold as for everybody.
        let status = async |answer: reqwest::Response| {
            let told = answer.headers().get("grpc-status").map(|status| String::from_utf8_lossy(status.as_bytes()).into_owned());
            let body = answer.bytes().await?;
            let in_body = String::from_utf8_lossy(&body).split_once("grpc-status:").map(|(_, rest)| rest.trim_start().chars().take(2).collect());
            anyhow::Ok(told.or(in_body).unwrap_or_default())
        };
        let refused = send("AuthService/Login", "application/grpc-web", frame(0, &login("wrong"))).await?;
        assert_eq!(status(refused).await?, "16");
        let large = send("AuthService/Login", "application/grpc-web", frame(0, &vec![0; 70_000])).await?;
        assert_eq!(status(large).await?, "11");
    }
    Ok(())
}

/// A compressed request is what it stands for, and no larger than its method takes.
pub async fn gzip_is_taken(world: &World) -> Result<()> {
    let someone = world.server.api().someone().await?;
    let client = plain_client(world)?.http2_prior_knowledge().build()?;
    let send = async |encoding: &str, message: Vec<u8>| {
        let request = client.post(format!("{}/lastro.customers.v1.AuthService/Login", world.server.grpc)).header("content-type", "application/grpc");
        let answer = request.header("te", "trailers").header("grpc-encoding", encoding).body(message).send().await?;
        let status = answer.headers().get("grpc-status").map(|status| status.to_str().unwrap_or_default().to_owned());
        anyhow::Ok((status, answer.headers().get("grpc-accept-encoding").is_some(), answer.bytes().await?.len()))
    };
    let packed = |message: &[u8]| -> Result<Vec<u8>> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(message)?;
        Ok(encoder.finish()?)
    };
    let login = LoginRequest { email: someone.email.clone(), password: PASSWORD.to_owned() }.encode_to_vec();
    let (status, _, length) = send("gzip", frame(1, &packed(&login)?)).await?;
    assert!(status.is_none() && length > 100, "{status:?}");
    let (status, _, length) = send("gzip", frame(0, &login)).await?;
    assert!(status.is_none() && length > 100, "{status:?}");
    let bomb = packed(&vec![0; 50_000_000])?;
    assert!(bomb.len() < 65_536);
    assert_eq!(send("gzip", frame(1, &bomb)).await?.0.as_deref(), Some("11"));
    assert_eq!(send("gzip", frame(1, b"no gzip")).await?.0.as_deref(), Some("3"));
    let (status, told, _) = send("br", frame(1, &login)).await?;
    assert_eq!((status.as_deref(), told), (Some("12"), true));
    Ok(())
}

/// Scripts of the origins that are listed may call by grpc-web, no others.
pub async fn grpc_web_from_another_origin() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = lastro_tests::Server::start(&folder.path().join("data"), &["--cors-origins", "https://app.example"])?;
    let client = reqwest::Client::builder().http1_only().build()?;
    let url = format!("http://{}/lastro.customers.v1.AuthService/Login", server.grpc);
    for (origin, allowed) in [("https://app.example", Some("https://app.example")), ("https://evil.example", None)] {
        let asked = client.request(reqwest::Method::OPTIONS, &url).header("origin", origin).header("access-control-request-method", "POST");
        let asked = asked.header("access-control-request-headers", "content-type,x-grpc-web,authorization").send().await?;
        let header = |answer: &reqwest::Response, name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap_or_default().to_owned());
        assert_eq!(header(&asked, "access-control-allow-origin").as_deref(), allowed, "{asked:?}");
        let message = frame(0, &LoginRequest { email: "nobody@example.com".to_owned(), password: "wrong".to_owned() }.encode_to_vec());
        let sent = client.post(&url).header("origin", origin).header("content-type", "application/grpc-web+proto").body(message).send().await?;
        assert_eq!(header(&sent, "access-control-allow-origin").as_deref(), allowed, "{sent:?}");
        if allowed.is_some() {
            assert!(header(&sent, "access-control-expose-headers").is_some_and(|told| told.contains("grpc-status")), "{sent:?}");
        }
    }
    Ok(())
}

pub async fn what_is_not_grpc_is_told(world: &World) -> Result<()> {
    let client = || plain_client(world);
    let url = format!("{}/lastro.customers.v1.AuthService/Login", world.server.grpc);
    for (client, content_type) in [
        (client()?.http1_only(), Some("application/json")),
        (client()?.http1_only(), None),
        (client()?.http2_prior_knowledge(), Some("application/json")),
        (client()?.http2_prior_knowledge(), Some("application/grpc-web+thrift")),
    ] {
        let mut request = client.build()?.post(&url).body("{}");
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let answer = request.send().await?;
        let (status, text) = (answer.status().as_u16(), answer.text().await?);
        assert!(status == 415 && text.contains("--rest"), "{content_type:?}: {status} {text}");
    }
    Ok(())
}

pub async fn internal_methods_are_not_served(world: &World) -> Result<()> {
    let administrator = world.server.administrator().await?;
    for path in ["/lastro.internal.customers.v1.IdentityService/ListRevocations", "/lastro.internal.customers.v1.IdentityService/ConfirmOwner"] {
        for token in [None, Some(administrator.as_str())] {
            let status = crate::access::call(world, path, token, Vec::new()).await?.expect_err("internal");
            assert!([Code::Unimplemented, Code::PermissionDenied].contains(&status.code()), "{status:?}");
        }
    }
    let descriptors = String::from_utf8_lossy(lastro_proto::PUBLIC_DESCRIPTORS).into_owned();
    assert!(!descriptors.contains("lastro.internal"), "reflection tells nothing internal");
    Ok(())
}
