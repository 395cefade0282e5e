//! The same over gRPC, by generated clients.

use std::time::Duration;

use anyhow::Result;
use lastro_proto::transactions::v1::transaction::{State, Type};
use lastro_proto::transactions::v1::transactions_service_client::TransactionsServiceClient;
use lastro_proto::transactions::v1::{CreateTransactionRequest, GetTransactionRequest, ListTransactionsRequest};
use lastro_proto::r#type::v1::Money;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use crate::World;

async fn channel(world: &World) -> Result<Channel> {
    world.server.channel().await
}

fn with_token<T>(token: &str, message: T) -> Result<Request<T>> {
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
        source_account_id: from,
        destination_account_id: to,
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
    let read = client.get_transaction(with_token(&someone.token, GetTransactionRequest { id: made.id.clone() })?).await?.into_inner();
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
    assert_eq!(fields, ["external_id", "type", "amount"]);
    let status =
        client.get_transaction(with_token(&someone.token, GetTransactionRequest { id: uuid::Uuid::now_v7().to_string() })?).await.expect_err("none");
    assert_eq!(
        (status.code(), status.get_error_details().error_info().map(|info| info.reason.clone())),
        (Code::NotFound, Some("NOT_FOUND".to_owned()))
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
pub async fn what_is_not_grpc_is_told(world: &World) -> Result<()> {
    let client = || {
        let client = reqwest::Client::builder();
        match &world.server.authority {
            Some(authority) => Ok::<_, anyhow::Error>(client.tls_certs_only([reqwest::Certificate::from_pem(&std::fs::read(authority)?)?])),
            None => Ok(client),
        }
    };
    let url = format!("{}/lastro.customers.v1.AuthService/Login", world.server.grpc);
    for (client, content_type) in [
        (client()?.http1_only(), Some("application/json")),
        (client()?.http1_only(), None),
        (client()?.http2_prior_knowledge(), Some("application/json")),
        (client()?.http2_prior_knowledge(), Some("application/grpc-web+proto")),
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
