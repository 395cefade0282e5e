//! Traces by OTLP, to a collector that only counts: a caller's trace goes on in every service, and what the caller did not sample is not sent.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use lastro_tests::Server;
use libtest_mimic::Trial;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use reqwest::Method;
use serde_json::json;
use tonic::{Request, Response, Status};

use crate::{block_on, failed};

pub fn trials() -> Vec<Trial> {
    vec![Trial::test("traces::a_callers_trace_goes_on", || failed(block_on(a_callers_trace_goes_on())))]
}

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        self.0.lock().expect("no panic").extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn spans_of(&self, trace_id: u128) -> Vec<Span> {
        self.0.lock().expect("no panic").iter().filter(|span| span.trace_id == trace_id.to_be_bytes()).cloned().collect()
    }
}

async fn a_callers_trace_goes_on() -> Result<()> {
    let collector = Collector::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone())).serve_with_incoming(incoming));

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
