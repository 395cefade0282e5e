//! Tokens that must not be believed.

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::World;
use crate::ledger::Ledger;

pub async fn forged_and_stale_tokens_are_refused(world: &World) -> Result<()> {
    let api = world.server.api();
    let someone = api.someone().await?;
    let parts: Vec<&str> = someone.token.split('.').collect();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1])?)?;
    let kid = jsonwebtoken::decode_header(&someone.token)?.kid;
    // The true key, so that only the one thing that is wrong with each token is wrong.
    let (private_key, public_key) = Ledger::of(world).await?.signing_key().await?;
    let sign = |change: &dyn Fn(&mut Value)| -> Result<String> {
        let mut claims = claims.clone();
        change(&mut claims);
        let header = Header { kid: kid.clone(), ..Header::new(Algorithm::EdDSA) };
        Ok(jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(&private_key))?)
    };
    let good = sign(&|_| {})?;
    assert_eq!(api.get("/api/v1/users/me", Some(&good)).await?.status, 200, "the forger must be able to make a good one");

    let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let unsigned = format!("{}.{}.", encode(json!({ "alg": "none", "typ": "JWT", "kid": kid })), parts[1]);
    let confused_header = Header { kid: kid.clone(), ..Header::new(Algorithm::HS256) };
    let mut confused = Vec::new();
    for secret in [public_key.as_bytes().to_vec(), URL_SAFE_NO_PAD.decode(&public_key)?] {
        confused.push(jsonwebtoken::encode(&confused_header, &claims, &EncodingKey::from_secret(&secret))?);
    }
    let other_kid = Header { kid: Some("unknown".to_owned()), ..Header::new(Algorithm::EdDSA) };
    let mut tampered = claims.clone();
    tampered["permissions"] = json!(["read:all", "write:deposits"]);
    let mut refused = vec![
        ("expired", sign(&|claims| claims["exp"] = json!(claims["iat"].as_i64().unwrap_or_default() - 1))?),
        ("expired a second ago", sign(&|claims| claims["exp"] = json!(lastro_mesh::clock::now_s() - 1))?),
        ("not yet valid", sign(&|claims| claims["nbf"] = json!(lastro_mesh::clock::now_s() + 60))?),
        ("other issuer", sign(&|claims| claims["iss"] = json!("somebody"))?),
        ("other audience", sign(&|claims| claims["aud"] = json!("somebody"))?),
        ("alg none", unsigned),
        ("tampered claims", format!("{}.{}.{}", parts[0], encode(tampered), parts[2])),
        ("signature cut off", format!("{}.{}.", parts[0], parts[1])),
        ("unknown key", jsonwebtoken::encode(&other_kid, &claims, &EncodingKey::from_ed_der(&private_key))?),
        ("refresh token", someone.refresh_token.clone()),
        ("garbage", "garbage".to_owned()),
    ];
    for claim in ["sub", "iss", "aud", "exp", "nbf", "sid"] {
        refused.push(("a claim is missing", sign(&|claims| claims.as_object_mut().map(|claims| claims.remove(claim)).map_or((), drop))?));
    }
    refused.extend(confused.into_iter().map(|token| ("HS256 with the public key", token)));
    for (what, token) in refused {
        for path in ["/api/v1/users/me", "/api/v1/accounts"] {
            let answer = api.get(path, Some(&token)).await?;
            assert_eq!((answer.status, answer.body["reason"].clone()), (401, json!("UNAUTHENTICATED")), "{what} at {path}");
        }
    }
    for header in ["", "Bearer", "Bearer ", "Basic dTpw", &someone.token] {
        let answer = api.send(reqwest::Method::GET, "/api/v1/accounts", &[("authorization", header)], None).await?;
        assert_eq!(answer.status, 401, "{header:?}");
    }
    Ok(())
}
