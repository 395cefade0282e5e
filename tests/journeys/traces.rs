//! Traces by OTLP, to a collector that only counts: a caller's trace goes on in every service, and what the caller did not sample is not sent.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use lastro_tests::stack::Options;
use lastro_tests::{Server, Stack};
use libtest_mimic::Trial;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use reqwest::Method;
use serde_json::json;
use tonic::{Request, Response, Status};

use crate::market::{Market, new_order};
use crate::{block_on, failed};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("traces::a_callers_trace_goes_on", || failed(block_on(a_callers_trace_goes_on()))),
        Trial::test("stack::traces::an_order_is_one_trace", || failed(block_on(an_order_is_one_trace()))),
    ]
}

/// Every span, and the service that it is of.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
            let name = attributes.into_iter().find(|attribute| attribute.key == "service.name").and_then(|attribute| attribute.value?.value);
            let name = if let Some(Value::StringValue(name)) = name { name } else { String::new() };
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.0.lock().expect("no panic").extend(spans.map(|span| (name.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// On a free port, until the runtime ends; with its address.
    async fn start() -> Result<(Self, String)> {
        let collector = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone())).serve_with_incoming(incoming));
        Ok((collector, endpoint))
    }

    fn spans_of(&self, trace_id: u128) -> Vec<Span> {
        self.by_service(trace_id).into_iter().map(|(_, span)| span).collect()
    }

    fn by_service(&self, trace_id: u128) -> Vec<(String, Span)> {
        self.0.lock().expect("no panic").iter().filter(|(_, span)| span.trace_id == trace_id.to_be_bytes()).cloned().collect()
    }
}

/// From nginx over the gateway, orders, inventory and transactions to the last event: one trace, and one correlation id.
async fn an_order_is_one_trace() -> Result<()> {
    let (collector, endpoint) = Collector::start().await?;
    let flags = ["--otlp-endpoint", &endpoint].map(str::to_owned).to_vec();
    let stack = Stack::start(Options { flags, ..Options::default() })?;
    let market = Market::open(&stack.front()).await?;
    let trace = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_0815_u128;
    let parent = format!("00-{trace:032x}-00f067aa0ba902b7-01");
    let headers = [("traceparent", parent.as_str()), ("x-correlation-id", "one-trace"), ("prefer", "wait=15")];
    let body = new_order("traced", &[(&market.shop.product, 1)], &market.account);
    let placed = market.api.json(Method::POST, "/api/v1/orders", Some(&market.buyer.token), &headers, Some(body)).await?;
    assert_eq!((placed.status, &placed.body["status"], placed.header("x-correlation-id")), (201, &json!("COMPLETED"), "one-trace"), "{placed:?}");
    // The spans: of each service what it was called for.
    let text = |span: &Span, name: &str| match span.attributes.iter().find(|one| one.key == name).and_then(|one| one.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        _ => String::new(),
    };
    let of_services = |spans: &[(String, Span)]| -> BTreeSet<(String, String)> {
        spans.iter().map(|(service, span)| (service.clone(), text(span, "method").rsplit('/').next().unwrap_or_default().to_owned())).collect()
    };
    let wanted = [
        ("orders", "CreateOrder"),
        ("inventory", "GetProducts"),
        ("transactions", "GetAccount"),
        ("inventory", "Reserve"),
        ("transactions", "Process"),
        ("inventory", "Confirm"),
    ];
    let since = Instant::now();
    loop {
        let told = of_services(&collector.by_service(trace));
        let is_there = |(service, method): &(&str, &str)| told.contains(&((*service).to_owned(), (*method).to_owned()));
        if wanted.iter().all(is_there) && told.iter().any(|(service, _)| service == "gateway") {
            let spans = collector.by_service(trace);
            assert!(spans.iter().all(|(_, span)| text(span, "correlationId") == "one-trace"), "{spans:?}");
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(20), "spans are missing: {told:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // nginx's line, and every event.
    let line = std::fs::read_to_string(stack.path("nginx.log"))?;
    let line = line.lines().find(|line| line.contains("\"one-trace\"")).unwrap_or_default().to_owned();
    assert!(line.contains(&format!("{trace:032x}")), "nginx tells the same trace: {line}");
    let id = placed.text("id")?;
    let events = market.api.get(&format!("/api/v1/orders/{id}/events"), Some(&market.buyer.token)).await?;
    let events = events.body["events"].as_array().cloned().unwrap_or_default();
    assert_eq!(events.len(), 5);
    for event in &events {
        assert_eq!((&event["correlationId"], &event["payload"]["traceId"]), (&json!("one-trace"), &json!(format!("{trace:032x}"))), "{event}");
    }
    let payment = placed.text("paymentId")?;
    let of_payment = market.api.get(&format!("/api/v1/transactions/{payment}/events"), Some(&market.buyer.token)).await?;
    let of_stock = market.api.get(&format!("/api/v1/inventory/{}/events?storeId=a", market.shop.product), Some(&market.shop.administrator)).await?;
    let of = |answer: &lastro_tests::Answer| answer.body["events"].as_array().cloned().unwrap_or_default();
    let others: Vec<_> = of(&of_payment).into_iter().chain(of(&of_stock).into_iter().filter(|event| event["reservationId"] != "")).collect();
    assert!(others.len() == 4 && others.iter().all(|event| event["correlationId"] == "one-trace"), "{others:?}");
    Ok(())
}

async fn a_callers_trace_goes_on() -> Result<()> {
    let (collector, endpoint) = Collector::start().await?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("data"), &["--otlp-endpoint", &endpoint])?;
    let api = server.api();
    let someone = api.someone().await?;
    let (sampled, unsampled) = (0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128, 0x1111_2222_3333_4444_5555_6666_7777_8888_u128);
    for (trace, flags) in [(unsampled, "00"), (sampled, "01")] {
        let parent = format!("00-{trace:032x}-00f067aa0ba902b7-{flags}");
        let headers = [("traceparent", parent.as_str())];
        let opened = api
            .json(Method::POST, "/api/v1/accounts", Some(&someone.token), &headers, Some(json!({ "currencyCode": "BRL", "displayName": "x" })))
            .await?;
        assert_eq!(opened.status, 201);
    }
    // The gateway's span, that of transactions below it, and that of customers, which confirms the owner, below that.
    let since = Instant::now();
    let spans = loop {
        let spans = collector.spans_of(sampled);
        if spans.len() >= 3 {
            break spans;
        }
        assert!(since.elapsed() < Duration::from_secs(15), "too few spans arrived: {spans:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let callers_span = [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7];
    assert_eq!(spans.iter().filter(|span| span.parent_span_id == callers_span).count(), 1, "one span hangs on the caller's: {spans:?}");
    assert!(collector.spans_of(unsampled).is_empty(), "what the caller did not sample is not sent");
    Ok(())
}
