//! One payment, with its refunds.

use lastro_mesh::call::Call;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::status::Problem;
use lastro_money::{Amount, Minor};
use uuid::Uuid;

use super::{App, sees_all};
use crate::Error;
use crate::domain::operation::{Operation, OperationLeg, Settlement, State, Type};
use crate::domain::payment::{is_by_card, order_of, payment_key};
use crate::store::{operations, provider_calls};

/// Who reads a payment with more legs in all of its refunds has turns at it, as at long pages.
const LEGS_AT_ONCE: usize = 500;

/// Which payment is meant.
#[derive(Debug, Clone)]
pub struct PaymentName {
    /// Empty, or `-`: only the id is given.
    pub order_id: String,
    pub payment_id: Option<String>,
}

/// A payment as its reader may see it.
pub struct Payment {
    pub operation: Operation,
    pub order_id: String,
    pub is_by_card: bool,
    pub state: PaymentState,
    /// Of the reader's own accounts, where it is neither payer nor administrator.
    pub amount: Amount,
    pub refunded: Amount,
    pub refunds: Vec<Refund>,
}

/// Where a payment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaymentState {
    Pending,
    Captured,
    Declined,
    Refunded,
    Unknown,
}

/// A refund of it.
pub struct Refund {
    pub operation: Operation,
    pub state: RefundState,
    pub amount: Amount,
}

/// Where a refund stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefundState {
    Pending,
    Completed,
    Declined,
    Unknown,
}

/// For its payer, the owners of the accounts that it credits and administrators.
pub async fn get_payment(app: &App, call: &Call, caller: &Caller, name: &PaymentName) -> Result<Payment, Error> {
    let operation = find(app, caller, name).await?;
    view(app, call, caller, operation).await
}

/// The transaction of a payment. The payer finds its own by the order; whoever else finds several has to name one.
pub async fn find(app: &App, caller: &Caller, name: &PaymentName) -> Result<Operation, Error> {
    let on = app.database.writer();
    let key = Some(payment_key(&name.order_id)).filter(|_| !matches!(name.order_id.as_str(), "" | "-"));
    if let Some(id) = &name.payment_id {
        let id = Uuid::parse_str(id).map_err(|_| Error::PaymentNotFound)?;
        let found = operations::get(on, id).await?.filter(|found| found.kind == Type::Payment && may_see(caller, found));
        return found.filter(|found| key.as_ref().is_none_or(|key| *key == found.external_id)).ok_or(Error::PaymentNotFound);
    }
    let Some(key) = key else { return Err(Problem::field("order_id", "is required, or payment_id in its place").into()) };
    if let Some(own) = operations::by_keys(on, &[(caller.id, key.as_str())]).await?.pop() {
        return Ok(own);
    }
    let mut found = operations::payments_by_key(on, &key, (!sees_all(caller)).then_some(caller.id)).await?;
    match (found.pop(), found.pop()) {
        (None, _) => Err(Error::PaymentNotFound),
        (Some(one), None) => Ok(one),
        (Some(_), Some(_)) => Err(Problem::field("payment_id", "is required: there are several payments of this order that you may see").into()),
    }
}

fn may_see(caller: &Caller, operation: &Operation) -> bool {
    operation.owner_id == caller.id || sees_all(caller) || operation.concerns(caller.id)
}

/// A payment with what has become of it.
pub async fn view(app: &App, call: &Call, caller: &Caller, operation: Operation) -> Result<Payment, Error> {
    // Only what was paid has refunds, and one that the caller has just made is among them.
    let on = app.database.writer();
    let refunds = if operation.state == State::Completed { operations::count_refunds(on, operation.id).await? } else { 0 };
    let legs = usize::try_from(refunds).unwrap_or(usize::MAX).saturating_mul(operation.movement.legs().len());
    let _turn = app.long_read_turn(call, caller.id, legs > LEGS_AT_ONCE).await?;
    let sees_whole = operation.owner_id == caller.id || sees_all(caller);
    let refunds = if operation.state == State::Completed { operations::refunds_of(on, operation.id).await? } else { Vec::new() };
    // A charge that the ledger could not take is not over before it is given back.
    let may_be_given_back = operation.state == State::Rejected && operation.settlement == Settlement::External;
    let is_asked_for = |one: &&Operation| is_open(one) || (one.id == operation.id && may_be_given_back);
    let open: Vec<Uuid> = std::iter::once(&operation).chain(&refunds).filter(is_asked_for).map(|one| one.id).collect();
    let unknown = if open.is_empty() { Vec::new() } else { provider_calls::unknown_of(on, &open).await? };
    let own = |leg: &OperationLeg| sees_whole || leg.concerns(caller.id);
    let amount = sum(&operation, own)?;
    let mut shown = Vec::with_capacity(refunds.len());
    let (mut refunded, mut refunded_in_all) = (Minor::ZERO, Minor::ZERO);
    let add = |sum: Minor, more: Amount| sum.checked_add(more.minor()).ok_or_else(|| lastro_database::Error::corrupt("refunds beyond 64 bits"));
    for refund in refunds {
        let state = match refund.state {
            State::Completed => RefundState::Completed,
            State::Voided | State::Rejected | State::Expired => RefundState::Declined,
            _ if unknown.contains(&refund.id) => RefundState::Unknown,
            _ => RefundState::Pending,
        };
        let part = sum(&refund, own)?;
        if state == RefundState::Completed {
            (refunded, refunded_in_all) = (add(refunded, part)?, add(refunded_in_all, sum(&refund, |_| true)?)?);
        }
        if sees_whole || part.minor() > Minor::ZERO {
            shown.push(Refund { operation: refund, state, amount: part });
        }
    }
    let state = match operation.state {
        State::Completed if refunded_in_all == sum(&operation, |_| true)?.minor() => PaymentState::Refunded,
        State::Completed => PaymentState::Captured,
        State::Rejected if unknown.contains(&operation.id) => PaymentState::Unknown,
        State::Rejected | State::Voided | State::Expired => PaymentState::Declined,
        _ if unknown.contains(&operation.id) => PaymentState::Unknown,
        _ => PaymentState::Pending,
    };
    let order_id = order_of(&operation).to_owned();
    let is_by_card = is_by_card(&operation);
    let refunded = Amount::new(refunded, amount.currency());
    Ok(Payment { order_id, is_by_card, state, amount, refunded, refunds: shown, operation })
}

fn is_open(operation: &Operation) -> bool {
    !crate::domain::operation::is_terminal(operation.state)
}

/// What some legs move together. All of them are in one currency.
fn sum(operation: &Operation, which: impl Fn(&OperationLeg) -> bool) -> Result<Amount, Error> {
    let corrupt = || lastro_database::Error::corrupt("a payment without legs, or beyond 64 bits");
    let legs = operation.movement.legs();
    let currency = legs.first().ok_or_else(corrupt)?.amount.currency();
    let sum = legs.iter().filter(|leg| which(leg)).try_fold(Minor::ZERO, |sum, leg| sum.checked_add(leg.amount.minor()));
    Ok(Amount::new(sum.ok_or_else(corrupt)?, currency))
}
