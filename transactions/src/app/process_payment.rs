//! Pays for an order, from an account or by card. A payment is a transaction of type PAYMENT, whose key names its order.

use std::sync::Arc;

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::status::Problem;
use lastro_money::Minor;
use lastro_proto::card::is_card_number;
use uuid::Uuid;

use super::App;
use super::get_payment::{Payment, view};
use super::provider_calls;
use super::submit::{TimeBudget, check_leg, wait_for_outcomes};
use crate::domain::operation::{Movement, Operation, OperationLeg, Settlement, Type};
use crate::domain::payment::{CardToken, payment_key};
use crate::domain::submission::{Leg, Money, read_amount};
use crate::pipeline::{Accepted, NewOperation, Purpose};
use crate::store::sagas::SagaEpoch;
use crate::store::{operations, provider_calls as stored_calls};
use crate::{Error, contract};

/// What is asked for, as it was said.
pub struct PaymentRequest {
    pub order_id: String,
    pub method: Method,
    pub account_id: Option<String>,
    pub card_token: Option<String>,
    pub legs: Vec<PaymentLeg>,
}

/// How it is paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Account,
    Card,
}

/// Who gets how much.
pub struct PaymentLeg {
    pub destination: String,
    pub amount: Option<Money>,
}

/// Whose payment it is, and what it is called.
pub struct Payer {
    pub user_id: Uuid,
    /// The idempotency key of its transaction.
    pub key: String,
    pub description: String,
    /// The saga that pays on the user's behalf.
    pub saga: Option<SagaEpoch>,
}

/// The payment as it stands, and whether an earlier call made it.
pub async fn process_payment(app: &Arc<App>, call: &Call, caller: &Caller, request: PaymentRequest) -> Result<(Payment, bool), Error> {
    let payer = Payer { user_id: caller.id, key: payment_key(&request.order_id), description: String::new(), saga: None };
    let Accepted { operation, replayed } = pay(app, call, payer, request).await?;
    Ok((view(app, call, caller, operation).await?, replayed))
}

/// Stores a payment, and waits for its outcome as long as the caller does.
pub async fn pay(app: &Arc<App>, call: &Call, payer: Payer, request: PaymentRequest) -> Result<Accepted, Error> {
    let budget = TimeBudget::of(call);
    let user_id = payer.user_id;
    let is_charge = request.method == Method::Card;
    // The longest wait first, so that nothing is kept from others meanwhile. What was paid before is answered without, also where cards are not taken any more.
    let is_new = is_charge && operations::by_keys(app.database.writer(), &[(user_id, payer.key.as_str())]).await?.is_empty();
    let provider_turn = if is_new { Some(app.provider_turn(call, user_id, budget.store_by).await?) } else { None };
    let turn = app.legs_turn(user_id, request.legs.len(), budget.store_by).await?;
    let new = check(app, call, payer, request).await?;
    if is_new {
        may_ask_provider(app, user_id).await?;
    }
    let Accepted { mut operation, replayed } = budget.stored(app.pipeline.submit(new)).await?;
    drop(turn);
    if is_charge && !replayed {
        provider_calls::ask_and_wait(app, call, operation.id, provider_turn, budget.answer_by).await;
        if let Ok(Some(now)) = operations::get(app.database.writer(), operation.id).await {
            operation = now;
        }
    } else if operation.settlement == Settlement::Internal {
        wait_for_outcomes(app, call, &mut [&mut operation], budget.answer_by).await;
    }
    Ok(Accepted { operation, replayed })
}

/// Calls to the payment provider of one user that have not ended: more would make others wait for theirs, where the provider is slow.
const OPEN_CALLS_MAX: i64 = 100;

/// That there is a provider, and that it has answered most of what this user asked of it.
pub async fn may_ask_provider(app: &App, user_id: Uuid) -> Result<(), Error> {
    if app.provider.is_none() {
        return Err(Error::NoPaymentProvider);
    }
    // Those that begin at the same time are as few as there are turns.
    if stored_calls::count_open(app.database.writer(), user_id).await? >= OPEN_CALLS_MAX {
        return Err(Error::TooManyOpenPayments(OPEN_CALLS_MAX));
    }
    Ok(())
}

/// Every rule that is judged at the call.
async fn check(app: &App, call: &Call, payer: Payer, request: PaymentRequest) -> Result<NewOperation, Error> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (account_id, card_token) = (given(request.account_id), given(request.card_token));
    let source = match (request.method, &account_id, &card_token) {
        (Method::Account, None, _) => return Err(Problem::field("account_id", "is required for the method ACCOUNT").into()),
        (Method::Account, Some(_), Some(_)) => return Err(Problem::field("card_token", "must not be given for the method ACCOUNT").into()),
        (Method::Account, Some(id), None) => Some(Uuid::parse_str(id).map_err(|_| Problem::field("account_id", "must be a UUID"))?),
        (Method::Card, _, None) => return Err(Problem::field("card_token", "is required for the method CARD").into()),
        (Method::Card, Some(_), Some(_)) => return Err(Problem::field("account_id", "must not be given for the method CARD").into()),
        (Method::Card, None, Some(token)) if is_card_number(token) => {
            return Err(Problem::field("card_token", "must be a token of the payment provider, never the number of a card").into());
        }
        (Method::Card, None, Some(token)) if token.chars().any(char::is_control) => {
            return Err(Problem::field("card_token", "must not contain control characters").into());
        }
        (Method::Card, None, Some(_)) => None,
    };
    let legs = check_legs(app, payer.user_id, source, &request.legs).await?;
    let movement = match <[OperationLeg; 1]>::try_from(legs) {
        Ok([leg]) => Movement::Single(leg),
        Err(legs) => Movement::Legs(legs),
    };
    let provider = app.provider.as_ref().map_or_else(|| "none".into(), |provider| provider.name.clone());
    let purpose = card_token.as_deref().map_or(Purpose::Plain, |token| Purpose::Charge { card_token: CardToken::new(token), provider });
    Ok(new_payment(call, payer, movement, purpose))
}

async fn check_legs(app: &App, payer_id: Uuid, source: Option<Uuid>, asked: &[PaymentLeg]) -> Result<Vec<OperationLeg>, Error> {
    let mut legs: Vec<OperationLeg> = Vec::with_capacity(asked.len());
    let mut sum = Minor::ZERO;
    for (index, leg) in asked.iter().enumerate() {
        let field = |name: &str| format!("legs[{index}].{name}");
        let destination = Uuid::parse_str(&leg.destination).map_err(|_| Problem::field(field("destination_account_id"), "must be a UUID"))?;
        let money = leg.amount.as_ref().ok_or_else(|| Problem::field(field("amount"), "is required"))?;
        let amount = read_amount(money, app.settings.amount_minor_max)
            .map_err(|rule| Problem::field(field(crate::domain::submission::Error::from(rule.clone()).field().as_str()), rule.to_string()))?;
        if source == Some(destination) {
            return Err(Problem::field(field("destination_account_id"), "must not be the account that pays").into());
        }
        if let Some(first) = legs.first().filter(|first| first.amount.currency() != amount.currency()) {
            let rule = format!("must be {}, as of the first leg: a payment is in one currency", first.amount.currency());
            return Err(Problem::field(field("amount.currency_code"), rule).into());
        }
        sum = sum.checked_add(amount.minor()).ok_or_else(|| Problem::field("legs", "must not be more than 64 bits hold, all together"))?;
        let asked = Leg { source, destination: Some(destination), amount, description: String::new() };
        legs.push(check_leg(app, payer_id, &asked, Some(index)).await.map_err(|error| naming_account(error, index))?);
    }
    Ok(legs)
}

/// The account that pays stands beside the legs.
fn naming_account(error: Error, index: usize) -> Error {
    match error {
        Error::AccountNotFound { field: Some(field) } if field == format!("legs[{index}].source_account_id") => {
            Error::AccountNotFound { field: Some("account_id".to_owned()) }
        }
        other => other,
    }
}

fn new_payment(call: &Call, payer: Payer, movement: Movement, purpose: Purpose) -> NewOperation {
    let card_token = match &purpose {
        Purpose::Charge { card_token, .. } => Some(card_token.reveal()),
        Purpose::Plain | Purpose::Refund { .. } => None,
    };
    let settlement = if card_token.is_some() { Settlement::External } else { Settlement::Internal };
    let new = Operation::new(clock::new_id(), (payer.user_id, payer.key), Type::Payment, movement, clock::now_us());
    let mut operation = Operation { settlement, description: payer.description, ..new };
    let submitted = contract::submitted_of(&operation);
    operation.request_hash = contract::payment_hash(&submitted, card_token);
    NewOperation { operation, submitted, correlation_id: call.correlation_id.to_string(), purpose, saga: payer.saga }
}
