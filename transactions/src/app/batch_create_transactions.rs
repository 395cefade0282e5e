//! Accepts up to 1,000 transactions in one call: each with a result of its own, or all of them or none.

use std::collections::HashMap;
use std::time::Duration;

use lastro_mesh::call::Call;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::status::Problem;
use tokio::time::Instant;
use uuid::Uuid;

use super::App;
use super::submit::{TimeBudget, check, wait_for_outcomes};
use crate::Error;
use crate::domain::submission::{Request, Submission};
use crate::error::{batch_refused_by, batch_refused_for};
use crate::pipeline::{Accepted, NewOperation, Refused};
use crate::store::operations;

/// Legs of a batch: an atomic one is one transaction of the database, for which others wait, and the answer has postings for each.
const BATCH_LEGS_MAX: usize = 4000;
/// Of the answer, as `Operation::answer_bytes` has them: clients of gRPC take 4 MiB.
const ANSWER_BYTES_MAX: usize = 3 * 1024 * 1024;

/// What is asked of the batch as a whole.
#[derive(Clone, Copy)]
pub struct Terms {
    pub atomic: bool,
    pub wait: Duration,
    pub validate_only: bool,
}

/// One result a request, in their order. Requests that do not read are given as what is wrong with them.
pub async fn batch_create_transactions(
    app: &App,
    call: &Call,
    caller: &Caller,
    requests: Vec<Result<Request, Problem>>,
    terms: Terms,
) -> Result<Vec<Result<Accepted, Error>>, Error> {
    let legs = requests.iter().flatten().map(|request| request.legs.len().max(1)).sum();
    if legs > BATCH_LEGS_MAX {
        return Err(Problem::field("requests", format!("must have {BATCH_LEGS_MAX} legs at most, all together; these have {legs}")).into());
    }
    let budget = TimeBudget::of(call);
    // What goes together waits for its locks as long as its caller does.
    let turn_by = if terms.atomic { budget.answer_by } else { budget.store_by };
    let turn = app.legs_turn(caller.id, legs, turn_by).await?;
    let mut checked = Vec::with_capacity(requests.len());
    for request in requests {
        checked.push(check_one(app, call, caller, request).await);
    }
    check_answer(&checked)?;
    match terms {
        Terms { atomic: true, .. } => together(app, budget, checked, terms.validate_only).await,
        Terms { validate_only: true, .. } => rehearse_each(app, checked).await,
        Terms { wait, .. } => {
            let mut results = each(app, budget, checked).await;
            drop(turn);
            let mut accepted: Vec<_> = results.iter_mut().flatten().map(|accepted| &mut accepted.operation).collect();
            wait_for_outcomes(app, call, &mut accepted, budget.answer_by.min(Instant::now() + wait)).await;
            Ok(results)
        }
    }
}

/// The answer must be one that every client takes.
fn check_answer(checked: &[Result<NewOperation, Error>]) -> Result<(), Error> {
    let bytes: usize = checked.iter().flatten().map(|new| new.operation.answer_bytes()).sum();
    if bytes <= ANSWER_BYTES_MAX {
        return Ok(());
    }
    let rule =
        format!("have descriptions, metadata and legs that make an answer of {bytes} bytes; {ANSWER_BYTES_MAX} are allowed: send several batches");
    Err(Problem::field("requests", rule).into())
}

async fn check_one(app: &App, call: &Call, caller: &Caller, request: Result<Request, Problem>) -> Result<NewOperation, Error> {
    let request = request?;
    if request.wait.is_some() {
        return Err(Problem::field("wait", "must not be given here: the batch waits as a whole").into());
    }
    if request.validate_only {
        return Err(Problem::field("validate_only", "must not be given here: the batch is validated as a whole").into());
    }
    let submission = Submission::read(request, app.settings.amount_minor_max)?;
    check(app, call, caller, submission).await
}

/// Each by itself.
async fn each(app: &App, budget: TimeBudget, checked: Vec<Result<NewOperation, Error>>) -> Vec<Result<Accepted, Error>> {
    let submit = |new: Result<NewOperation, Error>| async move { Ok(budget.stored(app.pipeline.submit(new?)).await?) };
    futures_util::future::join_all(checked.into_iter().map(submit)).await
}

/// The same key again is what the first one becomes; where a key was used before, what that has become.
async fn rehearse_each(app: &App, checked: Vec<Result<NewOperation, Error>>) -> Result<Vec<Result<Accepted, Error>>, Error> {
    let mut unique = Unique::default();
    let places: Vec<Result<usize, Error>> = checked.into_iter().map(|one| Ok(unique.add(one?)?)).collect();
    let keys: Vec<(Uuid, &str)> = unique.new.iter().map(NewOperation::key).collect();
    let existing = operations::by_keys(app.database.reader(), &keys).await?;
    let stored_as = |one: &NewOperation| existing.iter().find(|stored| stored.external_id == one.operation.external_id);
    let fresh: Vec<NewOperation> = unique.new.iter().filter(|one| stored_as(one).is_none()).cloned().collect();
    let mut rehearsed = app.pipeline.rehearse(&fresh).await?.into_iter();
    let outcome = |one: &NewOperation| match stored_as(one) {
        Some(stored) if stored.request_hash == one.operation.request_hash => Ok(stored.clone()),
        Some(_) => Err(Refused::KeyReused),
        None => rehearsed.next().unwrap_or(Err(Refused::Unavailable)),
    };
    let outcomes: Vec<_> = unique.new.iter().map(outcome).collect();
    let result = |place: Result<usize, Error>| Ok(Accepted { operation: outcomes[place?].clone()?, replayed: false });
    Ok(places.into_iter().map(result).collect())
}

/// All of them, or none. The same request with the same key twice is one operation.
async fn together(
    app: &App,
    budget: TimeBudget,
    checked: Vec<Result<NewOperation, Error>>,
    validate_only: bool,
) -> Result<Vec<Result<Accepted, Error>>, Error> {
    let mut unique = Unique::default();
    let mut positions = Vec::with_capacity(checked.len());
    for (index, one) in checked.into_iter().enumerate() {
        let one = one.map_err(|error| batch_refused_by(index, error.into()))?;
        positions.push(unique.add(one).map_err(|refused| batch_refused_by(index, Error::from(refused).into()))?);
    }
    let new = unique.new;
    let refused = |refused: Refused| match refused {
        Refused::Together { index, culprit } => {
            // The place among all requests of the first that has the key.
            let index = positions.iter().position(|position| *position == index).unwrap_or(index);
            batch_refused_for(index, culprit).into()
        }
        other => Error::from(other),
    };
    let accepted = if validate_only {
        rehearse_together(app, &new).await?.map_err(refused)?
    } else {
        budget.stored_whole(app.pipeline.submit_together(new)).await.map_err(refused)?
    };
    Ok(positions.iter().map(|position| accepted.get(*position).cloned().ok_or_else(|| Refused::Broken.into())).collect())
}

async fn rehearse_together(app: &App, new: &[NewOperation]) -> Result<Result<Vec<Accepted>, Refused>, Error> {
    let keys: Vec<(Uuid, &str)> = new.iter().map(NewOperation::key).collect();
    let existing = operations::by_keys(app.database.reader(), &keys).await?;
    if !existing.is_empty() {
        return Ok(crate::pipeline::answer_of_all(new, existing));
    }
    let rehearsed = app.pipeline.rehearse_together(new).await?;
    Ok(rehearsed.map(|operations| operations.into_iter().map(|operation| Accepted { operation, replayed: false }).collect()))
}

/// Operations with different keys.
#[derive(Default)]
struct Unique {
    new: Vec<NewOperation>,
    by_key: HashMap<String, usize>,
}

impl Unique {
    /// The place of an operation, which is that of the first one with its key; refused where that asks for something else.
    fn add(&mut self, one: NewOperation) -> Result<usize, Refused> {
        let place = *self.by_key.entry(one.operation.external_id.clone()).or_insert(self.new.len());
        match self.new.get(place) {
            Some(first) if first.operation.request_hash != one.operation.request_hash => Err(Refused::KeyReused),
            Some(_) => Ok(place),
            None => {
                self.new.push(one);
                Ok(place)
            }
        }
    }
}
