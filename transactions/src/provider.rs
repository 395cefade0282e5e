//! The payment provider: who charges cards, and pays back. A port with two implementations: HTTP, whose contract is docs/PROVIDER.md, and a sandbox.
//!
//! Every order carries a key of ours. The same key again is answered the same, and does nothing a second time; and by its key the provider is asked what
//! became of an order whose answer was lost.

mod http;
mod sandbox;

use std::sync::Arc;
use std::time::Duration;

use lastro_mesh::outbound::{Breaker, BreakerSettings};
use lastro_money::Amount;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Code;
use uuid::Uuid;

pub use self::http::{HttpProvider, Url};
use self::sandbox::Sandbox;
use crate::domain::payment::CardToken;
use crate::store::provider_calls::CallKind;

/// What one answer of a provider may take.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Orders that failed at once are sent again, so often in all, as long as there is time for another answer.
const ATTEMPTS_MAX: u32 = 3;
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// No attempt begins later.
const RETRY_UNTIL: Duration = Duration::from_millis(1500);

/// What is asked of a provider.
#[derive(Debug, Clone)]
pub struct Order {
    /// Ours, as [`key`] makes it.
    pub key: Uuid,
    pub amount: Amount,
    pub kind: OrderKind,
}

#[derive(Debug, Clone)]
pub enum OrderKind {
    /// Charge this card.
    Charge { card_token: CardToken },
    /// Pay so much of this charge back.
    Refund { charge: Uuid },
}

/// The key of an order: a UUIDv8 (RFC 9562) of SHA-256 over what is asked for, and the transaction's owner and key. It is the same again for the same
/// order of the same payer in a ledger that was restored from a backup, so that the provider, who remembers, charges nobody a second time.
/// A refund's is of its charge, too: the key of a merchant's refund may be that of another one in a ledger that was restored.
pub fn key(kind: CallKind, owner_id: Uuid, external_id: &str, charge: Option<Uuid>) -> Uuid {
    let purpose = match kind {
        CallKind::Charge => "charge",
        CallKind::Refund => "refund",
        CallKind::GiveBack => "give back",
    };
    let mut hash = Sha256::new();
    hash.update(b"lastro payment provider 1\0");
    hash.update(purpose);
    hash.update(b"\0");
    hash.update(owner_id);
    hash.update(external_id);
    if let Some(charge) = charge {
        hash.update(b"\0");
        hash.update(charge);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// What a provider has done about an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// As asked.
    Done,
    /// Nothing, and it will not, for this reason.
    Declined(String),
}

/// Why there is no answer. The text is for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The provider was not asked at all.
    NotSent(String),
    /// It may have done it, or not.
    Unknown(String),
    /// As unknown, and the provider is well: it does not take this one order, and asking again at once changes nothing.
    NotTaken(String),
    /// What was cancelled has never come to the provider, and does not any more.
    NeverCame,
}

impl Failure {
    pub fn text(&self) -> &str {
        match self {
            Self::NotSent(text) | Self::Unknown(text) | Self::NotTaken(text) => text,
            Self::NeverCame => "it was cancelled, and never came to the provider",
        }
    }
}

/// Who is asked.
pub struct Provider {
    /// Stored with everything that it is asked for.
    pub name: Arc<str>,
    implementation: Implementation,
    breaker: Breaker,
}

enum Implementation {
    Http(HttpProvider),
    Sandbox(Sandbox),
}

impl Provider {
    /// A provider that speaks HTTP.
    pub fn http(name: &str, provider: HttpProvider) -> Self {
        Self::of(name, Implementation::Http(provider))
    }

    /// The sandbox, which moves no money.
    pub fn sandbox() -> Self {
        Self::of("sandbox", Implementation::Sandbox(Sandbox::default()))
    }

    fn of(name: &str, implementation: Implementation) -> Self {
        let settings = BreakerSettings { slow_after: ANSWER_MAX, ..BreakerSettings::default() };
        Self { name: name.into(), implementation, breaker: Breaker::new("payment_provider", "write", settings) }
    }

    /// Sends an order. One that failed at once is sent again with the same key, which is no second order.
    pub async fn send(&self, order: &Order) -> Result<Answer, Failure> {
        let retry_until = Instant::now() + RETRY_UNTIL;
        let mut unknown = None;
        for attempt in 1..=ATTEMPTS_MAX {
            let failure = match self.guarded(self.send_once(order, attempt)).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            // What was sent once may have been done, whatever comes of the next attempt.
            if matches!(failure, Failure::Unknown(_)) {
                unknown = Some(failure.clone());
            }
            let is_taken = !matches!(failure, Failure::NotTaken(_));
            if !is_taken || attempt == ATTEMPTS_MAX || Instant::now() + RETRY_AFTER >= retry_until {
                return Err(unknown.unwrap_or(failure));
            }
            sleep(RETRY_AFTER * attempt).await;
        }
        Err(Failure::NotSent("no attempt was made".to_owned()))
    }

    /// What the provider has done about an order; None where it has never seen it.
    pub async fn find(&self, order: &Order) -> Result<Option<Answer>, Failure> {
        self.guarded(async {
            match &self.implementation {
                Implementation::Http(provider) => provider.find(order).await,
                Implementation::Sandbox(sandbox) => Ok(sandbox.find(order)),
            }
        })
        .await
    }

    async fn send_once(&self, order: &Order, attempt: u32) -> Result<Answer, Failure> {
        match &self.implementation {
            Implementation::Http(provider) => provider.send(order).await,
            Implementation::Sandbox(sandbox) => sandbox.send(order, attempt).await,
        }
    }

    /// Within the time of one answer, and not at all while the provider is known to be away. The sandbox is never away: it fails whoever asks it to.
    async fn guarded<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let permit = match (&self.implementation, self.breaker.acquire(false)) {
            (Implementation::Sandbox(_), _) => None,
            (Implementation::Http(_), Some(permit)) => Some(permit),
            (Implementation::Http(_), None) => return Err(Failure::NotSent("the payment provider is away; calls to it pause".to_owned())),
        };
        let result = timeout_at(Instant::now() + ANSWER_MAX, work).await;
        let result = result.unwrap_or_else(|_| Err(Failure::Unknown(format!("no answer within {} s", ANSWER_MAX.as_secs()))));
        if let Some(permit) = permit {
            // One order that it does not take says nothing about the orders of others.
            let is_well = matches!(result, Ok(_) | Err(Failure::NotTaken(_)));
            permit.report(if is_well { Code::Ok } else { Code::Unavailable });
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::{CallKind, key};

    /// docs/PROVIDER.md says how keys are made: providers remember them for years.
    #[test]
    fn keys_are_of_what_is_asked_for() {
        let (ana, bob) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let one = key(CallKind::Charge, ana, "lastro:payment:o1", None);
        assert_eq!(one, key(CallKind::Charge, ana, "lastro:payment:o1", None));
        assert_eq!((one.get_version_num(), one.get_variant()), (8, uuid::Variant::RFC4122));
        assert_ne!(key(CallKind::Refund, ana, "r", Some(one)), key(CallKind::Refund, ana, "r", Some(Uuid::from_u128(3))));
        for other in [
            key(CallKind::GiveBack, ana, "lastro:payment:o1", None),
            key(CallKind::Charge, bob, "lastro:payment:o1", None),
            key(CallKind::Charge, ana, "lastro:payment:o2", None),
        ] {
            assert_ne!(one, other);
        }
        assert_eq!(one.to_string(), "01e6fcd1-51d5-8c92-80d4-f88e97f68de1");
    }
}
