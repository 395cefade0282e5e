//! Where a mesh is reached from outside, be it one process or nginx before many.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::Api;

/// The addresses of a mesh, and what a client needs to know.
#[derive(Debug, Clone)]
pub struct Front {
    /// `http://host:port` or `https://host:port`.
    pub rest: String,
    /// The same for gRPC.
    pub grpc: String,
    /// `host:port` of the operations of whoever answers REST.
    pub ops: String,
    /// The authority that its certificate comes from, PEM; None for plain text.
    pub authority: Option<PathBuf>,
    /// The administrator's credentials.
    pub admin_file: PathBuf,
}

impl Front {
    /// The REST API.
    pub fn api(&self) -> Api {
        match &self.authority {
            None => Api::new(&self.rest),
            Some(path) => {
                let authority = std::fs::read(path).expect("the authority's certificate");
                Api::secure(&self.rest, &authority).expect("a certificate")
            }
        }
    }

    /// A connection for generated clients.
    pub async fn channel(&self) -> Result<Channel> {
        let endpoint = Endpoint::new(self.grpc.clone())?;
        let endpoint = match &self.authority {
            None => endpoint,
            Some(path) => endpoint.tls_config(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(std::fs::read(path)?)))?,
        };
        Ok(endpoint.connect().await?)
    }

    /// The administrator's access token.
    pub async fn administrator(&self) -> Result<String> {
        let credentials: Value = serde_json::from_slice(&std::fs::read(&self.admin_file)?)?;
        let login = self.api().post("/api/v1/auth/login", None, credentials).await?;
        login.body["accessToken"].as_str().map(str::to_owned).with_context(|| format!("the administrator cannot log in: {login:?}"))
    }

    /// `host:port` of gRPC.
    pub fn grpc_address(&self) -> &str {
        self.grpc.split_once("://").map_or(&self.grpc, |(_, address)| address)
    }
}
