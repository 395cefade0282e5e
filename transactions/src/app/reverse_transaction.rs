//! Reverses a completed transaction: a new one moves everything back.

use std::collections::BTreeMap;
use std::time::Duration;

use lastro_mesh::call::Call;
use lastro_mesh::identity::User as Caller;
use lastro_money::Amount;
use lastro_proto::permissions::Permission;
use tokio::time::Instant;

use super::App;
use super::get_transaction::get_transaction;
use super::submit::{TimeBudget, new_operation, wait_for_outcomes};
use crate::Error;
use crate::domain::operation::{Movement, Operation, OperationLeg, Settlement, State, Type};
use crate::domain::submission::{self, Submission, check_key};
use crate::pipeline::{Accepted, NewOperation, Refused};
use crate::store::operations;

/// A reversal answers with its outcome, if it is known within this.
const WAIT: Duration = Duration::from_secs(5);

/// The reversal as it stands, once it is durable.
pub async fn reverse_transaction(app: &App, call: &Call, caller: &Caller, id: &str, external_id: String) -> Result<Accepted, Error> {
    check_key(&external_id)?;
    let original = get_transaction(app, caller, id).await?;
    let movement = reversed(&original);
    // Nobody owns the clearing account: what went out comes back by an administrator alone.
    let owns_all = movement.legs().iter().all(|leg| leg.source.is_some_and(|party| party.owner_id == caller.id));
    if !owns_all && !caller.may(Permission::WriteReversals) {
        return Err(Error::ReversalNotYours);
    }
    let new = new_reversal(call, caller, &original, movement, external_id);
    // The same request again is answered the same, whatever has become of the original meanwhile.
    if let Some(stored) = stored(app, &new).await? {
        return Ok(stored);
    }
    if original.state != State::Completed || !matches!(original.kind, Type::Deposit | Type::Withdrawal | Type::Transfer) {
        return Err(Error::NotReversible);
    }
    if original.reversal_id.is_some() {
        return Err(Error::AlreadyReversed);
    }
    let budget = TimeBudget::of(call);
    let turn = app.legs_turn(caller.id, original.movement.legs().len(), budget.store_by).await?;
    let mut accepted = match budget.stored_whole(app.pipeline.submit(new.clone())).await {
        // By another call, maybe with the same key.
        Err(Refused::AlreadyReversed) => return stored(app, &new).await?.ok_or(Error::AlreadyReversed),
        submitted => submitted?,
    };
    drop(turn);
    wait_for_outcomes(app, call, &mut [&mut accepted.operation], budget.answer_by.min(Instant::now() + WAIT)).await;
    Ok(accepted)
}

/// What an earlier call with this key has made.
async fn stored(app: &App, new: &NewOperation) -> Result<Option<Accepted>, Error> {
    let Some(operation) = operations::by_keys(app.database.writer(), &[new.key()]).await?.pop() else { return Ok(None) };
    if operation.request_hash != new.operation.request_hash {
        return Err(Error::IdempotencyKeyReused);
    }
    Ok(Some(Accepted { operation, replayed: true }))
}

/// Everything moves back, the last leg first: so each account has what the legs before have brought back.
fn reversed(original: &Operation) -> Movement {
    let back = original.movement.legs().iter().zip(original.moved()).map(|(leg, moved)| OperationLeg {
        source: leg.destination,
        destination: leg.source,
        amount: Amount::new(moved, leg.amount.currency()),
        description: leg.description.clone(),
    });
    let mut back: Vec<OperationLeg> = back.collect();
    back.reverse();
    match (&original.movement, back.pop()) {
        (Movement::Single(_), Some(leg)) => Movement::Single(leg),
        (_, last) => Movement::Legs(back.into_iter().chain(last).collect()),
    }
}

fn new_reversal(call: &Call, caller: &Caller, original: &Operation, movement: Movement, external_id: String) -> NewOperation {
    let leg = |leg: &OperationLeg| submission::Leg {
        source: leg.source.map(|party| party.account_id),
        destination: leg.destination.map(|party| party.account_id),
        amount: leg.amount,
        description: leg.description.clone(),
    };
    let asked = match &movement {
        Movement::Single(single) => submission::Movement::Single(leg(single)),
        Movement::Legs(legs) => submission::Movement::Legs(legs.iter().map(leg).collect()),
    };
    let submission = Submission {
        external_id,
        kind: Type::Reversal,
        movement: asked,
        description: String::new(),
        metadata: BTreeMap::new(),
        effective_time_us: None,
        wait: WAIT,
        hold: None,
        settlement: Settlement::Internal,
        validate_only: false,
    };
    new_operation(call, caller, submission, movement, Some(original.id))
}
