//! `lastro.orders.v1.SagasService`.

use std::sync::Arc;

use lastro_mesh::call::Call;
use lastro_mesh::page::Page;
use lastro_mesh::status::Problem;
use lastro_proto::orders::v1::sagas_service_server::SagasService;
use lastro_proto::orders::v1::{
    GetSagaRequest, ListSagasRequest, ListSagasResponse, ResumeSagaRequest, Saga, SagaStep, resume_saga_request, saga, saga_step,
};
use lastro_proto::time::timestamp;
use tonic::{Request, Response, Status};

use crate::app::App;
use crate::app::get_order::get_order;
use crate::app::list_sagas::list_sagas;
use crate::app::resume_saga::{Action, resume_saga};
use crate::domain::saga::{Record, State, Step, StepState};
use crate::store::orders::Order;

pub struct Sagas(pub Arc<App>);

#[tonic::async_trait]
impl SagasService for Sagas {
    async fn get_saga(&self, request: Request<GetSagaRequest>) -> Result<Response<Saga>, Status> {
        let caller = Call::of(&request)?.user()?;
        Ok(Response::new(wire(&get_order(&self.0, caller, &request.get_ref().order_id).await?)))
    }

    async fn list_sagas(&self, request: Request<ListSagasRequest>) -> Result<Response<ListSagasResponse>, Status> {
        let message = request.get_ref();
        let page = Page::read(message.page_size, &message.page_token)?;
        let state = message.state.map(|_| state_from_wire(message.state()).ok_or_else(|| Problem::field("state", "must be a state of sagas")));
        let (orders, next_page_token) = list_sagas(&self.0, state.transpose()?, page).await?;
        Ok(Response::new(ListSagasResponse { sagas: orders.iter().map(wire).collect(), next_page_token }))
    }

    async fn resume_saga(&self, request: Request<ResumeSagaRequest>) -> Result<Response<Saga>, Status> {
        let call = Call::of(&request)?.clone();
        let message = request.into_inner();
        let action = match message.action() {
            resume_saga_request::Action::Retry => Action::Retry,
            resume_saga_request::Action::Compensate => Action::Compensate,
            resume_saga_request::Action::Unspecified => return Err(Problem::field("action", "must be RETRY or COMPENSATE").into()),
        };
        Ok(Response::new(wire(&resume_saga(&self.0, &call, call.user()?, &message.id, action).await?)))
    }
}

const fn state_from_wire(state: saga::State) -> Option<State> {
    match state {
        saga::State::SagaStateUnspecified => None,
        saga::State::Started => Some(State::Started),
        saga::State::InventoryReserved => Some(State::InventoryReserved),
        saga::State::PaymentProcessing => Some(State::PaymentProcessing),
        saga::State::Completed => Some(State::Completed),
        saga::State::Compensating => Some(State::Compensating),
        saga::State::Compensated => Some(State::Compensated),
        saga::State::Failed => Some(State::Failed),
    }
}

const fn state_to_wire(state: State) -> saga::State {
    match state {
        State::Started => saga::State::Started,
        State::InventoryReserved => saga::State::InventoryReserved,
        State::PaymentProcessing => saga::State::PaymentProcessing,
        State::Completed => saga::State::Completed,
        State::Compensating => saga::State::Compensating,
        State::Compensated => saga::State::Compensated,
        State::Failed => saga::State::Failed,
    }
}

fn wire(order: &Order) -> Saga {
    let (placed, progress) = (&order.placed, &order.progress);
    let steps = Step::ALL.into_iter().map(|step| wire_step(step.names().0, saga_step::Direction::Do, progress.saga.step(step)));
    // In the order in which they are done.
    let undos = Step::ALL.into_iter().rev().filter_map(|step| Some((step, progress.saga.undo(step)?)));
    let undos = undos.map(|(step, undo)| wire_step(step.names().1, saga_step::Direction::Undo, undo));
    Saga {
        id: placed.id.to_string(),
        order_id: placed.id.to_string(),
        state: state_to_wire(progress.saga.state) as i32,
        reason: progress.saga.reason.clone(),
        detail: progress.saga.detail.clone(),
        steps: steps.chain(undos).collect(),
        deadline: Some(timestamp(placed.deadline_us)),
        create_time: Some(timestamp(placed.create_time_us)),
        update_time: Some(timestamp(progress.update_time_us)),
    }
}

fn wire_step(name: &str, direction: saga_step::Direction, record: &Record) -> SagaStep {
    let state = match record.state {
        StepState::Waiting => saga_step::State::Waiting,
        StepState::Running => saga_step::State::Running,
        StepState::Done => saga_step::State::Done,
        StepState::Failed => saga_step::State::Failed,
    };
    SagaStep {
        name: name.to_owned(),
        direction: direction as i32,
        state: state as i32,
        attempts: i32::try_from(record.attempts).unwrap_or(i32::MAX),
        last_error: record.last_error.clone(),
        start_time: record.start_us.map(timestamp),
        end_time: record.end_us.map(timestamp),
        next_attempt_time: record.next_attempt_us.map(timestamp),
    }
}
