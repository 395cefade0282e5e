//! `lastro.transactions.v1.OperationsService`.

use std::sync::Arc;

use lastro_mesh::call::Call;
use lastro_mesh::status::Problem;
use lastro_proto::time::timestamp;
use lastro_proto::transactions::v1::operations_service_server::OperationsService;
use lastro_proto::transactions::v1::provider_event::Type;
use lastro_proto::transactions::v1::{GetOperationRequest, IngestEventRequest, Operation, ProviderEvent, transaction};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::fresh;
use crate::app::App;
use crate::app::get_operation::{ProviderOperation, get_operation};
use crate::app::ingest_event::{EventRequest, ingest_event};
use crate::contract::state_to_wire;
use crate::domain::report::{ReportOutcome, ReportType};
use crate::store::provider_events;

pub struct Operations(pub Arc<App>);

#[tonic::async_trait]
impl OperationsService for Operations {
    async fn ingest_event(&self, request: Request<IngestEventRequest>) -> Result<Response<Operation>, Status> {
        let call = Call::of(&request)?.clone();
        let (caller, message) = (call.user()?, request.into_inner());
        let report = report_from_wire(message.event_type()).ok_or_else(|| Problem::field("event_type", "must be SUBMITTED, SETTLED or FAILED"))?;
        let asked = EventRequest { external_id: message.external_id, report, payload: message.payload };
        let (operation, repeated) = ingest_event(&self.0, &call, caller, asked).await?;
        let mark = operation.operation.as_ref().and_then(fresh::mark);
        Ok(fresh::of_operations(wire_operation(operation, repeated), mark))
    }

    async fn get_operation(&self, request: Request<GetOperationRequest>) -> Result<Response<Operation>, Status> {
        let caller = Call::of(&request)?.user()?;
        let operation = get_operation(&self.0, caller, &request.get_ref().external_id).await?;
        Ok(Response::new(wire_operation(operation, None)))
    }
}

/// As long as there is no transaction, nothing has become of it: PENDING.
fn wire_operation(found: ProviderOperation, repeated: Option<Uuid>) -> Operation {
    let operation = found.operation.as_ref();
    let reason = operation.and_then(|operation| operation.reason.as_ref());
    Operation {
        external_id: found.external_id,
        transaction_id: operation.map(|operation| operation.id.to_string()).unwrap_or_default(),
        state: operation.map_or(transaction::State::Pending, |operation| state_to_wire(operation.state)) as i32,
        reason: reason.map(|reason| reason.name().to_owned()).unwrap_or_default(),
        events: found.events.into_iter().map(|event| wire_event(event, repeated)).collect(),
    }
}

fn wire_event(event: provider_events::ProviderEvent, repeated: Option<Uuid>) -> ProviderEvent {
    ProviderEvent {
        id: event.id.to_string(),
        event_type: report_to_wire(event.report) as i32,
        payload: event.payload,
        create_time: Some(timestamp(event.create_time_us)),
        duplicate: repeated == Some(event.id),
        applied: event.outcome == Some(ReportOutcome::Applied),
        contradicts: event.outcome == Some(ReportOutcome::Contradicts),
    }
}

const fn report_from_wire(of: Type) -> Option<ReportType> {
    match of {
        Type::Unspecified => None,
        Type::Submitted => Some(ReportType::Submitted),
        Type::Settled => Some(ReportType::Settled),
        Type::Failed => Some(ReportType::Failed),
    }
}

const fn report_to_wire(report: ReportType) -> Type {
    match report {
        ReportType::Submitted => Type::Submitted,
        ReportType::Settled => Type::Settled,
        ReportType::Failed => Type::Failed,
    }
}
