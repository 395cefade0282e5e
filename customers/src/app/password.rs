//! Passwords: argon2id with 19 MiB, t=2, p=1 (OWASP Password Storage Cheat Sheet), off the async threads, a bounded number at once. Whoever finds too
//! many waiting, or does not get its turn in time, is refused at once; registrations, which need no account, have a queue of their own, so that
//! they never keep anybody from logging in.

use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::{Output, PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use lastro_mesh::status::Problem;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use unicode_normalization::UnicodeNormalization as _;

use crate::Error;

/// Passwords that are checked at once. Each takes 19 MiB and a core.
const CHECKS_AT_ONCE: usize = 4;
/// New passwords that are hashed at once: about 50 a second.
const HASHES_AT_ONCE: usize = 1;
/// Those that may wait behind them.
const CHECKS_WAITING: usize = 128;
const HASHES_WAITING: usize = 64;
/// Nobody waits longer for its turn, nor than its call has time.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// What is needed after it.
const MARGIN: Duration = Duration::from_millis(100);
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;

pub struct Passwords {
    checks: Queue,
    hashes: Queue,
    /// Of a password that nobody knows: an unknown user costs as much time as a wrong password.
    decoy: String,
}

struct Queue {
    slots: Arc<Semaphore>,
    /// Those that have a slot, and those that wait for one.
    places: Semaphore,
}

impl Queue {
    fn new(at_once: usize, waiting: usize) -> Self {
        Self { slots: Arc::new(Semaphore::new(at_once)), places: Semaphore::new(at_once + waiting) }
    }

    async fn run<T: Send + 'static>(&self, by: Instant, work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
        let _place = self.places.try_acquire().map_err(|_| busy())?;
        let until = (Instant::now() + WAIT_MAX).min(by.checked_sub(MARGIN).unwrap_or(by));
        let slot = timeout_at(until, self.slots.clone().acquire_owned()).await.map_err(|_| busy())?.map_err(|_| busy())?;
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(slot);
            done
        });
        done.await.map_err(|error| Error::Crypto(error.to_string()))?
    }
}

fn busy() -> Error {
    Problem::crowded("too many passwords are being checked or registered; try again").retry_after(Duration::from_secs(1)).into()
}

impl Passwords {
    pub fn new() -> Result<Self, Error> {
        // Random bytes in place of a hash: checking a password against them takes as long, and they are the hash of nothing known.
        let salt = SaltString::encode_b64(&rand::random::<[u8; 16]>()).map_err(crypto)?;
        let hash = Output::new(&rand::random::<[u8; 32]>()).map_err(crypto)?;
        let decoy = format!("$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p=1${salt}${hash}");
        Ok(Self { checks: Queue::new(CHECKS_AT_ONCE, CHECKS_WAITING), hashes: Queue::new(HASHES_AT_ONCE, HASHES_WAITING), decoy })
    }

    /// The hash to store for somebody who registers, in PHC format, by an instant.
    pub async fn hash_of_new(&self, by: Instant, password: String) -> Result<String, Error> {
        self.hashes.run(by, move || hash(&password)).await
    }

    /// The hash to store for somebody who has shown the present password, by an instant: who registers does not keep it from its turn.
    pub async fn hash_of_changed(&self, by: Instant, password: String) -> Result<String, Error> {
        self.checks.run(by, move || hash(&password)).await
    }

    /// Whether a password is the one of this hash, by an instant. None, an unknown user, is never, and takes as long.
    pub async fn verify(&self, by: Instant, password: String, hash: Option<String>) -> Result<bool, Error> {
        let (known, password) = (hash.is_some(), prepared(&password));
        let hash = hash.unwrap_or_else(|| self.decoy.clone());
        let work = move || {
            let hash = PasswordHash::new(&hash).map_err(crypto)?;
            Ok(argon2()?.verify_password(password.as_bytes(), &hash).is_ok())
        };
        Ok(self.checks.run(by, work).await? && known)
    }
}

fn hash(password: &str) -> Result<String, Error> {
    let salt = SaltString::encode_b64(&rand::random::<[u8; 16]>()).map_err(crypto)?;
    Ok(argon2()?.hash_password(prepared(password).as_bytes(), &salt).map_err(crypto)?.to_string())
}

/// As RFC 8265 (OpaqueString) prepares a password, so that it is the same however a keyboard composes its letters: every space is the ASCII one, and
/// the text is in NFC. Nothing is taken away.
fn prepared(password: &str) -> String {
    let spaces = |letter: char| if letter.is_whitespace() && !letter.is_control() { ' ' } else { letter };
    password.chars().map(spaces).nfc().collect()
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

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    /// Whoever comes to a full queue is told at once, and whoever has no time left before its turn; the other queue is not touched.
    #[tokio::test]
    async fn a_queue_ends_and_refuses_by_deadline() {
        let queue = Arc::new(Queue::new(1, 2));
        let (release, held) = std::sync::mpsc::channel::<()>();
        let first = tokio::spawn({
            let queue = queue.clone();
            async move { queue.run(soon(), move || held.recv().map_err(|error| Error::Crypto(error.to_string()))).await }
        });
        while queue.slots.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let by = Instant::now() + MARGIN + Duration::from_millis(50);
        assert!(matches!(queue.run(by, || Ok(())).await, Err(Error::Problem(_))));
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.run(soon(), || Ok(())).await })
            })
            .collect();
        while queue.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(queue.run(soon(), || Ok(())).await, Err(Error::Problem(_))));
        release.send(()).expect("the first waits");
        for one in [first].into_iter().chain(waiting) {
            one.await.expect("no panic").expect("its turn");
        }
    }

    #[tokio::test]
    async fn only_the_password_itself_is_the_password() {
        let passwords = Passwords::new().expect("random bytes");
        let hash = passwords.hash_of_new(soon(), "correct horse".to_owned()).await.expect("a hash");
        let verify =
            async |password: &str, hash: Option<&str>| passwords.verify(soon(), password.to_owned(), hash.map(str::to_owned)).await.expect("a check");
        assert!(verify("correct horse", Some(&hash)).await);
        assert!(!verify("correct horse ", Some(&hash)).await);
        let composed = passwords.hash_of_new(soon(), "caf\u{e9} de cr\u{e8}me".to_owned()).await.expect("a hash");
        assert!(verify("cafe\u{301} de\u{a0}cre\u{300}me", Some(&composed)).await, "the same letters, typed on another keyboard");
        assert!(!verify("cafe de creme", Some(&composed)).await);
        // An unknown user: a check that runs, and is never right.
        assert!(!verify("correct horse", None).await);
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(passwords.decoy.starts_with("$argon2id$v=19$m=19456,t=2,p=1$") && PasswordHash::new(&passwords.decoy).is_ok());
    }
}
