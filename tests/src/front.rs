//! Where a mesh is reached, be it one process, nginx before many, or a replica itself.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::Api;
use crate::client::{PASSWORD, Someone};

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
    /// What goes past nginx proves who it is: its certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Front {
    /// The REST API.
    pub fn api(&self) -> Api {
        Api::through(self.rest_client().expect("certificates that can be read"), &self.rest)
    }

    /// A client for REST.
    pub fn rest_client(&self) -> Result<reqwest::Client> {
        let mut client = reqwest::Client::builder().pool_max_idle_per_host(256).tcp_nodelay(true);
        if let Some(authority) = &self.authority {
            client = client.tls_certs_only([reqwest::Certificate::from_pem(&std::fs::read(authority)?)?]);
        }
        if let Some((certificate, key)) = &self.identity {
            // Its certificate has the service's name, not its address.
            client = client.resolve("gateway", ([127, 0, 0, 1], 0).into());
            client = client.identity(reqwest::Identity::from_pem(&[std::fs::read(certificate)?, std::fs::read(key)?].concat())?);
        }
        Ok(client.build()?)
    }

    /// A connection for generated clients.
    pub async fn channel(&self) -> Result<Channel> {
        self.channel_from(None).await
    }

    /// As [`channel`](Self::channel), from a local address.
    pub async fn channel_from(&self, address: Option<IpAddr>) -> Result<Channel> {
        let mut endpoint = Endpoint::new(self.grpc.clone())?.tcp_nodelay(true).local_address(address);
        if let Some(authority) = &self.authority {
            let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(std::fs::read(authority)?));
            if let Some((certificate, key)) = &self.identity {
                tls = tls.domain_name("transactions").identity(Identity::from_pem(std::fs::read(certificate)?, std::fs::read(key)?));
            }
            endpoint = endpoint.tls_config(tls)?;
        }
        Ok(endpoint.connect().await?)
    }

    /// The administrator's access token.
    pub async fn administrator(&self) -> Result<String> {
        let credentials: Value = serde_json::from_slice(&std::fs::read(&self.admin_file)?)?;
        let login = self.api().post("/api/v1/auth/login", None, credentials).await?;
        login.body["accessToken"].as_str().map(str::to_owned).with_context(|| format!("the administrator cannot log in: {login:?}"))
    }

    /// A user with the role PROVIDER alone.
    pub async fn provider(&self) -> Result<Someone> {
        let (api, administrator) = (self.api(), self.administrator().await?);
        let someone = api.someone().await?;
        let (path, roles) = (format!("/api/v1/users/{}", someone.id), json!({ "roles": ["PROVIDER"] }));
        let promoted = api.json(reqwest::Method::PATCH, &path, Some(&administrator), &[], Some(roles)).await?;
        anyhow::ensure!(promoted.status == 200, "{promoted:?}");
        let login = api.post("/api/v1/auth/login", None, json!({ "email": someone.email, "password": PASSWORD })).await?;
        Ok(Someone { token: login.text("accessToken")?, ..someone })
    }

    /// `host:port` of gRPC.
    pub fn grpc_address(&self) -> &str {
        self.grpc.split_once("://").map_or(&self.grpc, |(_, address)| address)
    }
}
