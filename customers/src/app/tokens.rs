//! Making tokens: access tokens are JWT signed with Ed25519, refresh tokens are opaque and known only by the SHA-256 of their secret.

use std::sync::{PoisonError, RwLock};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use lastro_database::Database;
use lastro_mesh::clock;
use lastro_mesh::identity::Claims;
use lastro_mesh::identity::token::ISSUER;
use lastro_proto::customers::v1::TokenResponse;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::domain::role::Roles;
use crate::store::keys::{self, SigningKey};
use crate::store::users::User;
use crate::{Error, Settings};

/// Clocks of services may differ by so much.
const CLOCK_SKEW_S: i64 = 5;

/// The key that signs. Which one that is follows from the table and the clock alone, so that all replicas agree.
pub struct Signer(RwLock<Current>);

struct Current {
    kid: String,
    key: EncodingKey,
}

impl Signer {
    /// The key that signs now.
    pub async fn load(database: &Database) -> Result<Self, Error> {
        Ok(Self(RwLock::new(current(database).await?)))
    }

    /// Looks again, since another process may have rotated the keys.
    pub async fn refresh(&self, database: &Database) -> Result<(), Error> {
        let now = current(database).await?;
        let mut signing = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if signing.kid != now.kid {
            tracing::info!(kid = now.kid, "a new key signs");
            *signing = now;
        }
        Ok(())
    }

    /// An access token for a session.
    pub fn sign(&self, user: &User, session_id: Uuid, roles: &Roles, ttl_s: i64) -> Result<String, Error> {
        let now = clock::now_s();
        let claims = Claims {
            sub: user.id,
            iss: ISSUER.to_owned(),
            aud: ISSUER.to_owned(),
            exp: now + ttl_s,
            iat: now,
            nbf: now - CLOCK_SKEW_S,
            jti: Uuid::new_v4(),
            sid: session_id,
            roles: roles.names(),
            permissions: roles.permissions(),
            ver: user.token_version,
        };
        let signing = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let header = Header { kid: Some(signing.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, &claims, &signing.key).map_err(|error| Error::Crypto(error.to_string()))
    }
}

async fn current(database: &Database) -> Result<Current, Error> {
    let now_us = clock::now_us();
    let key = keys::list(database.writer(), now_us).await?.into_iter().find(|key| key.sign_from_us <= now_us);
    let key = key.ok_or_else(|| Error::Crypto("there is no signing key; `lastro migrate` makes the first one".to_owned()))?;
    Ok(Current { kid: key.kid, key: EncodingKey::from_ed_der(&key.private_key) })
}

/// A key that signs from an instant on.
pub fn generate(sign_from_us: i64) -> Result<SigningKey, Error> {
    let random = aws_lc_rs::rand::SystemRandom::new();
    let failed = |_| Error::Crypto("an Ed25519 key could not be made".to_owned());
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).map_err(failed)?;
    let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).map_err(|error| Error::Crypto(error.to_string()))?;
    Ok(SigningKey {
        kid: clock::new_id().simple().to_string(),
        private_key: pkcs8.as_ref().to_vec(),
        public_key: URL_SAFE_NO_PAD.encode(pair.public_key().as_ref()),
        create_time_us: clock::now_us(),
        sign_from_us,
        retire_us: None,
    })
}

/// A refresh token: which session, and a secret that only the client has.
pub struct RefreshToken {
    pub session_id: Uuid,
    secret: [u8; 32],
}

impl RefreshToken {
    /// A new one.
    pub fn new(session_id: Uuid) -> Self {
        Self { session_id, secret: rand::random() }
    }

    /// Reads what a client sent.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (id, secret) = bytes.split_at_checked(16)?;
        Some(Self { session_id: Uuid::from_slice(id).ok()?, secret: secret.try_into().ok()? })
    }

    /// What a client keeps.
    pub fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode([self.session_id.as_bytes().as_slice(), &self.secret].concat())
    }

    /// What the database keeps. The secret has 256 bits of randomness, so a plain hash is enough.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret).into()
    }
}

/// The pair as it is answered.
pub fn response(access_token: String, refresh: &RefreshToken, settings: &Settings) -> TokenResponse {
    TokenResponse {
        access_token,
        refresh_token: refresh.text(),
        token_type: "Bearer".to_owned(),
        expires_in: i32::try_from(settings.access_ttl_s).unwrap_or(i32::MAX),
    }
}
