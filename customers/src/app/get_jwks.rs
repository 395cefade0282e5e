//! The public keys.

use lastro_proto::customers::v1::{Jwk, Jwks};

use super::App;
use crate::Error;

/// As RFC 7517 and RFC 8037 have it.
pub async fn get_jwks(app: &App) -> Result<Jwks, Error> {
    let text = str::to_owned;
    let jwk = |key: lastro_mesh::identity::PublicKey| Jwk {
        kty: text("OKP"),
        crv: text("Ed25519"),
        x: key.x,
        kid: key.kid,
        alg: text("EdDSA"),
        r#use: text("sig"),
    };
    Ok(Jwks { keys: app.public_keys().await?.into_iter().map(jwk).collect() })
}
