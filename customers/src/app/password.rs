//! Passwords: argon2id with 19 MiB, t=2, p=1 (OWASP Password Storage Cheat Sheet), off the async threads, a bounded number at once.

use std::sync::Arc;

use argon2::password_hash::{Output, PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::Semaphore;

use crate::Error;

/// Each takes 19 MiB and a core.
const AT_ONCE_MAX: usize = 4;
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;

pub struct Passwords {
    slots: Arc<Semaphore>,
    /// Of a password that nobody knows: an unknown user costs as much time as a wrong password.
    decoy: String,
}

impl Passwords {
    pub fn new() -> Result<Self, Error> {
        // Random bytes in place of a hash: checking a password against them takes as long, and they are the hash of nothing known.
        let salt = SaltString::encode_b64(&rand::random::<[u8; 16]>()).map_err(crypto)?;
        let hash = Output::new(&rand::random::<[u8; 32]>()).map_err(crypto)?;
        let decoy = format!("$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p=1${salt}${hash}");
        Ok(Self { slots: Arc::new(Semaphore::new(AT_ONCE_MAX)), decoy })
    }

    /// The hash to store, in PHC format.
    pub async fn hash(&self, password: String) -> Result<String, Error> {
        self.run(move || {
            let salt = SaltString::encode_b64(&rand::random::<[u8; 16]>()).map_err(crypto)?;
            Ok(argon2()?.hash_password(password.as_bytes(), &salt).map_err(crypto)?.to_string())
        })
        .await
    }

    /// Whether a password is the one of this hash. None, an unknown user, is never, and takes as long.
    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, Error> {
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.decoy.clone());
        let same = self
            .run(move || {
                let hash = PasswordHash::new(&hash).map_err(crypto)?;
                Ok(argon2()?.verify_password(password.as_bytes(), &hash).is_ok())
            })
            .await?;
        Ok(same && known)
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
        let slot = self.slots.clone().acquire_owned().await.map_err(|error| Error::Crypto(error.to_string()))?;
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(slot);
            done
        });
        done.await.map_err(|error| Error::Crypto(error.to_string()))?
    }
}

fn argon2() -> Result<Argon2<'static>, Error> {
    let params = Params::new(MEMORY_KIB, PASSES, 1, None).map_err(|error| Error::Crypto(error.to_string()))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn crypto(error: argon2::password_hash::Error) -> Error {
    Error::Crypto(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_password_itself_is_the_password() {
        let passwords = Passwords::new().expect("random bytes");
        let hash = passwords.hash("correct horse".to_owned()).await.expect("a hash");
        let verify =
            async |password: &str, hash: Option<&str>| passwords.verify(password.to_owned(), hash.map(str::to_owned)).await.expect("a check");
        assert!(verify("correct horse", Some(&hash)).await);
        assert!(!verify("correct horse ", Some(&hash)).await);
        // An unknown user: a check that runs, and is never right.
        assert!(!verify("correct horse", None).await);
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(passwords.decoy.starts_with("$argon2id$v=19$m=19456,t=2,p=1$") && PasswordHash::new(&passwords.decoy).is_ok());
    }
}
