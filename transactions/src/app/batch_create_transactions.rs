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
use crate::error::refused_batch;
use crate::pipeline::{Accepted, NewOperation, Refused};
use crate::store::operations;

/// Legs of an atomic batch, which is one transaction of the database: those of others wait meanwhile.
const ATOMIC_LEGS_MAX: usize = 4000;

fn legs_of<'a>(new: impl IntoIterator<Item = &'a NewOperation>) -> usize {
    new.into_iter().map(|one| one.operation.movement.legs().len()).sum()
}

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
    let mut checked = Vec::with_capacity(requests.len());
    for request in requests {
        checked.push(check_one(app, call, caller, request).await);
    }
    match terms {
        Terms { atomic: true, .. } => together(app, call, caller.id, checked, terms).await,
        Terms { validate_only: true, .. } => rehearse_each(app, checked).await,
        Terms { wait, .. } => Ok(each(app, call, caller.id, checked, wait).await),
    }
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
async fn each(app: &App, call: &Call, caller_id: Uuid, checked: Vec<Result<NewOperation, Error>>, wait: Duration) -> Vec<Result<Accepted, Error>> {
    let budget = TimeBudget::of(call);
    let turn = match app.batch_turn(caller_id, legs_of(checked.iter().flatten()), budget.store_by).await {
        Ok(turn) => turn,
        Err(busy) => return checked.into_iter().map(|one| one.and_then(|_| Err(busy.clone().into()))).collect(),
    };
    let submit = |new: Result<NewOperation, Error>| async move { Ok(budget.stored(app.pipeline.submit(new?)).await?) };
    let mut results: Vec<Result<Accepted, Error>> = futures_util::future::join_all(checked.into_iter().map(submit)).await;
    drop(turn);
    let mut accepted: Vec<_> = results.iter_mut().flatten().map(|accepted| &mut accepted.operation).collect();
    wait_for_outcomes(app, call, &mut accepted, budget.answer_by.min(Instant::now() + wait)).await;
    results
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
    call: &Call,
    caller_id: Uuid,
    checked: Vec<Result<NewOperation, Error>>,
    terms: Terms,
) -> Result<Vec<Result<Accepted, Error>>, Error> {
    let mut unique = Unique::default();
    let mut positions = Vec::with_capacity(checked.len());
    for (index, one) in checked.into_iter().enumerate() {
        let one = one.map_err(|error| refused_batch(index, error.into()))?;
        positions.push(unique.add(one).map_err(|refused| refused_batch(index, Error::from(refused).into()))?);
    }
    let new = unique.new;
    let legs = legs_of(&new);
    if legs > ATOMIC_LEGS_MAX {
        return Err(Problem::field(
            "requests",
            format!("must have {ATOMIC_LEGS_MAX} legs at most, all together, in an atomic batch; these have {legs}"),
        )
        .into());
    }
    let refused = |refused: Refused| match refused {
        Refused::Together { index, culprit } => {
            // The place among all requests of the first that has the key.
            let index = positions.iter().position(|position| *position == index).unwrap_or(index);
            refused_batch(index, crate::error::culprit_problem(culprit)).into()
        }
        other => Error::from(other),
    };
    let accepted = if terms.validate_only {
        rehearse_together(app, &new).await?.map_err(refused)?
    } else {
        let budget = TimeBudget::of(call);
        let _turn = app.batch_turn(caller_id, legs, budget.answer_by).await?;
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
