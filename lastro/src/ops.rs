//! `/livez`, `/readyz` and `/metrics`.

use std::convert::Infallible;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use lastro_mesh::health::Health;
use lastro_mesh::metrics::PrometheusHandle;
use lastro_mesh::serve::Listener;
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// Serves until told to stop.
pub async fn serve(listener: Listener, stop: CancellationToken, health: Health, metrics: PrometheusHandle) {
    lastro_mesh::serve::serve(listener, stop, move |_| {
        let (health, metrics) = (health.clone(), metrics.clone());
        service_fn(move |request| {
            let answer = answer(&request, &health, &metrics);
            async move { Ok::<_, Infallible>(answer) }
        })
    })
    .await;
}

fn answer(request: &Request<Incoming>, health: &Health, metrics: &PrometheusHandle) -> Response<Full<Bytes>> {
    let (status, content_type, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/livez") => (StatusCode::OK, "application/json", json!({ "status": "live" }).to_string()),
        (&Method::GET | &Method::HEAD, "/readyz") => {
            let ready = health.is_ready();
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let said = if ready { "ready" } else { "not ready" };
            (status, "application/json", json!({ "status": said, "checks": health.checks(), "degraded": health.degraded() }).to_string())
        }
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, "text/plain; version=0.0.4", metrics.render()),
        _ => (StatusCode::NOT_FOUND, "application/json", json!({ "paths": ["/livez", "/readyz", "/metrics"] }).to_string()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}
