//! Gives a payment back, whole or in part.

use std::sync::Arc;

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::status::Problem;
use lastro_money::{Amount, Minor};
use lastro_proto::permissions::Permission;
use uuid::Uuid;

use super::App;
use super::get_payment::{Payment, PaymentName, find, view};
use super::process_payment::may_ask_provider;
use super::provider_calls;
use super::submit::TimeBudget;
use crate::domain::operation::{Hold, Operation, State, Type};
use crate::domain::payment::{is_by_card, refund_movement};
use crate::domain::submission::{Money, check_key, read_amount};
use crate::pipeline::{Accepted, Culprit, NewOperation, Purpose, Refused};
use crate::store::sagas::SagaEpoch;
use crate::store::{operations, provider_calls as stored_calls};
use crate::{Error, contract};

/// What is held for a refund ends by the provider's answer, and not by itself: 2100-01-01, Unix microseconds.
const NEVER_US: i64 = 4_102_444_800_000_000;

/// Refunds of one payment, those included that the provider declined: an answer names all of them.
const REFUNDS_MAX: i64 = 1000;

/// What is asked for, as it was said.
pub struct RefundRequest {
    pub name: PaymentName,
    pub amount: Option<Money>,
    pub external_id: String,
}

/// The payment as it stands then, and whether an earlier call made the refund.
pub async fn refund_payment(app: &Arc<App>, call: &Call, caller: &Caller, request: RefundRequest) -> Result<(Payment, bool), Error> {
    check_key(&request.external_id)?;
    let payment = find(app, caller, &request.name).await?;
    may_refund(caller, &payment)?;
    let amount = request.amount.as_ref().map(|money| read_refund(app, &payment, money)).transpose()?;
    let hash = contract::refund_hash(payment.id, amount);
    // The same request again is answered the same, whatever has become of the payment meanwhile.
    if let Some(stored) = operations::by_keys(app.database.writer(), &[(caller.id, &request.external_id)]).await?.pop() {
        return if stored.request_hash == hash { answer(app, call, caller, &payment, &stored, true).await } else { Err(Error::IdempotencyKeyReused) };
    }
    let asked = NewRefund { owner_id: caller.id, external_id: request.external_id, amount, request_hash: hash, saga: None };
    let (refund, replayed) = refund(app, call, asked, &payment).await?;
    answer(app, call, caller, &payment, &refund, replayed).await
}

/// A refund that is asked for: whose it is, under which key, and how much, or all that is left.
pub struct NewRefund {
    pub owner_id: Uuid,
    pub external_id: String,
    pub amount: Option<Amount>,
    pub request_hash: [u8; 32],
    /// The saga that asks for it.
    pub saga: Option<SagaEpoch>,
}

/// Stores a refund, and asks the payment provider for it where a card has paid. The refund, and whether an earlier call made it.
pub async fn refund(app: &Arc<App>, call: &Call, asked: NewRefund, payment: &Operation) -> Result<(Operation, bool), Error> {
    let owner_id = asked.owner_id;
    let provider = if is_by_card(payment) { Some(provider_of(app, &asked, payment).await?) } else { None };
    // A saga takes back what it did, whatever else was refunded.
    if asked.saga.is_none() && operations::count_refunds(app.database.writer(), payment.id).await? >= REFUNDS_MAX {
        return Err(Error::TooManyRefunds(REFUNDS_MAX));
    }
    match payment.state {
        State::Completed => {}
        State::Rejected | State::Voided | State::Expired => return Err(Error::PaymentNotCaptured("DECLINED")),
        State::Pending | State::Retrying | State::Waiting | State::Authorized => return Err(Error::PaymentNotCaptured("not decided yet")),
    }
    let budget = TimeBudget::of(call);
    let new = new_refund(call, payment, asked, provider);
    let provider_turn = if is_by_card(payment) { Some(app.provider_turn(call, owner_id, budget.store_by).await?) } else { None };
    let turn = app.legs_turn(owner_id, payment.movement.legs().len(), budget.store_by).await?;
    // All or nothing, as an atomic batch of one: a refund that is refused is not stored, and uses no key.
    let stored = budget.stored_whole(app.pipeline.submit_together(vec![new])).await;
    drop(turn);
    let Accepted { operation: refund, replayed } = stored.map_err(|refused| refusal(refused, payment))?.pop().ok_or(Error::LedgerUnavailable)?;
    if refund.state == State::Authorized && !replayed {
        provider_calls::ask_and_wait(app, call, refund.id, provider_turn, budget.answer_by).await;
    }
    Ok((refund, replayed))
}

/// Who was paid through, which must be who is set up: held money would wait for a provider that nobody asks.
async fn provider_of(app: &App, asked: &NewRefund, payment: &Operation) -> Result<Arc<str>, Error> {
    // A saga takes back what it did, however much waits for the provider.
    if asked.saga.is_none() {
        may_ask_provider(app, asked.owner_id).await?;
    }
    let provider = app.provider.as_ref().ok_or(Error::NoPaymentProvider)?;
    let paid_through = stored_calls::charge(app.database.writer(), payment.id).await?.provider;
    if !paid_through.is_empty() && *paid_through != *provider.name { Err(Error::OtherPaymentProvider) } else { Ok(provider.name.clone()) }
}

/// The merchant, or an administrator; never the payer.
fn may_refund(caller: &Caller, payment: &Operation) -> Result<(), Error> {
    let owns_all = payment.movement.legs().iter().all(|leg| leg.destination.is_some_and(|party| party.owner_id == caller.id));
    let may = payment.owner_id != caller.id && (owns_all || caller.may(Permission::WriteReversals));
    if may { Ok(()) } else { Err(Error::RefundNotYours) }
}

/// More than zero, in the currency of the payment. That it is not more than what is left is judged where the refund is made.
fn read_refund(app: &App, payment: &Operation, money: &Money) -> Result<Amount, Error> {
    let currency = currency_of(payment)?;
    if money.currency_code != currency.code() {
        return Err(Problem::field("amount.currency_code", format!("must be {currency}, the currency of the payment")).into());
    }
    // A payment may be as much as a hundred transactions.
    let amount_max = app.settings.amount_minor_max.get().saturating_mul(100);
    Ok(read_amount(money, Minor::new(amount_max))?)
}

fn currency_of(payment: &Operation) -> Result<lastro_money::Currency, Error> {
    let first = payment.movement.legs().first().ok_or_else(|| lastro_database::Error::corrupt("a payment without legs"))?;
    Ok(first.amount.currency())
}

fn new_refund(call: &Call, payment: &Operation, asked: NewRefund, provider: Option<Arc<str>>) -> NewOperation {
    // What each leg gives is decided with the payment locked; until then all of them may.
    let whole: Vec<Minor> = payment.movement.legs().iter().map(|leg| leg.amount.minor()).collect();
    let movement = refund_movement(payment, &whole);
    let operation = Operation {
        request_hash: asked.request_hash,
        hold: is_by_card(payment).then_some(Hold { expire_time_us: NEVER_US, captured: None }),
        original_id: Some(payment.id),
        ..Operation::new(clock::new_id(), (asked.owner_id, asked.external_id), Type::Refund, movement, clock::now_us())
    };
    let purpose = Purpose::Refund { amount: asked.amount.map(|amount| amount.minor()), provider };
    NewOperation { operation, submitted: Vec::new(), correlation_id: call.correlation_id.to_string(), purpose, saga: asked.saga }
}

/// Why nothing was refunded.
fn refusal(refused: Refused, payment: &Operation) -> Error {
    match refused {
        Refused::Together { culprit: Culprit::Rejected { reason, .. }, .. } => Error::RefundRefused(reason),
        Refused::Together { culprit: Culprit::KeyReused | Culprit::KeyExists, .. } => Error::IdempotencyKeyReused,
        Refused::RefundTooMuch { left } => match currency_of(payment) {
            Ok(currency) => Error::RefundTooMuch(Amount::new(left, currency)),
            Err(error) => error,
        },
        other => other.into(),
    }
}

/// The payment as it stands; or that the provider has declined the refund.
async fn answer(app: &App, call: &Call, caller: &Caller, payment: &Operation, refund: &Operation, replayed: bool) -> Result<(Payment, bool), Error> {
    let on = app.database.writer();
    let refund = operations::get(on, refund.id).await?.ok_or(Error::LedgerUnavailable)?;
    if refund.state == State::Voided {
        return Err(Error::RefundDeclined(refund.reason.as_ref().map_or("", |reason| reason.name()).into()));
    }
    let payment = operations::get(on, payment.id).await?.ok_or(Error::PaymentNotFound)?;
    Ok((view(app, call, caller, payment).await?, replayed))
}
