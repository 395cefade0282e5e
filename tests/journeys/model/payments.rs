//! Payments and refunds, against the model.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::ledger::{Caller, Kind, Leg, Minor, State};
use super::player::{ACCOUNTS, Player, money};
use super::steps::Movement;

impl Player {
    /// A payment from one account of the payer, or by card, to others of its currency.
    pub(super) async fn pay(&mut self, movement: &Movement, card: bool, declined: bool) -> Result<()> {
        let (caller, legs) = self.legs_of(movement);
        let Some(from) = legs[0].from else { return Ok(()) };
        let fits = |leg: &&Leg| leg.to.is_some_and(|to| to != from && ACCOUNTS[to].1 == ACCOUNTS[from].1);
        let legs: Vec<Leg> = legs.iter().filter(fits).map(|leg| Leg { from: (!card).then_some(from), ..*leg }).collect();
        if legs.is_empty() {
            return Ok(());
        }
        let order = self.key();
        let asked =
            |leg: &Leg| json!({ "destinationAccountId": leg.to.map(|to| self.ids[to].clone()), "amount": money(ACCOUNTS[from].1, leg.amount) });
        let mut body = json!({ "orderId": order, "legs": legs.iter().map(asked).collect::<Vec<_>>() });
        if card {
            (body["method"], body["cardToken"]) = (json!("CARD"), json!(if declined { "tok_decline" } else { "tok_approve" }));
        } else {
            (body["method"], body["accountId"]) = (json!("ACCOUNT"), json!(self.ids[from]));
        }
        let answer = self.post(caller, "/api/v1/payments/process", &body).await?;
        ensure!(answer.status == 201, "{answer:?}");
        let place = self.ledger.pay(caller, &legs, declined);
        let state = if self.ledger.transactions[place].state == State::Completed { "CAPTURED" } else { "DECLINED" };
        ensure!(answer.body["state"] == state, "expected {state}: {answer:?}");
        self.note(body.clone(), place, &answer.body)?;
        let again = self.post(caller, "/api/v1/payments/process", &body).await?;
        ensure!(again.status == 200 && again.body["id"] == answer.body["id"] && again.body["replayed"] == json!(true), "{again:?}");
        self.compare_one(place).await
    }

    pub(super) async fn refund(&mut self, of: u8, by: u8, part: u8) -> Result<()> {
        let payments: Vec<usize> = (0..self.sent.len()).filter(|place| self.ledger.transactions[*place].kind == Kind::Payment).collect();
        let Some(place) = (!payments.is_empty()).then(|| payments[usize::from(of) % payments.len()]) else { return Ok(()) };
        let payment = self.ledger.transactions[place].clone();
        // Mostly by whoever may.
        let caller = if by.is_multiple_of(2) { Caller::Administrator } else { self.caller(by / 2) };
        if !Self::sees(caller, &payment) {
            return Ok(());
        }
        let whole: Minor = payment.legs.iter().map(|leg| leg.amount).sum();
        let amount = (!part.is_multiple_of(3)).then(|| Minor::max(1, whole * Minor::from(part) / 256));
        let currency = ACCOUNTS[payment.legs[0].to.unwrap_or_default()].1;
        let mut body = json!({ "paymentId": self.sent[place].id, "externalId": self.key() });
        if let Some(amount) = amount {
            body["amount"] = money(currency, amount);
        }
        let answer = self.post(caller, "/api/v1/payments/refund", &body).await?;
        match self.ledger.refund(caller, place, amount) {
            Ok(refund) => {
                ensure!(answer.status == 201, "{answer:?}");
                let given: Minor = self.ledger.transactions[place].refunded.iter().sum();
                let state = if given == whole { "REFUNDED" } else { "CAPTURED" };
                let told_of_all = caller == Caller::Administrator || caller == payment.submitter;
                ensure!(answer.body["state"] == state, "expected {state}: {answer:?}");
                ensure!(!told_of_all || answer.body["refundedAmount"] == money(currency, given), "expected {given}: {answer:?}");
                let last = answer.body["refunds"].as_array().and_then(|refunds| refunds.last()).context("a refund")?;
                let made = json!({ "id": last["transactionId"], "state": "COMPLETED" });
                self.note(body.clone(), refund, &made)?;
                let again = self.post(caller, "/api/v1/payments/refund", &body).await?;
                ensure!(again.status == 200 && again.body["replayed"] == json!(true), "{again:?}");
                self.compare_one(refund).await?;
            }
            Err(reason) => ensure!(answer.body["reason"] == reason, "expected {reason}: {answer:?}"),
        }
        self.compare_one(place).await
    }
}
