//! Access tokens: JWT signed with Ed25519. Every service verifies every token itself, from public keys that it also keeps on disk;
//! a verified token is cached by its SHA-256, expiry and session checked on every hit: one verification a token, not a call.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Revocations, User};
use crate::clock;

/// `iss` and `aud` of every token.
pub const ISSUER: &str = "lastro";
/// A verified token is looked at again after so long.
const CACHE_TTL: Duration = Duration::from_secs(60);
/// Verified tokens that are remembered.
const TOKENS_CACHED: usize = 100_000;
/// The keys are asked for so often, and for an unknown `kid` no more often than that.
const REFRESH_INTERVAL: Duration = Duration::from_secs(10);
/// Until customers answers.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The claims of an access token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claims {
    /// The user.
    pub sub: Uuid,
    /// [`ISSUER`].
    pub iss: String,
    /// [`ISSUER`].
    pub aud: String,
    /// Unix seconds.
    pub exp: i64,
    /// Unix seconds.
    pub iat: i64,
    /// Unix seconds.
    pub nbf: i64,
    /// Unique to the token.
    pub jti: Uuid,
    /// The session.
    pub sid: Uuid,
    /// For clients to show; services look at permissions.
    pub roles: Vec<String>,
    /// What the user may do.
    pub permissions: Vec<String>,
    /// How often all of the user's tokens were revoked before this one was signed. Absent in tokens from before there was such a thing.
    #[serde(default)]
    pub ver: i64,
}

/// A public key that verifies tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey {
    /// Key id, as in a token's header.
    pub kid: String,
    /// Ed25519 public key, base64url without padding.
    pub x: String,
}

/// Asks customers for the public keys.
pub type KeySource = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Option<Vec<PublicKey>>> + Send>> + Send + Sync>;

/// Why a token proves nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Whatever is wrong with it. The caller learns no more than that.
    Invalid,
    /// It names a key that is not known here, and customers cannot be asked now: it may be good.
    KeysUnknown,
}

/// Verifies access tokens.
pub struct TokenVerifier {
    keys: RwLock<HashMap<String, Arc<DecodingKey>>>,
    source: KeySource,
    /// When the source was last asked; the lock keeps it to one at a time.
    asked: Mutex<Option<Instant>>,
    disk: Option<PathBuf>,
    /// With when it was verified.
    verified: Cache<[u8; 32], (Instant, Arc<User>)>,
    revoked: Revocations,
}

impl TokenVerifier {
    /// A verifier that gets its keys from `source` and remembers them in the file `disk`, so that a service can start while
    /// customers is away.
    pub fn new(source: KeySource, disk: Option<PathBuf>, revoked: Revocations) -> Self {
        let verifier = Self { keys: RwLock::default(), source, asked: Mutex::new(None), verified: Cache::new(TOKENS_CACHED), disk, revoked };
        let remembered = verifier.disk.as_ref().and_then(|path| std::fs::read(path).ok());
        if let Some(keys) = remembered.and_then(|bytes| serde_json::from_slice::<Vec<PublicKey>>(&bytes).ok()) {
            verifier.install(&keys);
        }
        verifier
    }

    /// The user whom a token proves.
    pub async fn verify(&self, token: &str) -> Result<Arc<User>, Refusal> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let user = match self.verified.get(&digest).filter(|(at, _)| at.elapsed() < CACHE_TTL) {
            Some((_, user)) => user,
            None => {
                let user = Arc::new(self.verify_signature(token).await?);
                self.verified.insert(digest, (Instant::now(), user.clone()));
                user
            }
        };
        let lives = user.expires_s > clock::now_s() && !self.revoked.covers(&user);
        if lives { Ok(user) } else { Err(Refusal::Invalid) }
    }

    /// Whether any token can be verified.
    pub fn has_keys(&self) -> bool {
        !self.keys.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    async fn verify_signature(&self, token: &str) -> Result<User, Refusal> {
        // The header is read before the signature is checked, to find the key; only its algorithm that we pin counts.
        let kid = jsonwebtoken::decode_header(token).ok().and_then(|header| header.kid).ok_or(Refusal::Invalid)?;
        let key = match self.key(&kid) {
            Some(key) => key,
            None if self.refresh().await => self.key(&kid).ok_or(Refusal::Invalid)?,
            None => return Err(Refusal::KeysUnknown),
        };
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[ISSUER]);
        validation.validate_nbf = true;
        validation.leeway = 0;
        let claims = jsonwebtoken::decode::<Claims>(token, &key, &validation).map_err(|_| Refusal::Invalid)?.claims;
        Ok(User { id: claims.sub, session_id: claims.sid, expires_s: claims.exp, permissions: claims.permissions, token_version: claims.ver })
    }

    /// Asks for the keys again and again, until told to stop: a key that is about to sign is known before it does, and a retired one is
    /// forgotten.
    pub async fn keep_fresh(&self, stop: CancellationToken) {
        loop {
            let pause = if self.refresh().await { REFRESH_INTERVAL } else { RETRY_INTERVAL };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn key(&self, kid: &str) -> Option<Arc<DecodingKey>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).get(kid).cloned()
    }

    /// Asks for the keys again, unless that was done just now; false when nobody answers.
    async fn refresh(&self) -> bool {
        let mut asked = self.asked.lock().await;
        if asked.is_some_and(|at| at.elapsed() < REFRESH_INTERVAL) {
            return true;
        }
        let Some(keys) = (self.source)().await else { return false };
        *asked = Some(Instant::now());
        self.install(&keys);
        if let Some(path) = &self.disk
            && let Err(error) = keep(path, &keys)
        {
            tracing::warn!(%error, "the public keys could not be kept on disk");
        }
        true
    }

    fn install(&self, keys: &[PublicKey]) {
        let decoded = keys.iter().filter_map(|key| Some((key.kid.clone(), Arc::new(DecodingKey::from_ed_components(&key.x).ok()?))));
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = decoded.collect();
    }
}

/// Whole or not at all: replicas share the file.
fn keep(path: &Path, keys: &[PublicKey]) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let draft = path.with_extension(format!("{}.draft", Uuid::new_v4().simple()));
    options.open(&draft)?.write_all(&serde_json::to_vec(keys)?)?;
    std::fs::rename(&draft, path)
}
