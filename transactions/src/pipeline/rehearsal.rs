//! What would happen: decided as a batch decides it, against what is stored now, and nothing is locked or stored.

use std::collections::HashMap;

use lastro_database::Error;
use lastro_mesh::clock;
use uuid::Uuid;

use super::Pipeline;
use super::attempt::{Decided, Outcome, Stop, Subject};
use super::decision::{self, Origin, Table};
use super::job::{NewOperation, NewResolution, Refused};
use super::stripes::Stripes;
use crate::domain::ledger::Legs;
use crate::domain::operation::Operation;
use crate::store::ledger::ClaimedOperation;
use crate::store::{accounts, operations};

/// What would become of something.
pub type Rehearsed = Result<Operation, Refused>;

impl Pipeline {
    /// What would become of new operations, one after the other.
    pub async fn rehearse(&self, new: &[NewOperation]) -> Result<Vec<Rehearsed>, Error> {
        let stripes = self.settler().stripes.copy();
        let legs = || new.iter().map(|new| decision::legs(&new.operation.movement, new.operation.id, &stripes));
        'anew: loop {
            let mut decided = self.decided(legs(), &stripes).await?;
            let mut rehearsed = Vec::with_capacity(new.len());
            for new in new {
                match decided.create(new) {
                    Ok(outcome) => rehearsed.push(operation_of(outcome)),
                    // At most once a stripe.
                    Err(Stop::ElsewhereFirst) => continue 'anew,
                    Err(Stop::Error(error)) => return Err(error),
                }
            }
            return Ok(rehearsed);
        }
    }

    /// What would become of new operations that go together.
    pub async fn rehearse_together(&self, new: &[NewOperation]) -> Result<Result<Vec<Operation>, Refused>, Error> {
        let stripes = self.settler().stripes.copy();
        let legs = || new.iter().map(|new| decision::legs(&new.operation.movement, new.operation.id, &stripes));
        loop {
            match self.decided(legs(), &stripes).await?.create_together(new) {
                Ok(Outcome::Together(operations)) => return Ok(Ok(operations)),
                Ok(Outcome::Refused(refused)) => return Ok(Err(refused)),
                Ok(_) => return Ok(Err(Refused::Unavailable)),
                Err(Stop::ElsewhereFirst) => {}
                Err(Stop::Error(error)) => return Err(error),
            }
        }
    }

    /// What would become of a hold.
    pub async fn rehearse_resolution(&self, new: &NewResolution) -> Result<Rehearsed, Error> {
        let stripes = self.settler().stripes.copy();
        loop {
            let legs = decision::legs(&new.movement, new.hold_id, &stripes);
            let mut decided = self.decided(std::iter::once(legs), &stripes).await?;
            // Read after the balances: if it is AUTHORIZED still, they have what it holds.
            let Some(hold) = operations::get(self.settler().database.reader(), new.hold_id).await? else {
                return Ok(Err(Refused::ResolvedMeanwhile));
            };
            let claimed = ClaimedOperation { operation: hold, correlation_id: new.correlation_id.clone(), last_event_id: None };
            decided.subjects.extend([Subject::new(claimed)]);
            match decided.resolve(new) {
                Ok(outcome) => return Ok(operation_of(outcome)),
                Err(Stop::ElsewhereFirst) => {}
                Err(Stop::Error(error)) => return Err(error),
            }
        }
    }

    /// What is stored now of the accounts of some operations, as if the holds that have run out were released.
    async fn decided<'a>(&self, legs: impl Iterator<Item = Legs>, stripes: &'a Stripes) -> Result<Decided<'a>, Error> {
        let (database, now_us) = (&self.settler().database, clock::now_us());
        let ids = decision::accounts(legs.flatten());
        let mut table = Table::new(accounts::balances(database.reader(), &ids).await?, stripes, now_us);
        let held: Vec<Uuid> = ids.into_iter().filter(|id| table.balances.get(id).is_some_and(|balance| balance.held.get() > 0)).collect();
        if !held.is_empty() {
            for mut hold in operations::expired_on(database.reader(), &held, now_us).await? {
                let origin = Origin { correlation_id: String::new(), causation_id: None, now_us };
                // Of a hold of several legs other accounts may be missing: then it stays.
                decision::expire(&mut hold, &origin, &mut table)?;
            }
        }
        Ok(Decided::new(table, HashMap::new(), HashMap::new()))
    }
}

fn operation_of(outcome: Outcome) -> Rehearsed {
    match outcome {
        Outcome::Created(operation) => Ok(operation),
        Outcome::Resolved(operation) => Ok(*operation),
        Outcome::Refused(refused) => Err(refused),
        Outcome::Together(_) | Outcome::NotLocked => Err(Refused::Unavailable),
    }
}
