//! `lastro.internal.inventory.v1.ReservationsService`.

use std::sync::Arc;

use lastro_mesh::call::Call;
use lastro_mesh::status::Problem;
use lastro_proto::internal::inventory::v1::reservations_service_server::ReservationsService;
use lastro_proto::internal::inventory::v1::{
    ConfirmRequest, ReleaseRequest, ReserveRequest, ReturnRequest, SagaCall, SagaItem, SagaReservation, saga_reservation,
};
use lastro_proto::time::timestamp;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::app::App;
use crate::app::reserve_stock::{Wanted, WantedItem, ttl_us};
use crate::app::saga_reservations::{SagaStep, saga_reserve, saga_resolve};
use crate::domain::reservation::{State, Verb};
use crate::store::reservations::{Item, Reservation};
use crate::store::sagas::SagaEpoch;

pub struct Reservations(pub Arc<App>);

#[tonic::async_trait]
impl ReservationsService for Reservations {
    async fn reserve(&self, request: Request<ReserveRequest>) -> Result<Response<SagaReservation>, Status> {
        let call = Call::of(&request)?.clone();
        let message = request.into_inner();
        let buyer_id = buyer(message.call.as_ref())?;
        let SagaStep { saga, step } = step(message.call)?;
        let ttl_us = ttl_us(message.ttl.as_ref().map(|ttl| (ttl.seconds, ttl.nanos)))?;
        let item = |item: SagaItem| WantedItem {
            product_id: item.product_id,
            store_id: Some(item.store_id).filter(|store_id| !store_id.is_empty()),
            quantity: i64::from(item.quantity),
        };
        let items = message.items.into_iter().map(item).collect();
        let wanted = Wanted { namespace: saga.id, name: step, items, ttl_us, fence: Some(saga) };
        Ok(Response::new(wire(saga_reserve(&self.0, &call, buyer_id, wanted).await?)))
    }

    async fn confirm(&self, request: Request<ConfirmRequest>) -> Result<Response<SagaReservation>, Status> {
        let call = Call::of(&request)?.clone();
        self.resolve(&call, request.into_inner().call, Verb::Confirm).await
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<SagaReservation>, Status> {
        let call = Call::of(&request)?.clone();
        self.resolve(&call, request.into_inner().call, Verb::Release).await
    }

    async fn r#return(&self, request: Request<ReturnRequest>) -> Result<Response<SagaReservation>, Status> {
        let call = Call::of(&request)?.clone();
        self.resolve(&call, request.into_inner().call, Verb::Return).await
    }
}

impl Reservations {
    async fn resolve(&self, call: &Call, asked: Option<SagaCall>, verb: Verb) -> Result<Response<SagaReservation>, Status> {
        Ok(Response::new(wire(saga_resolve(&self.0, call, step(asked)?, verb).await?)))
    }
}

/// On whose behalf a saga asks.
fn buyer(call: Option<&SagaCall>) -> Result<Uuid, Problem> {
    let call = call.ok_or_else(|| Problem::field("call", "is required"))?;
    Uuid::parse_str(&call.on_behalf_of).map_err(|_| Problem::field("call.on_behalf_of", "must be a UUID"))
}

/// Which step of which saga. On whose behalf is checked, and told to nobody: stock is nobody's.
fn step(call: Option<SagaCall>) -> Result<SagaStep, Problem> {
    buyer(call.as_ref())?;
    let call = call.ok_or_else(|| Problem::field("call", "is required"))?;
    let id = Uuid::parse_str(&call.saga_id)
        .ok()
        .filter(|id| !id.is_nil())
        .ok_or_else(|| Problem::field("call.saga_id", "must be a UUID, not of zeros"))?;
    Ok(SagaStep { saga: SagaEpoch { id, epoch: call.epoch }, step: call.step })
}

fn wire(reservation: Reservation) -> SagaReservation {
    let state = match reservation.state {
        State::Reserved => saga_reservation::State::Reserved,
        State::Confirmed => saga_reservation::State::Confirmed,
        State::Released => saga_reservation::State::Released,
        State::Expired => saga_reservation::State::Expired,
        State::Returned => saga_reservation::State::Returned,
    };
    let item = |item: Item| SagaItem {
        product_id: item.product_id.to_string(),
        store_id: item.store_id,
        quantity: i32::try_from(item.quantity).unwrap_or(i32::MAX),
    };
    SagaReservation {
        state: state as i32,
        items: reservation.items.into_iter().map(item).collect(),
        expire_time: Some(timestamp(reservation.expire_time_us)),
    }
}
