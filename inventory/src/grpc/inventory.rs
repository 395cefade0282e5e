//! `lastro.inventory.v1.InventoryService`.

use std::sync::Arc;

use lastro_database::Error as DatabaseError;
use lastro_events::Event;
use lastro_mesh::call::Call;
use lastro_mesh::page::Page;
use lastro_mesh::status::Problem;
use lastro_proto::inventory::events::v1::{StockEvent, stock_event};
use lastro_proto::inventory::v1::inventory_service_server::InventoryService;
use lastro_proto::inventory::v1::{
    AdjustStockRequest, ConfirmReservationRequest, GetReservationRequest, GetStockRequest, ListStockEventsRequest, ListStockEventsResponse,
    ProductStock, ReleaseReservationRequest, Reservation, ReserveStockRequest, ReservedItem, Stock, StockChange, reservation,
};
use lastro_proto::time::{micros, timestamp};
use prost::Message as _;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::Error;
use crate::app::App;
use crate::app::adjust_stock::adjust_stock;
use crate::app::get_reservation::get_reservation;
use crate::app::get_stock::get_stock;
use crate::app::list_stock_events::list_stock_events;
use crate::app::reserve_stock::reserve_stock;
use crate::app::resolve_reservation::resolve_reservation;
use crate::domain::reservation::{State, Verb};
use crate::domain::stock;
use crate::store::reservations;

pub struct Inventory(pub Arc<App>);

#[tonic::async_trait]
impl InventoryService for Inventory {
    async fn get_stock(&self, request: Request<GetStockRequest>) -> Result<Response<ProductStock>, Status> {
        let call = Call::of(&request)?.clone();
        let message = request.get_ref();
        let malformed = || Problem::field("as_of", "must be a time between the years 1 and 9999");
        let as_of_us = message.as_of.as_ref().map(|as_of| micros(as_of).ok_or_else(malformed)).transpose()?;
        let (product_id, stores) = get_stock(&self.0, &call, &message.product_id, message.store_id.as_deref(), as_of_us).await?;
        let stores = stores.into_iter().map(|(store_id, stock)| wire(product_id, store_id, stock)).collect();
        Ok(Response::new(ProductStock { product_id: product_id.to_string(), stores }))
    }

    async fn adjust_stock(&self, request: Request<AdjustStockRequest>) -> Result<Response<Stock>, Status> {
        let call = Call::of(&request)?.clone();
        let adjusted = adjust_stock(&self.0, &call, call.user()?, request.into_inner()).await?;
        Ok(Response::new(wire(adjusted.product_id, adjusted.store_id, adjusted.stock)))
    }

    async fn reserve_stock(&self, request: Request<ReserveStockRequest>) -> Result<Response<Reservation>, Status> {
        let call = Call::of(&request)?.clone();
        let made = reserve_stock(&self.0, &call, request.into_inner()).await?;
        Ok(Response::new(Reservation { replayed: made.replayed, ..wire_reservation(made.reservation) }))
    }

    async fn get_reservation(&self, request: Request<GetReservationRequest>) -> Result<Response<Reservation>, Status> {
        let reservation = get_reservation(&self.0, &request.get_ref().reservation_id).await?;
        Ok(Response::new(wire_reservation(reservation)))
    }

    async fn confirm_reservation(&self, request: Request<ConfirmReservationRequest>) -> Result<Response<Reservation>, Status> {
        let call = Call::of(&request)?.clone();
        let reservation = resolve_reservation(&self.0, &call, &request.get_ref().reservation_id, Verb::Confirm).await?;
        Ok(Response::new(wire_reservation(reservation)))
    }

    async fn release_reservation(&self, request: Request<ReleaseReservationRequest>) -> Result<Response<Reservation>, Status> {
        let call = Call::of(&request)?.clone();
        let reservation = resolve_reservation(&self.0, &call, &request.get_ref().reservation_id, Verb::Release).await?;
        Ok(Response::new(wire_reservation(reservation)))
    }

    async fn list_stock_events(&self, request: Request<ListStockEventsRequest>) -> Result<Response<ListStockEventsResponse>, Status> {
        let call = Call::of(&request)?.clone();
        let message = request.get_ref();
        let page = Page::read(message.page_size, &message.page_token)?;
        let (events, next_page_token) = list_stock_events(&self.0, &call, &message.product_id, &message.store_id, page).await?;
        let events = events.into_iter().map(wire_event).collect::<Result<_, Error>>()?;
        Ok(Response::new(ListStockEventsResponse { events, next_page_token }))
    }
}

/// What counts pieces is within 32 bits by the rules of stock; versions are for as long as a store changes 2^31 times.
fn int32(number: i64) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn wire(product_id: Uuid, store_id: String, stock: stock::Stock) -> Stock {
    Stock {
        product_id: product_id.to_string(),
        store_id,
        on_hand: int32(stock.on_hand),
        reserved: int32(stock.reserved),
        available: int32(stock.available()),
        version: int32(stock.version),
    }
}

fn wire_reservation(reservation: reservations::Reservation) -> Reservation {
    let state = match reservation.state {
        State::Reserved => reservation::State::Reserved,
        State::Confirmed => reservation::State::Confirmed,
        // What has left and is back again is only a saga's to bring about.
        State::Released | State::Returned => reservation::State::Released,
        State::Expired => reservation::State::Expired,
    };
    let item =
        |item: reservations::Item| ReservedItem { product_id: item.product_id.to_string(), store_id: item.store_id, quantity: int32(item.quantity) };
    Reservation {
        id: reservation.name,
        state: state as i32,
        items: reservation.items.into_iter().map(item).collect(),
        expire_time: Some(timestamp(reservation.expire_time_us)),
        create_time: Some(timestamp(reservation.create_time_us)),
        replayed: false,
    }
}

fn wire_event(event: Event) -> Result<StockChange, Error> {
    let payload = StockEvent::decode(event.payload.as_slice()).map_err(DatabaseError::corrupt)?;
    let (quantity, reservation_id) = match payload.event {
        Some(stock_event::Event::Added(added)) => (added.quantity, String::new()),
        Some(stock_event::Event::Removed(removed)) => (removed.quantity, String::new()),
        Some(stock_event::Event::ReservedFor(reserved)) => (reserved.quantity, reserved.reservation_id),
        Some(stock_event::Event::Released(released)) => (released.quantity, released.reservation_id),
        Some(stock_event::Event::Committed(committed)) => (committed.quantity, committed.reservation_id),
        Some(stock_event::Event::Returned(returned)) => (returned.quantity, returned.reservation_id),
        None => (0, String::new()),
    };
    Ok(StockChange {
        id: event.id.to_string(),
        version: int32(event.version),
        r#type: event.kind,
        quantity: int32(quantity),
        reservation_id,
        on_hand: int32(payload.on_hand),
        reserved: int32(payload.reserved),
        record_time: Some(timestamp(event.recorded_us)),
        correlation_id: event.correlation_id,
    })
}
