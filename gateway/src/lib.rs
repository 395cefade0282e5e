//! The gateway: HTTP/JSON to gRPC from the annotations in the protos, OpenAPI, and the edge's security. Knows no rule of the services, nor which
//! there are; their errors pass through as problem+json.

mod answer;
mod docs;
mod edge;
mod limits;
mod openapi;
mod problem;
mod rest;
mod serve;

use std::collections::HashMap;
use std::sync::Arc;

use lastro_mesh::health::Health;
use lastro_mesh::identity::TokenVerifier;
use lastro_mesh::outbound::Outbound;

pub use limits::Limits;
pub use serve::serve;

/// The service's name in logs and metrics.
pub const NAME: &str = "gateway";

/// What the gateway is made of.
pub struct Settings {
    /// The ways to the services, by the packages that they serve. What they serve by no way that is here is no route.
    pub channels: HashMap<&'static str, Outbound>,
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
