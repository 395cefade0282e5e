//! What the public surface tells, beside what the model has.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::ledger::{Account, Caller, Leg, State, Transaction};
use super::player::{ACCOUNTS, Player, Sent, money, now_ms};

impl Player {
    /// A transaction as its submitter sees it.
    pub(super) fn same(&self, expected: &Transaction, reader: Caller, told: &Value) -> Result<()> {
        let (state, reason, leg) = match expected.state {
            State::Authorized => ("AUTHORIZED", "", None),
            State::Completed => ("COMPLETED", "", None),
            State::Rejected { leg, reason } => ("REJECTED", reason, Some(leg).filter(|_| expected.has_legs)),
            State::Declined { reason } => ("REJECTED", reason, None),
            State::Voided => ("VOIDED", "", None),
            State::Expired => ("EXPIRED", "", None),
        };
        ensure!(told["state"] == state && told["reason"] == reason, "expected {state} {reason}: {told}");
        ensure!(told["rejectedLeg"] == json!(leg), "expected leg {leg:?}: {told}");
        ensure!(told["hold"] == json!(expected.hold), "{told}");
        let currency = |leg: &Leg| ACCOUNTS[leg.from.or(leg.to).unwrap_or_default()].1;
        let captured = expected.captured.map_or(Value::Null, |captured| money(currency(&expected.legs[0]), captured));
        ensure!(told["capturedAmount"] == captured, "expected {captured}: {told}");
        let id = |place: Option<usize>| place.map(|place| self.sent[place].id.clone()).unwrap_or_default();
        if expected.reversal.is_none_or(|place| place < self.sent.len()) {
            ensure!(told["reversalId"] == id(expected.reversal) && told["originalId"] == id(expected.original), "{told}");
        }
        let sees = |account: usize| reader == Caller::Administrator || reader == Caller::User(ACCOUNTS[account].0);
        let sides = expected.legs.iter().flat_map(|leg| {
            let moved = expected.captured.unwrap_or(leg.amount);
            [(leg.from, -moved, currency(leg)), (leg.to, moved, currency(leg))]
        });
        let seen = sides.zip(&expected.after).filter_map(|((account, amount, currency), after)| {
            let account = account.filter(|account| sees(*account))?;
            Some(json!({ "accountId": self.ids[account], "amount": money(currency, amount), "balanceAfter": money(currency, (*after)?) }))
        });
        let seen: Vec<Value> = seen.collect();
        ensure!(told["postings"] == json!(seen), "expected {}: {told}", json!(seen));
        Ok(())
    }

    /// A transaction as its submitter reads it.
    pub(super) async fn compare_one(&self, place: usize) -> Result<()> {
        let expected = &self.ledger.transactions[place];
        let told = self.api.get(&format!("/api/v1/transactions/{}", self.sent[place].id), Some(self.token(expected.submitter))).await?;
        ensure!(told.status == 200, "{told:?}");
        self.same(expected, expected.submitter, &told.body)
    }

    /// Every balance. What has run out by now is released within a second (`holds::holds_run_out`), and is compared when it is. Where the machine stands still for
    /// a moment that is later: then the account still holds more, and nothing else differs; it is looked at again, and is a failure after five seconds.
    pub(super) async fn compare_balances(&mut self) -> Result<()> {
        const RELEASED_WITHIN: Duration = Duration::from_secs(5);
        let before = now_ms();
        let is_open = |sent: &Sent| sent.expires_ms.is_some_and(|expires| expires > before.saturating_sub(1200) && expires < before + 400);
        if self.sent.iter().any(|sent| is_open(sent) && [State::Authorized, State::Expired].contains(&self.ledger.transactions[sent.place].state)) {
            return Ok(());
        }
        let lately = |sent: &Sent| sent.expires_ms.is_some_and(|expires| expires <= before && before < expires + RELEASED_WITHIN.as_millis() as u64);
        let has_expired = self.sent.iter().any(|sent| lately(sent) && self.ledger.transactions[sent.place].state == State::Expired);
        // The next one runs out then: what is late by that time is compared after the next step.
        let next = self.sent.iter().filter_map(|sent| sent.expires_ms).filter(|expires| *expires > before).min().unwrap_or(u64::MAX);
        for (account, id) in self.ledger.accounts.iter().zip(&self.ids) {
            let since = Instant::now();
            loop {
                let told = self.api.get(&format!("/api/v1/accounts/{id}"), Some(&self.users[account.owner].token)).await?.body;
                let (expected, told) = (shown(account), FIELDS.map(|name| told[name].clone()));
                let is_late = has_expired && since.elapsed() < RELEASED_WITHIN && holds_more(&told, &expected);
                ensure!(told == expected || is_late, "an account: expected {expected:?}, told {told:?}");
                if told == expected {
                    break;
                }
                if now_ms() + 200 > next {
                    return Ok(());
                }
                eprintln!("a hold that has run out is released late: {:.1?}", since.elapsed());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    /// Every balance and every state, when nothing is about to run out.
    pub(super) async fn compare(&mut self) -> Result<()> {
        self.settle_expiries(2000).await;
        tokio::time::sleep(Duration::from_millis(if self.sent.iter().any(|sent| sent.expires_ms.is_some()) { 1300 } else { 0 })).await;
        self.compare_balances().await?;
        for sent in &self.sent {
            self.compare_one(sent.place).await?;
        }
        Ok(())
    }
}

const FIELDS: [&str; 6] = ["posted", "held", "available", "creditLimit", "state", "displayName"];

/// An account as the model has it.
fn shown(account: &Account) -> [Value; 6] {
    let state = if account.closed {
        "CLOSED"
    } else if account.frozen {
        "FROZEN"
    } else {
        "OPEN"
    };
    let available = account.posted - account.held + account.limit;
    let of = |minor| money(account.currency, minor);
    [of(account.posted), of(account.held), of(available), of(account.limit), json!(state), json!(account.name)]
}

/// Whether an account differs in nothing but that it holds more, and has less available.
fn holds_more(told: &[Value; 6], expected: &[Value; 6]) -> bool {
    let minor = |value: &Value| value["amount"].as_str().and_then(|amount| amount.replace('.', "").parse::<i64>().ok());
    let more = minor(&told[1]).zip(minor(&expected[1])).is_some_and(|(told, expected)| told > expected);
    more && [0, 3, 4, 5].iter().all(|field| told[*field] == expected[*field])
}
