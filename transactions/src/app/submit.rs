//! What every use case that moves money has in common: it becomes an operation, is stored within the caller's time, and is waited for if that is asked for.

use std::time::Duration;

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::status::Problem;
use lastro_proto::permissions::Permission;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::App;
use crate::domain::account::Account;
use crate::domain::operation::{Hold, Movement, Operation, OperationLeg, Party, Settlement, Type, is_decided};
use crate::domain::submission::{self, Submission};
use crate::pipeline::{NewOperation, Purpose, Refused};
use crate::{Error, contract};

/// What is left of the deadline is needed to answer; of a short one a quarter.
const ANSWER_MARGIN: Duration = Duration::from_millis(100);
/// An operation that could not be stored within this, or within half of what is left of the deadline, is not waited for any longer: its
/// caller learns in time that the ledger is busy, and a second attempt of a gateway has time too.
const STORE_MAX: Duration = Duration::from_secs(2);
/// A short deadline is used whole.
const STORE_MIN: Duration = Duration::from_millis(500);
/// Before an operation is read again that could not be read.
const READ_AGAIN: Duration = Duration::from_millis(250);

/// The caller's time: until it is answered, and until what it asks for is stored.
#[derive(Clone, Copy)]
pub struct TimeBudget {
    pub answer_by: Instant,
    pub store_by: Instant,
}

impl TimeBudget {
    pub fn of(call: &Call) -> Self {
        let (answer_within, store_within) = shares(call.deadline.saturating_duration_since(Instant::now()));
        let now = Instant::now();
        Self { answer_by: now + answer_within, store_by: now + store_within }
    }

    /// Waits for the pipeline. Its work is its own: a caller that leaves does not cancel a commit in flight.
    pub async fn stored<T>(&self, work: impl Future<Output = Result<T, Refused>>) -> Result<T, Refused> {
        timeout_at(self.store_by, work).await.unwrap_or(Err(Refused::Unavailable))
    }

    /// As [`stored`](Self::stored), for what waits for its locks as long as it takes, and is not tried a second time by a gateway.
    pub async fn stored_whole<T>(&self, work: impl Future<Output = Result<T, Refused>>) -> Result<T, Refused> {
        timeout_at(self.answer_by, work).await.unwrap_or(Err(Refused::Unavailable))
    }
}

/// Of what is left of a deadline: what may pass until the answer, and until the operation is stored.
fn shares(left: Duration) -> (Duration, Duration) {
    let answer_within = left.saturating_sub(ANSWER_MARGIN.min(left / 4));
    (answer_within, STORE_MAX.min(answer_within / 2).max(STORE_MIN.min(answer_within)))
}

/// A caller's operation that keeps every rule that is judged at the call.
pub async fn check(app: &App, call: &Call, caller: &Caller, submission: Submission) -> Result<NewOperation, Error> {
    if submission.kind == Type::Deposit && !caller.may(Permission::WriteDeposits) {
        return Err(Error::MayNotDeposit);
    }
    if submission.settlement == Settlement::External && !caller.may(Permission::WriteOperations) {
        return Err(Problem::field("settlement", "must not be EXTERNAL: only a provider, who reports the outcome, submits such a deposit").into());
    }
    let movement = match &submission.movement {
        submission::Movement::Single(leg) => Movement::Single(check_leg(app, caller.id, leg, None).await?),
        submission::Movement::Legs(legs) => {
            let mut checked = Vec::with_capacity(legs.len());
            for (index, leg) in legs.iter().enumerate() {
                checked.push(check_leg(app, caller.id, leg, Some(index)).await?);
            }
            Movement::Legs(checked)
        }
    };
    Ok(new_operation(call, caller, submission, movement, None))
}

/// The source is the own of whoever pays; an account that is not is as good as none.
pub async fn check_leg(app: &App, owner_id: Uuid, leg: &submission::Leg, index: Option<usize>) -> Result<OperationLeg, Error> {
    let within = |field: &str| index.map_or_else(|| field.to_owned(), |index| format!("legs[{index}].{field}"));
    let source = party(app, leg, leg.source, |account| account.owner_id == owner_id, || within("source_account_id"), &within).await?;
    let destination = party(app, leg, leg.destination, |_| true, || within("destination_account_id"), &within).await?;
    Ok(OperationLeg { source, destination, amount: leg.amount, description: leg.description.clone() })
}

async fn party(
    app: &App,
    leg: &submission::Leg,
    id: Option<Uuid>,
    may_be: impl Fn(&Account) -> bool,
    field: impl FnOnce() -> String,
    within: impl Fn(&str) -> String,
) -> Result<Option<Party>, Error> {
    let Some(id) = id else { return Ok(None) };
    let account = app.account(id).await?.filter(|account| may_be(account) && !account.system);
    let account = account.ok_or_else(|| Error::AccountNotFound { field: Some(field()) })?;
    let asked = leg.amount.currency();
    if account.currency != asked {
        // Which currency a stranger's account has is not said.
        return Err(Problem::field(within("amount.currency_code"), format!("{asked} is not the currency of both accounts")).into());
    }
    Ok(Some(Party { account_id: id, owner_id: account.owner_id }))
}

/// An operation that nothing has happened to yet. Of a reversal, `original_id` is what it reverses.
pub fn new_operation(call: &Call, caller: &Caller, submission: Submission, movement: Movement, original_id: Option<Uuid>) -> NewOperation {
    let (submitted, request_hash) = contract::submitted(&submission, caller.id, original_id);
    let now_us = clock::now_us();
    // At most 30 days.
    let expiry_us = |hold: submission::Hold| i64::try_from(hold.expiry.as_micros()).unwrap_or_default();
    NewOperation {
        operation: Operation {
            request_hash,
            settlement: submission.settlement,
            hold: submission.hold.map(|hold| Hold { expire_time_us: now_us + expiry_us(hold), captured: None }),
            original_id,
            description: submission.description,
            metadata: submission.metadata,
            effective_time_us: submission.effective_time_us.unwrap_or(now_us),
            has_effective_time: submission.effective_time_us.is_some(),
            ..Operation::new(clock::new_id(), (caller.id, submission.external_id), submission.kind, movement, now_us)
        },
        submitted,
        correlation_id: call.correlation_id.to_string(),
        purpose: Purpose::Plain,
        saga: None,
    }
}

/// Waits until the outcomes are known or the time is over; the operations as they stand then. A call that waits is no load, and gives its slot back; so
/// many may wait, and one beyond does not.
pub async fn wait_for_outcomes(app: &App, call: &Call, operations: &mut [&mut Operation], until: Instant) {
    let is_open = |operation: &&mut Operation| !is_decided(operation.state);
    if !operations.iter().any(is_open) || until <= Instant::now() {
        return;
    }
    let Ok(_waiting) = app.waiting.try_acquire() else { return };
    call.slot.release();
    let open = operations.iter_mut().filter(|one| is_open(one));
    futures_util::future::join_all(open.map(|operation| wait_for_outcome(app, operation, until))).await;
}

async fn wait_for_outcome(app: &App, operation: &mut Operation, until: Instant) {
    // Registered before it is read, so that no change in between is missed.
    let mut follower = app.changes().follow(operation.id);
    let version = |operation: &Operation| operation.head.map_or(0, |head| head.version);
    let mut is_told = false;
    loop {
        let before = version(operation);
        // It is durable, and that is what counts: where it cannot be read now, the state as it stood is still an answer.
        if let Ok(Some(now)) = app.operation_loader.load(operation.id).await {
            *operation = now;
        }
        if is_decided(operation.state) || Instant::now() >= until {
            return;
        }
        // Told of what is not there: a database that was restored meanwhile, or cannot be read.
        if is_told && version(operation) == before {
            tokio::time::sleep_until(until.min(Instant::now() + READ_AGAIN)).await;
        }
        // When the time is over it is read once more.
        is_told = timeout_at(until, follower.changed(version(operation))).await.is_ok();
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
