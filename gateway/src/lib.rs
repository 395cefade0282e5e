//! The gateway: HTTP/JSON to gRPC from the annotations in the protos, OpenAPI, and the edge's security. Knows no rule of the services;
//! their errors pass through as problem+json.

mod body;
mod docs;
mod edge;
mod headers;
mod json_path;
mod limits;
mod openapi;
mod problem;
mod query;
mod rest;
mod routes;
mod serve;
mod words;

use std::sync::Arc;

use lastro_mesh::health::Health;
use lastro_mesh::identity::TokenVerifier;
use lastro_mesh::outbound::Outbound;

pub use limits::Limits;
pub use serve::serve;

/// The service's name in logs and metrics.
pub const NAME: &str = "gateway";

/// The services that REST offers.
pub const NEEDS: [&str; 2] = ["customers", "transactions"];

/// What the gateway is made of.
pub struct Settings {
    /// The way to customers.
    pub customers: Outbound,
    /// The way to transactions.
    pub transactions: Outbound,
    /// Tells users apart for their rate limit; the services verify every token themselves.
    pub verifier: Arc<TokenVerifier>,
    /// How many requests are taken.
    pub limits: Limits,
    /// How many are handled at once.
    pub concurrency_max: usize,
    /// Origins whose scripts may read answers; empty: none but our own; `*`: all.
    pub cors_origins: Vec<String>,
    /// For `/readyz`.
    pub health: Health,
}

/// The gateway. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Gateway(Arc<edge::Edge>);

impl Gateway {
    /// A gateway to these services.
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(edge::Edge::new(settings)))
    }
}

/// The OpenAPI 3.1 document that `/openapi.json` answers.
pub fn openapi_document() -> serde_json::Value {
    openapi::document()
}
