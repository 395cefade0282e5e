//! Accepts a transaction: checks what can be checked at the call, stores it, and waits for the outcome if that is asked for.

use std::time::Duration;

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::status::Problem;
use lastro_proto::permissions::Permission;
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use super::App;
use crate::domain::account::Account;
use crate::domain::operation::{Operation, State, Type, is_decided};
use crate::domain::submission::{Request, Submission};
use crate::pipeline::{Accepted, NewOperation, Refused};
use crate::{Error, contract};

/// What is left of the deadline is needed to answer; of a short one a quarter.
const ANSWER_MARGIN: Duration = Duration::from_millis(100);
/// An operation that could not be stored within this, or within half of what is left of the deadline, is not waited for any longer: its
/// caller learns in time that the ledger is busy, and a second attempt of a gateway has time too.
const STORE_MAX: Duration = Duration::from_secs(2);
/// A short deadline is used whole.
const STORE_MIN: Duration = Duration::from_millis(500);
/// Should the news of a settlement by another replica not reach us.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The transaction as it stands, once it is durable.
pub async fn create_transaction(app: &App, call: &Call, caller: &Caller, request: Request) -> Result<Accepted, Error> {
    let submission = Submission::read(request, app.settings.amount_minor_max)?;
    if submission.kind == Type::Deposit && !caller.may(Permission::WriteDeposits) {
        return Err(Error::MayNotDeposit);
    }
    let owners = check_accounts(app, caller, &submission).await?;

    let (answer_within, store_within) = shares(call.deadline.saturating_duration_since(Instant::now()));
    let answer_by = Instant::now() + answer_within;
    let wait_until = answer_by.min(Instant::now() + submission.wait);
    let new = new_operation(call, caller, submission, owners);
    // The pipeline's work is its own: a caller that leaves does not cancel a commit in flight.
    let accepted = timeout(store_within, app.pipeline.submit(new)).await.unwrap_or(Err(Refused::Unavailable));
    let mut accepted = accepted.map_err(|refused| match refused {
        Refused::KeyReused => Error::IdempotencyKeyReused,
        Refused::Crowded => Problem::crowded("too many transactions wait to be stored; ask again with the same idempotency key").into(),
        Refused::Unavailable => Error::LedgerUnavailable,
        Refused::Broken => Error::LedgerBroken,
    })?;
    wait_for_outcome(app, call, &mut accepted.operation, wait_until).await;
    Ok(accepted)
}

/// Of what is left of a deadline: what may pass until the answer, and until the operation is stored.
fn shares(left: Duration) -> (Duration, Duration) {
    let answer_within = left.saturating_sub(ANSWER_MARGIN.min(left / 4));
    (answer_within, STORE_MAX.min(answer_within / 2).max(STORE_MIN.min(answer_within)))
}

/// Whose the two accounts are.
struct Owners {
    source: Option<Uuid>,
    destination: Option<Uuid>,
}

/// The source is the caller's own, whoever it is; an account that is not is as good as none.
async fn check_accounts(app: &App, caller: &Caller, submission: &Submission) -> Result<Owners, Error> {
    let mut owners = Owners { source: None, destination: None };
    if let Some(id) = submission.source {
        let source = app.account(id).await?.filter(|source| source.owner_id == caller.id && !source.system);
        let source = source.ok_or(Error::AccountNotFound)?;
        check_currency(&source, submission)?;
        owners.source = Some(source.owner_id);
    }
    if let Some(id) = submission.destination {
        let destination = app.account(id).await?.filter(|destination| !destination.system);
        let destination = destination.ok_or(Error::AccountNotFound)?;
        check_currency(&destination, submission)?;
        owners.destination = Some(destination.owner_id).filter(|owner| owners.source != Some(*owner));
    }
    Ok(owners)
}

fn check_currency(account: &Account, submission: &Submission) -> Result<(), Problem> {
    let asked = submission.amount.currency();
    if account.currency == asked {
        return Ok(());
    }
    // Which currency a stranger's account has is not said.
    Err(Problem::field("amount.currency_code", format!("{asked} is not the currency of both accounts")))
}

fn new_operation(call: &Call, caller: &Caller, submission: Submission, owners: Owners) -> NewOperation {
    let (submitted, request_hash) = contract::submitted(&submission, caller.id);
    let now_us = clock::now_us();
    NewOperation {
        operation: Operation {
            id: Uuid::now_v7(),
            owner_id: caller.id,
            request_hash,
            external_id: submission.external_id,
            kind: submission.kind,
            state: State::Pending,
            reason: None,
            amount: submission.amount,
            source: submission.source,
            destination: submission.destination,
            source_owner: owners.source,
            destination_owner: owners.destination,
            description: submission.description,
            metadata: submission.metadata,
            effective_time_us: submission.effective_time_us.unwrap_or(now_us),
            create_time_us: now_us,
            update_time_us: now_us,
            head: None,
            attempts: 0,
        },
        submitted,
        correlation_id: call.correlation_id.to_string(),
    }
}

/// Waits until the outcome is known or the time is over; the operation as it stands then. A call that waits is no load, and gives its slot back; so
/// many may wait, and one beyond does not.
async fn wait_for_outcome(app: &App, call: &Call, operation: &mut Operation, until: Instant) {
    if is_decided(operation.state) {
        return;
    }
    let Ok(_waiting) = app.waiting.try_acquire() else { return };
    call.slot.release();
    while !is_decided(operation.state) && Instant::now() < until {
        let next_look = until.min(Instant::now() + LOOK_AGAIN);
        let _ = timeout_at(next_look, app.pipeline.settled()).await;
        // It is durable, and that is what counts: where it cannot be read now, the state as it stood is still an answer.
        if let Ok(Some(now)) = app.operation_loader.load(operation.id).await {
            *operation = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_deadline_is_used_whole_and_of_a_long_one_something_is_left_for_a_second_attempt() {
        let shares_ms = |left| {
            let (answer, store) = shares(Duration::from_millis(left));
            (answer.as_millis(), store.as_millis())
        };
        assert_eq!(shares_ms(35_000), (34_900, 2_000));
        assert_eq!(shares_ms(2_800), (2_700, 1_350));
        assert_eq!(shares_ms(700), (600, 500));
        assert_eq!(shares_ms(200), (150, 150));
        assert_eq!(shares_ms(40), (30, 30));
        assert_eq!(shares_ms(0), (0, 0));
    }
}
