//! The sandbox: a payment provider that moves no money, and answers by the token of the card. docs/PROVIDER.md lists the tokens.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use super::{ANSWER_MAX, Answer, Failure, Order, OrderKind};

/// Orders that were sent are remembered, to be told apart from those that never came; beyond so many, it begins anew.
const SEEN_MAX: usize = 100_000;

#[derive(Default)]
pub struct Sandbox {
    seen: Mutex<HashSet<Uuid>>,
}

impl Sandbox {
    pub async fn send(&self, order: &Order, attempt: u32) -> Result<Answer, Failure> {
        match token(order) {
            "tok_fail_once" if attempt == 1 && !self.note(order.key) => {
                return Err(Failure::Unknown("the sandbox fails the first attempt".to_owned()));
            }
            "tok_timeout" => {
                self.note(order.key);
                tokio::time::sleep(ANSWER_MAX * 2).await;
            }
            _ => {
                self.note(order.key);
            }
        }
        Ok(answer(order))
    }

    pub fn find(&self, order: &Order) -> Option<Answer> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // What it would have said is known by the token, also after a restart; of one that fails once, nothing is done by its first attempt.
        let is_done = token(order) == "tok_timeout" || (seen.contains(&order.key) && token(order) != "tok_fail_once");
        is_done.then(|| answer(order))
    }

    /// Remembers an order; whether it was seen before.
    fn note(&self, key: Uuid) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= SEEN_MAX {
            seen.clear();
        }
        !seen.insert(key)
    }
}

fn token(order: &Order) -> &str {
    match &order.kind {
        OrderKind::Charge { card_token } => card_token.reveal(),
        OrderKind::Refund { .. } => "tok_approve",
    }
}

fn answer(order: &Order) -> Answer {
    match token(order) {
        "tok_approve" | "tok_timeout" | "tok_fail_once" => Answer::Done,
        "tok_decline" => Answer::Declined("CARD_DECLINED".to_owned()),
        _ => Answer::Declined("UNKNOWN_TOKEN".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use lastro_money::{Amount, Currency, Minor};

    use super::super::{CardToken, Provider};
    use super::*;

    fn charge(key: u128, card_token: &str) -> Order {
        let amount = Amount::new(Minor::new(100), Currency::from_code("BRL").expect("a currency"));
        Order { key: Uuid::from_u128(key), amount, kind: OrderKind::Charge { card_token: CardToken::new(card_token) } }
    }

    #[tokio::test(start_paused = true)]
    async fn each_token_does_as_documented() {
        let provider = Provider::sandbox();
        assert_eq!(provider.send(&charge(1, "tok_approve")).await, Ok(Answer::Done));
        assert_eq!(provider.send(&charge(2, "tok_decline")).await, Ok(Answer::Declined("CARD_DECLINED".to_owned())));
        assert_eq!(provider.send(&charge(3, "4111")).await, Ok(Answer::Declined("UNKNOWN_TOKEN".to_owned())));
        assert_eq!(provider.find(&charge(4, "tok_approve")).await, Ok(None), "it was never sent");
        assert!(matches!(provider.send(&charge(5, "tok_timeout")).await, Err(Failure::Unknown(_))));
        assert_eq!(provider.find(&charge(5, "tok_timeout")).await, Ok(Some(Answer::Done)));
        // The first attempt of each payment fails, and the next one is made at once.
        assert_eq!(provider.send(&charge(6, "tok_fail_once")).await, Ok(Answer::Done));
        assert_eq!(provider.send(&charge(7, "tok_fail_once")).await, Ok(Answer::Done));
    }
}
