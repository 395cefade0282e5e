//! Captures a hold, or gives it up: once, and the same request again is answered the same.

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::status::Problem;
use lastro_money::Amount;
use lastro_proto::permissions::Permission;

use super::App;
use super::get_transaction::get_transaction;
use super::submit::TimeBudget;
use crate::contract::Resolution;
use crate::domain::operation::{Operation, State, Type};
use crate::domain::submission::{Money, read_amount};
use crate::pipeline::{Accepted, NewResolution, Refused, Verb};
use crate::store::operations;
use crate::{EVENTS, Error, contract};

/// What is asked for.
pub struct CaptureRequest {
    pub id: String,
    pub external_id: String,
    /// All, where it is not given.
    pub amount: Option<Money>,
    pub validate_only: bool,
}

/// Captures a hold for its submitter; the transaction as it stands then, or as it would.
pub async fn capture_transaction(app: &App, call: &Call, caller: &Caller, request: CaptureRequest) -> Result<Accepted, Error> {
    let hold = get_transaction(app, caller, &request.id).await?;
    if hold.owner_id != caller.id || hold.kind == Type::Refund {
        return Err(Error::HoldNotYours);
    }
    let amount = request.amount.map(|money| capture_amount(&hold, &money)).transpose()?;
    let hash = contract::resolution_hash("capture", amount);
    let new = new_resolution(call, caller, &hold, Verb::Capture(amount.map(|amount| amount.minor())), (request.external_id, hash));
    if request.validate_only {
        return rehearse(app, &hold, &new).await;
    }
    resolve(app, call, hold, new).await
}

/// Gives a hold up, for its submitter, the owner of every account that it would credit, or an administrator.
pub async fn void_transaction(app: &App, call: &Call, caller: &Caller, id: &str, external_id: String) -> Result<Accepted, Error> {
    let hold = get_transaction(app, caller, id).await?;
    // Nobody owns the clearing account.
    let is_creditor = hold.movement.legs().iter().all(|leg| leg.destination.is_some_and(|party| party.owner_id == caller.id));
    let may = hold.owner_id == caller.id || is_creditor || caller.may(Permission::AdministerAccounts);
    // What of a refund is held, the provider's answer ends.
    if !may || hold.kind == Type::Refund {
        return Err(Error::HoldNotYours);
    }
    let hash = contract::resolution_hash("void", None);
    let new = new_resolution(call, caller, &hold, Verb::Void, (external_id, hash));
    resolve(app, call, hold, new).await
}

/// More than zero, in the currency of the hold, and at most what it holds.
fn capture_amount(hold: &Operation, money: &Money) -> Result<Amount, Error> {
    let refuse = |field: &'static str, why: String| Error::Problem(Problem::field(field, why));
    let Some(leg) = hold.movement.single() else {
        return Err(refuse("amount", "must not be given for a hold of legs, which is captured whole".to_owned()));
    };
    let held = leg.amount;
    if money.currency_code != held.currency().code() {
        return Err(refuse("amount.currency_code", format!("must be {}, the currency of the hold", held.currency())));
    }
    // An amount that is too large is told as one that is above the hold.
    let amount = read_amount(money, lastro_money::Minor::MAX)?;
    if amount.minor() > held.minor() {
        return Err(refuse("amount", format!("must be at most {held}, which is what is held")));
    }
    Ok(amount)
}

fn new_resolution(call: &Call, caller: &Caller, hold: &Operation, verb: Verb, (external_id, request_hash): (String, [u8; 32])) -> NewResolution {
    NewResolution {
        id: clock::new_id(),
        hold_id: hold.id,
        movement: hold.movement.clone(),
        verb,
        caller_id: caller.id,
        external_id,
        request_hash,
        correlation_id: call.correlation_id.to_string(),
    }
}

async fn resolve(app: &App, call: &Call, hold: Operation, new: NewResolution) -> Result<Accepted, Error> {
    if let Some(answer) = answer_if_ended(app, &hold, &new).await? {
        return Ok(answer);
    }
    match TimeBudget::of(call).stored_whole(app.pipeline.resolve(new.clone())).await {
        Err(Refused::ResolvedMeanwhile) => ended_meanwhile(app, &new).await,
        resolved => Ok(resolved?),
    }
}

/// By whom it was resolved, and by which key, is read again.
async fn ended_meanwhile(app: &App, new: &NewResolution) -> Result<Accepted, Error> {
    let now = operations::get(app.database.writer(), new.hold_id).await?.ok_or(Error::TransactionNotFound)?;
    answer_if_ended(app, &now, new).await?.ok_or(Error::LedgerUnavailable)
}

/// What a call is answered about a hold that is not AUTHORIZED: the same as before where it has the same key and asks for the same.
async fn answer_if_ended(app: &App, hold: &Operation, new: &NewResolution) -> Result<Option<Accepted>, Error> {
    match hold.state {
        _ if hold.hold.is_none() => return Err(Error::HoldNotAuthorized),
        State::Authorized => return Ok(None),
        State::Pending | State::Retrying | State::Waiting | State::Rejected => return Err(Error::HoldNotAuthorized),
        State::Expired => return Err(Error::HoldExpired),
        State::Completed | State::Voided => {}
    }
    // The event that ended it says who did, and how.
    let ended = EVENTS.stream_from(&app.database, hold.id, hold.head.map_or(1, |head| head.version), 1).await?;
    let resolution = ended.first().and_then(|event| Resolution::read(&event.payload));
    match resolution.filter(|stored| stored.caller_id == new.caller_id && stored.external_id == new.external_id) {
        None => Err(Error::HoldResolved),
        Some(stored) if stored.request_hash != new.request_hash => Err(Error::IdempotencyKeyReused),
        Some(_) => Ok(Some(Accepted { operation: hold.clone(), replayed: true })),
    }
}

async fn rehearse(app: &App, hold: &Operation, new: &NewResolution) -> Result<Accepted, Error> {
    if let Some(answer) = answer_if_ended(app, hold, new).await? {
        return Ok(Accepted { replayed: false, ..answer });
    }
    match app.pipeline.rehearse_resolution(new).await? {
        Err(Refused::ResolvedMeanwhile) => Ok(Accepted { replayed: false, ..ended_meanwhile(app, new).await? }),
        rehearsed => Ok(Accepted { operation: rehearsed?, replayed: false }),
    }
}
