//! What the public surface tells, beside what the model has.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::ledger::{Caller, Leg, State, Transaction};
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

    /// Every balance. What has run out is released within a second (`holds::holds_run_out`); where the machine stands still for a moment it is later, which is
    /// printed, and is a failure after five.
    pub(super) async fn compare_balances(&mut self) -> Result<()> {
        const RELEASED_WITHIN: Duration = Duration::from_secs(5);
        let since = Instant::now();
        let mut is_late = false;
        loop {
            let compared = self.compare_balances_now().await;
            let expired_lately = |sent: &Sent| sent.expires_ms.is_some_and(|expires| expires + RELEASED_WITHIN.as_millis() as u64 > now_ms());
            if compared.is_ok() || since.elapsed() > RELEASED_WITHIN || !self.sent.iter().any(expired_lately) {
                if is_late {
                    eprintln!(
                        "a hold that had run out was compared again for {:.1?}: {}",
                        since.elapsed(),
                        if compared.is_ok() { "released" } else { "not released" }
                    );
                }
                return compared;
            }
            is_late = true;
            tokio::time::sleep(Duration::from_millis(100)).await;
            self.settle_expiries(400).await;
        }
    }

    async fn compare_balances_now(&self) -> Result<()> {
        // What has run out by now is released within a second, and is compared when it is.
        let before = now_ms();
        let is_open = |sent: &Sent| sent.expires_ms.is_some_and(|expires| expires > before.saturating_sub(1200) && expires < before + 400);
        if self.sent.iter().any(|sent| is_open(sent) && [State::Authorized, State::Expired].contains(&self.ledger.transactions[sent.place].state)) {
            return Ok(());
        }
        for (account, id) in self.ledger.accounts.iter().zip(&self.ids) {
            let told = self.api.get(&format!("/api/v1/accounts/{id}"), Some(&self.users[account.owner].token)).await?.body;
            let state = if account.closed {
                "CLOSED"
            } else if account.frozen {
                "FROZEN"
            } else {
                "OPEN"
            };
            let available = account.posted - account.held + account.limit;
            let of = |minor| money(account.currency, minor);
            let expected = [of(account.posted), of(account.held), of(available), of(account.limit), json!(state), json!(account.name)];
            let told = ["posted", "held", "available", "creditLimit", "state", "displayName"].map(|name| told[name].clone());
            ensure!(told == expected, "an account: expected {expected:?}, told {told:?}");
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
