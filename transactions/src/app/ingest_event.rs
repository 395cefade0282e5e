//! Takes what a provider reports: stores it, so that it is not lost, and applies it if its transaction is there.

use std::collections::BTreeMap;

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::status::Problem;
use uuid::Uuid;

use super::App;
use super::get_operation::{ProviderOperation, read};
use super::submit::TimeBudget;
use crate::domain::operation::Settlement;
use crate::domain::report::{REASON_MAX, ReportType};
use crate::domain::submission::{METADATA_BYTES_MAX, check_key};
use crate::store::provider_events::{self, ProviderEvent};
use crate::{Error, contract};

/// Different events of one key and one type: what is answered stays a message that every client takes.
const EVENTS_MAX: usize = 50;

/// What a provider reports, as it was said.
pub struct EventRequest {
    pub external_id: String,
    pub report: ReportType,
    pub payload: BTreeMap<String, String>,
}

/// The operation as it stands then, and the event that this call reported again, if it did.
pub async fn ingest_event(app: &App, call: &Call, caller: &Caller, request: EventRequest) -> Result<(ProviderOperation, Option<Uuid>), Error> {
    check(&request)?;
    check_key(&request.external_id)?;
    let _turn = app.report_turn(caller.id, TimeBudget::of(call).store_by).await?;
    let key = (caller.id, request.external_id.as_str());
    let digest = contract::report_digest(request.report, &request.payload);
    let stands = read(app.database.writer(), caller, key.1).await?;
    let reported_before = |events: &[ProviderEvent]| events.iter().find(|event| event.digest == digest).map(|event| event.id);
    if let Some(event_id) = reported_before(&stands.events) {
        return Ok((stands, Some(event_id)));
    }
    if stands.operation.as_ref().is_some_and(|operation| operation.settlement == Settlement::Internal) {
        return Err(Error::OperationNotExternal);
    }
    // Of each type by itself: what does not decide leaves room for what does.
    let of_its_type = stands.events.iter().filter(|event| event.report == request.report).count();
    if of_its_type >= EVENTS_MAX {
        return Err(Error::TooManyEvents(of_its_type));
    }
    let event = ProviderEvent {
        id: clock::new_id(),
        provider_id: caller.id,
        external_id: request.external_id.clone(),
        report: request.report,
        payload: request.payload,
        digest,
        correlation_id: call.correlation_id.to_string(),
        create_time_us: clock::now_us(),
        outcome: None,
    };
    let is_new = provider_events::insert(app.database.writer(), &event).await?;
    // Looked for after the report is stored: whoever stores the transaction looks for reports after that.
    let now = read(app.database.writer(), caller, &event.external_id).await?;
    let repeated = |now: &ProviderOperation| if is_new { None } else { reported_before(&now.events) };
    let Some(operation) = &now.operation else {
        let repeated = repeated(&now);
        return Ok((now, repeated));
    };
    if let Err(error) = app.pipeline.apply_reports(operation.id).await {
        // It is durable, and that is what counts.
        tracing::warn!(%error, operation = %operation.id, "what a provider has reported is applied later");
    }
    let now = read(app.database.writer(), caller, &event.external_id).await?;
    let repeated = repeated(&now);
    Ok((now, repeated))
}

fn check(request: &EventRequest) -> Result<(), Problem> {
    let bytes: usize = request.payload.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > METADATA_BYTES_MAX {
        return Err(Problem::field("payload", format!("has {bytes} bytes of keys and values; at most {METADATA_BYTES_MAX} are taken")));
    }
    let reason_length = request.payload.get("reason").map_or(0, |reason| reason.chars().count());
    if request.report == ReportType::Failed && reason_length > REASON_MAX {
        return Err(Problem::field("payload", format!("has a reason of {reason_length} characters; at most {REASON_MAX} become the transaction's")));
    }
    Ok(())
}
