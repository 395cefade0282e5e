//! What a saga asks of money, on behalf of a buyer: a payment with its undos. An undo that comes before what it undoes keeps that from being made, and
//! whoever has lost its lease on the saga is refused.

use std::sync::Arc;

use lastro_mesh::call::Call;
use lastro_money::Minor;
use uuid::Uuid;

use super::App;
use super::process_payment::{Payer, PaymentRequest, pay};
use super::refund_payment::{NewRefund, refund};
use crate::domain::operation::{Operation, State};
use crate::domain::payment::{RESERVED_KEYS, left};
use crate::domain::rejection::Reason;
use crate::store::sagas::{self, Saga, SagaEpoch};
use crate::store::{operations, provider_calls as stored_calls};
use crate::{Error, contract};

/// The payment of which step of which saga, for whom.
pub struct SagaPayment {
    pub buyer_id: Uuid,
    pub saga: SagaEpoch,
    pub step: String,
}

/// What has become of it.
pub struct Outcome {
    pub state: OutcomeState,
    pub reason: Option<Reason>,
    /// The transaction; None where there is none.
    pub transaction_id: Option<Uuid>,
}

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutcomeState {
    /// There is no payment.
    None,
    /// Nobody knows yet.
    Pending,
    Captured,
    Declined,
    /// All of it.
    Refunded,
}

impl SagaPayment {
    /// Keys of sagas are their own: no payment that a buyer makes is ever taken for one.
    fn key(&self) -> String {
        format!("{RESERVED_KEYS}saga:{}:{}", self.saga.id, self.step)
    }

    async fn find(&self, app: &App) -> Result<Option<Operation>, Error> {
        Ok(operations::by_keys(app.database.writer(), &[(self.buyer_id, &self.key())]).await?.pop())
    }
}

/// Pays. Refused where an undo was faster, or has been made since.
pub async fn saga_pay(app: &Arc<App>, call: &Call, of: SagaPayment, request: PaymentRequest) -> Result<Outcome, Error> {
    let description = format!("order {}", of.saga.id);
    let payer = Payer { user_id: of.buyer_id, key: of.key(), description, saga: Some(of.saga) };
    let paid = pay(app, call, payer, request).await?;
    if paid.replayed {
        // A repetition is answered without a batch that would judge the epoch.
        let saga = raise(app, of.saga).await?;
        if saga.cancelled {
            return Err(Error::SagaCancelled);
        }
    }
    outcome(app, operations::get(app.database.writer(), paid.operation.id).await?).await
}

/// The payment as it stands.
pub async fn saga_payment(app: &App, of: &SagaPayment) -> Result<Outcome, Error> {
    outcome(app, of.find(app).await?).await
}

/// Cancels a payment, as far as no money has moved; as it stands then.
pub async fn saga_cancel_payment(app: &App, call: &Call, of: &SagaPayment) -> Result<Outcome, Error> {
    // From here on it is not made any more: whoever makes it locks the saga until it is stored, or finds this.
    fenced(of.saga, sagas::cancel(app.database.writer(), of.saga).await?)?;
    let found = of.find(app).await?;
    if let Some(waiting) = found.as_ref().filter(|found| found.state == State::Waiting) {
        let is_done = app.pipeline.cancel_charge(waiting.id, of.saga, call.correlation_id.as_str()).await?;
        return if is_done { outcome(app, of.find(app).await?).await } else { Err(Error::StaleEpoch) };
    }
    outcome(app, found).await
}

/// Gives back all that is left of a payment that was captured; as it stands then.
pub async fn saga_refund(app: &Arc<App>, call: &Call, of: &SagaPayment) -> Result<Outcome, Error> {
    raise(app, of.saga).await?;
    let payment = of.find(app).await?.ok_or(Error::PaymentNotFound)?;
    let before = outcome(app, Some(payment.clone())).await?;
    if before.state != OutcomeState::Captured {
        return if matches!(before.state, OutcomeState::Refunded | OutcomeState::Pending) {
            Ok(before)
        } else {
            Err(Error::PaymentNotCaptured("DECLINED"))
        };
    }
    // A refund that the provider has declined keeps its key: asked for once more, it is another one.
    let declined = operations::refunds_of(app.database.writer(), payment.id).await?.iter().filter(|one| is_declined(one)).count();
    let external_id = format!("{}:refund:{}", of.key(), declined + 1);
    let request_hash = contract::refund_hash(payment.id, None);
    let asked = NewRefund { owner_id: of.buyer_id, external_id, amount: None, request_hash, saga: Some(of.saga) };
    let (made, _) = refund(app, call, asked, &payment).await?;
    let made = operations::get(app.database.writer(), made.id).await?.ok_or(Error::LedgerUnavailable)?;
    if is_declined(&made) {
        return Err(Error::RefundDeclined(made.reason.as_ref().map_or("", |reason| reason.name()).into()));
    }
    outcome(app, of.find(app).await?).await
}

fn is_declined(refund: &Operation) -> bool {
    matches!(refund.state, State::Voided | State::Rejected | State::Expired)
}

/// Raises the saga's epoch, and refuses one that is lower.
async fn raise(app: &App, saga: SagaEpoch) -> Result<Saga, Error> {
    fenced(saga, sagas::raise(app.database.writer(), saga).await?)
}

fn fenced(asked: SagaEpoch, raised: Saga) -> Result<Saga, Error> {
    if raised.epoch > asked.epoch { Err(Error::StaleEpoch) } else { Ok(raised) }
}

async fn outcome(app: &App, found: Option<Operation>) -> Result<Outcome, Error> {
    let Some(payment) = found else { return Ok(Outcome { state: OutcomeState::None, reason: None, transaction_id: None }) };
    let on = app.database.writer();
    let state = match payment.state {
        State::Pending | State::Retrying | State::Waiting | State::Authorized => OutcomeState::Pending,
        // What the provider may have charged, or is to give back.
        State::Rejected if stored_calls::is_open(on, payment.id).await? => OutcomeState::Pending,
        State::Rejected | State::Voided | State::Expired => OutcomeState::Declined,
        State::Completed => {
            let all_is_given = left(&payment).is_some_and(|(_, all)| all == Minor::ZERO);
            // What is held for a refund waits for the provider.
            let waits = payment.refunded.is_some() && operations::refunds_of(on, payment.id).await?.iter().any(|one| one.state == State::Authorized);
            match (all_is_given, waits) {
                (true, false) => OutcomeState::Refunded,
                (true, true) => OutcomeState::Pending,
                (false, _) => OutcomeState::Captured,
            }
        }
    };
    Ok(Outcome { state, transaction_id: Some(payment.id), reason: payment.reason })
}
