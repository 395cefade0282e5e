//! Accepts a transaction: checks what can be checked at the call, stores it, and waits for the outcome if that is asked for.

use lastro_mesh::call::Call;
use lastro_mesh::identity::User as Caller;
use tokio::time::Instant;

use super::App;
use super::submit::{TimeBudget, check, wait_for_outcomes};
use crate::Error;
use crate::domain::operation::{Operation, Settlement};
use crate::domain::submission::{Request, Submission};
use crate::pipeline::{Accepted, NewOperation, Refused};
use crate::store::{operations, provider_events};

/// The transaction as it stands, once it is durable; or as it would stand, if nothing is to be stored.
pub async fn create_transaction(app: &App, call: &Call, caller: &Caller, request: Request) -> Result<Accepted, Error> {
    let budget = TimeBudget::of(call);
    let turn = app.legs_turn(caller.id, request.legs.len(), budget.store_by).await?;
    let submission = Submission::read(request, app.settings.amount_minor_max)?;
    let (wait, validate_only) = (submission.wait, submission.validate_only);
    let new = check(app, call, caller, submission).await?;
    if validate_only {
        // Apart, so that the future of everybody else stays small: it is moved for each call.
        let operation = Box::pin(rehearse(app, new)).await?;
        return Ok(Accepted { operation, replayed: false });
    }
    let mut accepted = budget.stored(app.pipeline.submit(new)).await?;
    drop(turn);
    if accepted.operation.settlement == Settlement::External && !accepted.replayed {
        apply_what_came_before(app, &accepted.operation).await;
    }
    wait_for_outcomes(app, call, &mut [&mut accepted.operation], budget.answer_by.min(Instant::now() + wait)).await;
    Ok(accepted)
}

/// What the provider reported before its transaction was there. It is durable, and applied later where it cannot be now.
async fn apply_what_came_before(app: &App, operation: &Operation) {
    let applied = match provider_events::any_waiting(app.database.writer(), (operation.owner_id, &operation.external_id)).await {
        Ok(true) => app.pipeline.apply_reports(operation.id).await,
        nothing => nothing.map(|_| ()),
    };
    if let Err(error) = applied {
        tracing::warn!(%error, operation = %operation.id, "what a provider has reported is applied later");
    }
}

/// What it would become; where its key was used, what that has become.
async fn rehearse(app: &App, new: NewOperation) -> Result<Operation, Error> {
    if let Some(stored) = operations::by_keys(app.database.reader(), &[new.key()]).await?.pop() {
        return if stored.request_hash == new.operation.request_hash { Ok(stored) } else { Err(Refused::KeyReused.into()) };
    }
    let rehearsed = app.pipeline.rehearse(&[new]).await?.pop();
    Ok(rehearsed.unwrap_or(Err(Refused::Unavailable))?)
}
