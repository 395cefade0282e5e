//! Mutual TLS between services: TLS 1.3 only, one certificate a service, all from one authority. A service is called by its name, whatever
//! its address, so that its certificate proves who it is and not where. The files are read again when they change.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_util::sync::CancellationToken;

/// What a certificate's URI begins with; the caller's name follows.
pub const NAME_PREFIX: &str = "spiffe://lastro/";
/// Certificates may change on disk while a process runs.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Where the certificates are; PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The service's own certificate, and those between it and the authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority that everybody's certificate comes from.
    pub ca: PathBuf,
}

/// Both ends of the service's connections.
pub struct Tls {
    files: TlsFiles,
    current: RwLock<Current>,
}

struct Current {
    /// As read, to see that a file changed.
    read: [Vec<u8>; 3],
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Tls {
    /// Reads the files; says which of them is wrong.
    pub fn load(files: TlsFiles) -> Result<Arc<Self>, String> {
        let current = Current::build(read(&files)?, &files)?;
        Ok(Arc::new(Self { files, current: RwLock::new(current) }))
    }

    /// Reads the files again when they change, until told to stop. Files that are wrong are logged, and what was read before stays.
    pub async fn follow(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            match self.reload() {
                Ok(true) => tracing::info!("the certificates were read again"),
                Ok(false) => {}
                Err(error) => tracing::error!(%error, "the certificates cannot be read again; those read before stay in use"),
            }
        }
    }

    /// Whether something changed.
    fn reload(&self) -> Result<bool, String> {
        let bytes = read(&self.files)?;
        if self.current.read().unwrap_or_else(PoisonError::into_inner).read == bytes {
            return Ok(false);
        }
        let next = Current::build(bytes, &self.files)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(true)
    }

    /// Accepts a connection; it proved that its certificate comes from our authority.
    pub async fn accept(&self, stream: TcpStream) -> std::io::Result<server::TlsStream<TcpStream>> {
        let config = self.current.read().unwrap_or_else(PoisonError::into_inner).server.clone();
        TlsAcceptor::from(config).accept(stream).await
    }

    /// Opens a connection to the service of this name.
    pub async fn connect(&self, service: &str, stream: TcpStream) -> std::io::Result<client::TlsStream<TcpStream>> {
        let name = ServerName::try_from(service.to_owned()).map_err(std::io::Error::other)?;
        let config = self.current.read().unwrap_or_else(PoisonError::into_inner).client.clone();
        TlsConnector::from(config).connect(name, stream).await
    }
}

/// The name that the client's certificate proves.
pub fn caller_name(stream: &server::TlsStream<TcpStream>) -> Option<String> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    certificate.valid_uri_names().find_map(|uri| uri.strip_prefix(NAME_PREFIX).map(str::to_owned))
}

fn read(files: &TlsFiles) -> Result<[Vec<u8>; 3], String> {
    let read = |path: &PathBuf| std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()));
    Ok([read(&files.cert)?, read(&files.key)?, read(&files.ca)?])
}

impl Current {
    fn build(bytes: [Vec<u8>; 3], files: &TlsFiles) -> Result<Self, String> {
        let [cert, key, ca] = &bytes;
        let wrong = |path: &PathBuf, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let chain = certificates(cert).map_err(|error| wrong(&files.cert, &error))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| wrong(&files.key, &error))?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca).map_err(|error| wrong(&files.ca, &error))? {
            roots.add(certificate).map_err(|error| wrong(&files.ca, &error))?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let versions = [&rustls::version::TLS13];
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let verifier = verifier.map_err(|error| wrong(&files.ca, &error))?;
        let failed = |error: rustls::Error| wrong(&files.cert, &error);
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions)
            .map_err(failed)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(failed)?;
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(failed)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(failed)?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { read: bytes, server: Arc::new(server), client: Arc::new(client) })
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    if all.is_empty() { Err("holds no certificate".to_owned()) } else { Ok(all) }
}
