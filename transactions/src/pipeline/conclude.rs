//! Operations that wait for an outside provider are ended as it says. What it reports is stored first, also before its transaction is there; it is applied
//! by whoever takes the report, or whoever stores the transaction, and by a sweep where neither could.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use lastro_database::Error;
use lastro_mesh::clock;
use lastro_money::Minor;
use lastro_proto::reasons::rejections::{PAYMENT_DECLINED, PROVIDER_FAILED};
use metrics::counter;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Settler;
use super::attempt::{Subject, changed, marks};
use super::decision::{self, Concluded, Origin, Resolved, Table};
use crate::domain::operation::{Operation, State, Type};
use crate::domain::payment;
use crate::domain::rejection::Reason;
use crate::domain::report::{ReportOutcome, ReportType, Word, outcome_of};
use crate::provider::{self, Answer};
use crate::store::ledger::{Ledger, Lock, ReportChange, Writes};
use crate::store::operations;
use crate::store::provider_calls::{Call, CallEnd, CallKind};
use crate::store::provider_events::{self, WaitingReport};
use crate::store::sagas::SagaEpoch;

/// A database that is busy is tried so often.
const ATTEMPTS: ExponentialBuilder =
    ExponentialBuilder::new().with_min_delay(Duration::from_millis(10)).with_max_delay(Duration::from_millis(200)).with_max_times(5);

const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Reports that one sweep looks at; the next one goes on behind them.
const SWEEP_MAX: u32 = 1000;

/// Applies what waits and could not be applied when it came, until told to stop.
pub async fn run(settler: &Settler, stop: CancellationToken) {
    let mut after = Uuid::nil();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
        match settler.sweep_reports(after).await {
            Ok(looked_to) => after = looked_to,
            Err(error) => tracing::warn!(%error, "what providers have reported cannot be applied now"),
        }
    }
}

/// Why applying is begun anew, or has failed.
enum Stop {
    ElsewhereFirst,
    Error(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Settler {
    /// Where to go on.
    async fn sweep_reports(&self, after: Uuid) -> Result<Uuid, Error> {
        let waiting = provider_events::waiting_after(self.database.writer(), after, SWEEP_MAX).await?;
        let mut operations: Vec<Uuid> = waiting.iter().filter_map(|(_, operation_id)| *operation_id).collect();
        operations.sort_unstable();
        operations.dedup();
        for operation_id in operations {
            // One that cannot be applied does not keep the others.
            if let Err(error) = self.apply_reports(operation_id).await {
                tracing::error!(%error, operation = %operation_id, "what a provider has reported cannot be applied");
            }
        }
        let is_last = waiting.len() < SWEEP_MAX as usize;
        Ok(waiting.last().filter(|_| !is_last).map_or(Uuid::nil(), |(event_id, _)| *event_id))
    }

    /// Applies what was reported of an operation and waits to be applied.
    pub(super) async fn apply_reports(&self, operation_id: Uuid) -> Result<(), Error> {
        (|| self.apply_reports_once(operation_id)).retry(ATTEMPTS).sleep(tokio::time::sleep).when(Error::is_transient).await
    }

    async fn apply_reports_once(&self, operation_id: Uuid) -> Result<(), Error> {
        loop {
            match self.attempt_reports(operation_id).await {
                // A clearing account was full: again, with another one. At most once a stripe.
                Err(Stop::ElsewhereFirst) => {}
                Err(Stop::Error(error)) => return Err(error),
                Ok(outcomes) => {
                    for outcome in outcomes {
                        counter!("lastro_provider_events_total", "outcome" => name(outcome)).increment(1);
                        if outcome == ReportOutcome::Contradicts {
                            tracing::error!(operation = %operation_id, "a provider reports what contradicts how its transaction has ended");
                        }
                    }
                    return Ok(());
                }
            }
        }
    }

    /// In one transaction; what became of each report.
    async fn attempt_reports(&self, operation_id: Uuid) -> Result<Vec<ReportOutcome>, Stop> {
        let mut ledger = Ledger::begin(&self.database).await?;
        // The operation before balances, as everybody does. Whoever has it applies its reports.
        let Some(claimed) = ledger.lock_operations(&[operation_id], Lock::Wait).await?.pop() else {
            ledger.rollback().await?;
            return Ok(Vec::new());
        };
        let reports = ledger.waiting_reports((claimed.operation.owner_id, &claimed.operation.external_id)).await?;
        if reports.is_empty() {
            ledger.rollback().await?;
            return Ok(Vec::new());
        }
        let (_, mut subject) = Subject::new(claimed);
        let legs = decision::legs(&subject.claimed.operation.movement, operation_id, &self.stripes);
        let balances = ledger.lock(&decision::accounts(legs.into_iter()), Lock::Wait).await?;
        let before = marks(&balances);
        let mut table = Table::new(balances, &self.stripes, clock::now_us());
        let mut writes = Writes::default();
        for report in reports {
            let Some(outcome) = apply(&mut subject.claimed.operation, &report, &mut table, &mut writes)? else { break };
            writes.reports.push(ReportChange { event_id: report.id, operation_id, outcome });
        }
        let outcomes = writes.reports.iter().map(|change| change.outcome).collect();
        writes.balances = changed(&before, &table.balances);
        writes.updated = subject.change().into_iter().collect();
        ledger.commit(&writes).await?;
        self.committed(&writes);
        Ok(outcomes)
    }
}

impl Settler {
    /// Ends what a payment provider was asked for, as it has answered, in one transaction with the end of the asking. False where the operation is not that
    /// far yet.
    pub(super) async fn conclude_call(&self, call: &Call, answer: &Answer) -> Result<bool, Error> {
        let attempt = || async {
            loop {
                match self.attempt_call(call, answer).await {
                    Err(Stop::ElsewhereFirst) => {}
                    Err(Stop::Error(error)) => return Err(error),
                    Ok(ended) => return Ok(ended),
                }
            }
        };
        attempt.retry(ATTEMPTS).sleep(tokio::time::sleep).when(Error::is_transient).await
    }

    async fn attempt_call(&self, call: &Call, answer: &Answer) -> Result<bool, Stop> {
        let Some(asked) = operations::get(self.database.writer(), call.operation_id).await? else {
            return Err(Error::corrupt("a call about nothing").into());
        };
        let mut ledger = Ledger::begin(&self.database).await?;
        // A refund and its payment, in the order of their ids, as everybody does.
        let mut ids: Vec<Uuid> = [Some(asked.id), asked.original_id].into_iter().flatten().collect();
        ids.sort_unstable();
        let mut subjects: HashMap<Uuid, Subject> = ledger.lock_operations(&ids, Lock::Wait).await?.into_iter().map(Subject::new).collect();
        let mut subject = subjects.remove(&asked.id).ok_or_else(|| Error::corrupt("an operation that has gone"))?;
        let mut writes = Writes::default();
        let operation = &mut subject.claimed.operation;
        let legs = decision::legs(&operation.movement, operation.id, &self.stripes);
        let balances = ledger.lock(&decision::accounts(legs.into_iter()), Lock::Wait).await?;
        let before = marks(&balances);
        let mut table = Table::new(balances, &self.stripes, clock::now_us());
        let origin = Origin { correlation_id: call.correlation_id.clone(), causation_id: subject.claimed.last_event_id, now_us: table.now_us };
        let ended = match (call.kind, operation.state) {
            (CallKind::Charge, State::Waiting) => conclude_charge(operation, answer, &origin, &mut table, &mut writes)?,
            (CallKind::Refund, State::Authorized) => {
                let payment = operation.original_id.and_then(|id| subjects.get_mut(&id));
                conclude_refund(operation, payment, answer, &origin, &mut table, &mut writes)?;
                true
            }
            (CallKind::Charge | CallKind::Refund, State::Pending | State::Retrying) => false,
            // Nobody waits for the money: whatever became of it meanwhile, it is given back, once.
            (CallKind::Charge, State::Rejected) if *answer == Answer::Done => {
                tracing::error!(operation = %operation.id, "a charge that nobody waits for any more is given back");
                writes.ended_calls.push((operation.id, call.kind, end_of(answer)));
                writes.give_back_calls.push(give_back(operation));
                true
            }
            // Ended before, or a charge that was given back.
            _ => {
                writes.ended_calls.push((operation.id, call.kind, end_of(answer)));
                true
            }
        };
        if !ended {
            ledger.rollback().await?;
            return Ok(false);
        }
        writes.balances = changed(&before, &table.balances);
        writes.updated = subject.change().into_iter().collect();
        writes.refunds = subjects.values().filter_map(Subject::refund_change).collect();
        ledger.commit(&writes).await?;
        self.committed(&writes);
        Ok(true)
    }
}

impl Settler {
    /// Ends a charge that waits for its provider, for the saga that asked for it. False where the saga has called with a higher epoch; then nothing is changed.
    /// What does not wait any more is left as it is.
    pub(super) async fn cancel_charge(&self, operation_id: Uuid, saga: SagaEpoch, correlation_id: &str) -> Result<bool, Error> {
        let attempt = || self.attempt_cancel(operation_id, saga, correlation_id);
        attempt.retry(ATTEMPTS).sleep(tokio::time::sleep).when(Error::is_transient).await
    }

    async fn attempt_cancel(&self, operation_id: Uuid, saga: SagaEpoch, correlation_id: &str) -> Result<bool, Error> {
        let mut ledger = Ledger::begin(&self.database).await?;
        let raised = ledger.raise_sagas(&[saga], Lock::Wait).await?;
        let is_stale = raised.first().is_none_or(|raised| raised.epoch > saga.epoch);
        let claimed = if is_stale { None } else { ledger.lock_operations(&[operation_id], Lock::Wait).await?.pop() };
        let Some(claimed) = claimed.filter(|claimed| claimed.operation.state == State::Waiting) else {
            ledger.rollback().await?;
            return Ok(!is_stale);
        };
        let (_, mut subject) = Subject::new(claimed);
        let causation_id = subject.claimed.last_event_id;
        let origin = Origin { correlation_id: correlation_id.to_owned(), causation_id, now_us: clock::now_us() };
        let event = decision::cancel(&mut subject.claimed.operation, &origin)?;
        let writes = Writes { events: vec![event], updated: subject.change().into_iter().collect(), ..Writes::default() };
        ledger.commit(&writes).await?;
        self.committed(&writes);
        Ok(true)
    }

    /// Nobody asks the provider any more for a charge that was cancelled: it was never made.
    pub(super) async fn end_cancelled_call(&self, operation_id: Uuid) -> Result<(), Error> {
        let attempt = || async {
            let mut ledger = Ledger::begin(&self.database).await?;
            let claimed = ledger.lock_operations(&[operation_id], Lock::Wait).await?.pop();
            if claimed.is_none_or(|claimed| claimed.operation.state != State::Rejected) {
                return ledger.rollback().await;
            }
            ledger.commit(&Writes { ended_calls: vec![(operation_id, CallKind::Charge, CallEnd::NotAsked)], ..Writes::default() }).await
        };
        attempt.retry(ATTEMPTS).sleep(tokio::time::sleep).when(Error::is_transient).await
    }
}

/// With the key of giving it back.
fn give_back(charge: &Operation) -> (Uuid, Uuid) {
    (charge.id, provider::key(CallKind::GiveBack, charge.owner_id, &charge.external_id, None))
}

const fn end_of(answer: &Answer) -> CallEnd {
    match answer {
        Answer::Done => CallEnd::Done,
        Answer::Declined(_) => CallEnd::Declined,
    }
}

/// The word of a payment provider.
fn word_of(answer: &Answer) -> Word {
    match answer {
        Answer::Done => Word::Settled,
        Answer::Declined(reason) if reason.is_empty() => Word::Failed(PAYMENT_DECLINED.into()),
        Answer::Declined(reason) => Word::Failed(reason.as_str().into()),
    }
}

fn conclude_charge(
    operation: &mut Operation,
    answer: &Answer,
    origin: &Origin,
    table: &mut Table<'_>,
    writes: &mut Writes<'_>,
) -> Result<bool, Stop> {
    match decision::conclude(operation, word_of(answer), origin, table)? {
        Concluded::AsSaid(event, postings) => {
            writes.events.push(event);
            writes.postings.extend(postings.into_iter().map(|posting| (operation.id, posting)));
        }
        // The card was charged, and the ledger cannot take the money: the provider is to give it back.
        Concluded::Refused(event) => {
            tracing::error!(operation = %operation.id, reason = operation.reason.as_ref().map(Reason::name), "a charge that the ledger cannot take is given back");
            writes.events.push(event);
            writes.give_back_calls.push(give_back(operation));
        }
        Concluded::ElsewhereFirst => return Err(Stop::ElsewhereFirst),
    }
    writes.ended_calls.push((operation.id, CallKind::Charge, end_of(answer)));
    Ok(true)
}

fn conclude_refund(
    refund: &mut Operation,
    payment: Option<&mut Subject>,
    answer: &Answer,
    origin: &Origin,
    table: &mut Table<'_>,
    writes: &mut Writes<'_>,
) -> Result<(), Stop> {
    match decision::resolve_refund(refund, word_of(answer), origin, table)? {
        Resolved::Ended(event, postings) => {
            writes.events.push(event);
            writes.postings.extend(postings.into_iter().map(|posting| (refund.id, posting)));
        }
        Resolved::Refused(_) | Resolved::NotLocked => return Err(Error::corrupt("a refund that the ledger refuses to end").into()),
        Resolved::ElsewhereFirst => return Err(Stop::ElsewhereFirst),
    }
    writes.ended_calls.push((refund.id, CallKind::Refund, end_of(answer)));
    if matches!(answer, Answer::Declined(_)) {
        // It was counted when it was held.
        let payment = &mut payment.ok_or_else(|| Error::corrupt("a refund of nothing"))?.claimed.operation;
        let parts = refund.refunded.as_deref().unwrap_or_default();
        let refunded = payment::changed_by(payment, parts, Minor::checked_sub).ok_or_else(|| Error::corrupt("a refund that was not counted"))?;
        payment.refunded = Some(refunded);
    }
    Ok(())
}

/// What a report comes to; None where its operation is not that far yet.
fn apply(operation: &mut Operation, report: &WaitingReport, table: &mut Table<'_>, writes: &mut Writes<'_>) -> Result<Option<ReportOutcome>, Stop> {
    if let Some(outcome) = outcome_of(report.report, operation.settlement, operation.state) {
        return Ok(Some(outcome));
    }
    if operation.state != State::Waiting {
        return Ok(None);
    }
    // What a payment provider is asked for, only its answer ends.
    if operation.kind != Type::Deposit {
        return Ok(Some(ReportOutcome::PassedOver));
    }
    let word = match report.report {
        ReportType::Failed => Word::Failed(reason(&report.payload)),
        ReportType::Settled | ReportType::Submitted => Word::Settled,
    };
    let origin = Origin { correlation_id: report.correlation_id.clone(), causation_id: Some(report.id), now_us: table.now_us };
    match decision::conclude(operation, word, &origin, table)? {
        Concluded::AsSaid(event, postings) => {
            writes.events.push(event);
            writes.postings.extend(postings.into_iter().map(|posting| (operation.id, posting)));
            Ok(Some(ReportOutcome::Applied))
        }
        Concluded::Refused(event) => {
            writes.events.push(event);
            Ok(Some(ReportOutcome::Contradicts))
        }
        Concluded::ElsewhereFirst => Err(Stop::ElsewhereFirst),
    }
}

/// Why the provider says that it failed.
fn reason(payload: &BTreeMap<String, String>) -> Box<str> {
    payload.get("reason").filter(|reason| !reason.is_empty()).map_or(PROVIDER_FAILED, String::as_str).into()
}

const fn name(outcome: ReportOutcome) -> &'static str {
    match outcome {
        ReportOutcome::Applied => "applied",
        ReportOutcome::PassedOver => "passed_over",
        ReportOutcome::Contradicts => "contradicts",
    }
}
