//! What a payment provider is asked for. Whoever stored a call makes it at once; should that process be killed, or the provider not answer, the call is
//! taken up again by whichever replica finds it due: after 1, 2, 4 s and so on, then every minute, for ever. Before anything is asked a second time, the
//! provider is asked what it did.

use std::sync::Arc;
use std::time::Duration;

use lastro_mesh::call::Call as ApiCall;
use lastro_mesh::clock;
use lastro_money::{Amount, Minor};
use metrics::{counter, gauge};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::App;
use crate::Error;
use crate::domain::operation::{Operation, State};
use crate::provider::{Answer, Failure, Order, OrderKind, Provider};
use crate::store::operations;
use crate::store::provider_calls::{self, Call, CallKind, Postponed};

const LOOK_EVERY: Duration = Duration::from_millis(250);
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// Calls of this replica at once, beside those that callers wait for.
const AT_ONCE: u32 = 32;
/// Less than the lease of a call.
const CALL_MAX: Duration = Duration::from_secs(10);
/// What was sent to the provider has come by then, or never comes.
const UNDER_WAY_MAX_US: i64 = 60_000_000;
/// The longest pause between attempts.
const PAUSE_MAX_US: i64 = 60_000_000;

/// Makes the calls that are due, until told to stop.
pub async fn run(app: &Arc<App>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(AT_ONCE as usize));
    let mut count_at = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        if count_at <= Instant::now() {
            count_at = Instant::now() + COUNT_EVERY;
            count(app).await;
        }
        if let Err(error) = make_due(app, &places).await {
            tracing::warn!(%error, "calls to the payment provider that are due cannot be read now");
        }
    }
}

/// What operators are told.
async fn count(app: &App) {
    if let Ok(count) = provider_calls::count_unknown(app.database.reader()).await {
        gauge!("lastro_payments_unknown").set(count as f64);
    }
    let provider = app.provider.as_ref().map_or("none", |provider| &*provider.name);
    if let Ok(count) = provider_calls::count_of_others(app.database.reader(), provider).await {
        gauge!("lastro_payments_of_other_providers").set(count as f64);
        if count > 0 {
            tracing::warn!(
                count,
                provider,
                "payments and refunds are under way at another payment provider than the one that is set up: nobody asks it"
            );
        }
    }
}

async fn make_due(app: &Arc<App>, places: &Arc<Semaphore>) -> Result<(), Error> {
    let free = u32::try_from(places.available_permits()).unwrap_or(AT_ONCE);
    let Some(provider) = app.provider.as_ref().filter(|_| free > 0) else { return Ok(()) };
    for call in provider_calls::claim(&app.database, &provider.name, free).await? {
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
        let app = app.clone();
        tokio::spawn(async move {
            make(&app, &call).await;
            drop(place);
        });
    }
    Ok(())
}

/// Makes a call that was just stored, and waits for its answer as long as the caller does. A caller that leaves does not keep the answer from being written
/// down. Who waits is no load, and gives its slot back.
pub async fn ask_and_wait(app: &Arc<App>, call: &ApiCall, operation_id: Uuid, turn: Option<OwnedSemaphorePermit>, until: Instant) {
    // Where too many are under way, it is left to whoever finds it due.
    let Ok(place) = app.provider_places.clone().try_acquire_owned() else { return };
    let asking = app.clone();
    let asked = tokio::spawn(async move {
        make_first(&asking, operation_id).await;
        drop((turn, place));
    });
    let Ok(_waiting) = app.waiting.try_acquire() else { return };
    call.slot.release();
    let _ = timeout_at(until, asked).await;
}

async fn make_first(app: &App, operation_id: Uuid) {
    match provider_calls::open(app.database.writer(), operation_id).await {
        Ok(Some(call)) => make(app, &call).await,
        // Whoever it was due for was faster.
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, operation = %operation_id, "a call to the payment provider is made later"),
    }
}

/// Makes a call, and writes down what came of it.
async fn make(app: &App, call: &Call) {
    let made = match timeout(CALL_MAX, ask(app, call)).await {
        Ok(Ok(Err(Failure::NeverCame))) => match app.pipeline.end_cancelled_call(call.operation_id).await {
            Ok(()) => return,
            Err(error) => Err(error.into()),
        },
        Ok(made) => made,
        Err(_) => Ok(Err(Failure::Unknown(format!("no answer within {} s", CALL_MAX.as_secs())))),
    };
    let written = match made {
        Ok(Ok(answer)) => conclude(app, call, &answer).await,
        Ok(Err(failure)) => postpone(app, call, &failure).await,
        Err(error) => Err(error),
    };
    if let Err(error) = written {
        // Where not even this can be written, the lease ends, and somebody takes it up again.
        let again = postpone(app, call, &Failure::Unknown(format!("what it answered cannot be written down: {error}"))).await;
        tracing::error!(%error, operation = %call.operation_id, noted = again.is_ok(), "what the payment provider answered cannot be written down; it is asked again");
    }
}

/// Asks the provider: first what it did, where it may have been asked before.
async fn ask(app: &App, call: &Call) -> Result<Result<Answer, Failure>, Error> {
    let Some(provider) = &app.provider else { return Ok(Err(Failure::NotSent("no payment provider is set up".to_owned()))) };
    let operation = operations::get(app.database.writer(), call.operation_id).await?;
    let operation = operation.ok_or_else(|| lastro_database::Error::corrupt("a call about nothing"))?;
    // Nothing is moved outside for what the ledger has not agreed to, or has ended already.
    let is_asked_for = match call.kind {
        // One that a saga has cancelled is not made any more; what has become of it is found out.
        CallKind::Charge if operation.state == State::Rejected => return find_cancelled(app, provider, call, &operation).await,
        CallKind::Charge => operation.state == State::Waiting,
        CallKind::Refund => operation.state == State::Authorized,
        CallKind::GiveBack => operation.state == State::Rejected,
    };
    if !is_asked_for {
        return Ok(Err(Failure::NotSent("its transaction does not wait for it".to_owned())));
    }
    let order = order(app, call, &operation).await?;
    Ok(ask_for(provider, call, &order).await)
}

/// What has become of a charge that was cancelled while the provider was asked. Where the provider has never seen it, what was sent may be under way.
async fn find_cancelled(app: &App, provider: &Provider, call: &Call, operation: &Operation) -> Result<Result<Answer, Failure>, Error> {
    // Whoever stored it has it, has not asked yet, and does not.
    if !call.is_unknown {
        return Ok(Err(Failure::NeverCame));
    }
    let order = order(app, call, operation).await?;
    Ok(match provider.find(&order).await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) if clock::now_us() - operation.update_time_us >= UNDER_WAY_MAX_US => Err(Failure::NeverCame),
        Ok(None) => Err(Failure::Unknown("it was cancelled, and the provider has not seen it".to_owned())),
        Err(failure) => Err(failure),
    })
}

async fn ask_for(provider: &Provider, call: &Call, order: &Order) -> Result<Answer, Failure> {
    if call.is_unknown
        && let Some(answer) = provider.find(order).await?
    {
        return Ok(answer);
    }
    // Where the provider has never seen it, or never was asked. Should that be wrong, the same key does nothing a second time.
    provider.send(order).await
}

async fn order(app: &App, call: &Call, operation: &Operation) -> Result<Order, Error> {
    let corrupt = |what: &'static str| Error::from(lastro_database::Error::corrupt(what));
    let legs = operation.movement.legs();
    let currency = legs.first().ok_or_else(|| corrupt("an operation without legs"))?.amount.currency();
    let sum = legs.iter().try_fold(Minor::ZERO, |sum, leg| sum.checked_add(leg.amount.minor()));
    let amount = Amount::new(sum.ok_or_else(|| corrupt("an amount beyond 64 bits"))?, currency);
    Ok(match call.kind {
        CallKind::Charge => {
            let card_token = call.card_token.clone().ok_or_else(|| corrupt("a charge without a card"))?;
            Order { key: call.key, amount, kind: OrderKind::Charge { card_token } }
        }
        CallKind::Refund => {
            let charge = operation.original_id.ok_or_else(|| corrupt("a refund of nothing"))?;
            let charge = provider_calls::charge(app.database.writer(), charge).await?.key;
            Order { key: call.key, amount, kind: OrderKind::Refund { charge } }
        }
        CallKind::GiveBack => {
            let charge = provider_calls::charge(app.database.writer(), operation.id).await?.key;
            Order { key: call.key, amount, kind: OrderKind::Refund { charge } }
        }
    })
}

async fn conclude(app: &App, call: &Call, answer: &Answer) -> Result<(), Error> {
    let outcome = if *answer == Answer::Done { "done" } else { "declined" };
    counter!("lastro_provider_calls_total", "kind" => name(call.kind), "outcome" => outcome).increment(1);
    if let (CallKind::GiveBack, Answer::Declined(reason)) = (call.kind, answer) {
        // It stays where operators and the payer see it, until the provider has.
        tracing::error!(operation = %call.operation_id, reason, "the payment provider does not give back a charge that the ledger could not take: somebody has to");
        return postpone(app, call, &Failure::Unknown(format!("it does not give the charge back: {reason}"))).await;
    }
    if app.pipeline.conclude_call(call, answer).await? { Ok(()) } else { postpone(app, call, &Failure::NotSent("not that far yet".to_owned())).await }
}

async fn postpone(app: &App, call: &Call, failure: &Failure) -> Result<(), Error> {
    counter!("lastro_provider_calls_total", "kind" => name(call.kind), "outcome" => "no_answer").increment(1);
    tracing::warn!(operation = %call.operation_id, kind = name(call.kind), attempts = call.attempts, failure = failure.text(), "the payment provider gave no answer");
    let pause_us = 1_000_000_i64.checked_shl(u32::try_from(call.attempts.min(6)).unwrap_or(6)).unwrap_or(PAUSE_MAX_US).min(PAUSE_MAX_US);
    let postponed = Postponed {
        operation_id: call.operation_id,
        kind: call.kind,
        is_unknown: call.is_unknown || !matches!(failure, Failure::NotSent(_)),
        pause_us,
        error: failure.text(),
    };
    Ok(provider_calls::postpone(&app.database, postponed).await?)
}

const fn name(kind: CallKind) -> &'static str {
    match kind {
        CallKind::Charge => "charge",
        CallKind::Refund => "refund",
        CallKind::GiveBack => "give_back",
    }
}
