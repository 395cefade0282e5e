//! `lastro.orders.v1.OrdersService`.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use lastro_events::Event;
use lastro_mesh::call::Call;
use lastro_mesh::freshness;
use lastro_mesh::status::Problem;
use lastro_money::{Currency, Minor};
use lastro_proto::orders::events::v1::OrderEvent;
use lastro_proto::orders::v1::orders_service_server::OrdersService;
use lastro_proto::orders::v1::{
    CancelOrderRequest, CreateOrderRequest, GetOrderRequest, ListOrderEventsRequest, ListOrderEventsResponse, Order, OrderEventRecord, OrderItem,
    OrderItemRequest, OrderPayment, UpdateOrderStatusRequest, order, order_payment,
};
use lastro_proto::time::timestamp;
use lastro_proto::r#type::v1::Money;
use prost::Message as _;
use tonic::{Request, Response, Status as GrpcStatus};
use uuid::Uuid;

use crate::Error;
use crate::app::App;
use crate::app::cancel_order::cancel_order;
use crate::app::create_order::{OrderRequest, WantedItem, create_order};
use crate::app::get_order::get_order;
use crate::app::list_order_events::list_order_events;
use crate::app::update_order_status::update_order_status;
use crate::domain::order::{CardToken, Item, Payment, Status};
use crate::store::order_events::ORDER_EVENTS;
use crate::store::orders;

/// How long a call may wait for its outcome.
const WAIT_MAX: Duration = Duration::from_secs(30);

pub struct Orders(pub Arc<App>);

#[tonic::async_trait]
impl OrdersService for Orders {
    async fn create_order(&self, request: Request<CreateOrderRequest>) -> Result<Response<Order>, GrpcStatus> {
        let call = Call::of(&request)?.clone();
        let accepted = create_order(&self.0, &call, call.user()?, read(request.into_inner())?).await?;
        Ok(written(accepted.order, accepted.replayed))
    }

    async fn get_order(&self, request: Request<GetOrderRequest>) -> Result<Response<Order>, GrpcStatus> {
        let caller = Call::of(&request)?.user()?;
        Ok(Response::new(wire(get_order(&self.0, caller, &request.get_ref().id).await?, false)))
    }

    async fn update_order_status(&self, request: Request<UpdateOrderStatusRequest>) -> Result<Response<Order>, GrpcStatus> {
        let call = Call::of(&request)?.clone();
        let message = request.into_inner();
        let status = status_from_wire(message.status()).ok_or_else(|| Problem::field("status", "must be SHIPPED or DELIVERED"))?;
        Ok(written(update_order_status(&self.0, &call, call.user()?, &message.id, status).await?, false))
    }

    async fn cancel_order(&self, request: Request<CancelOrderRequest>) -> Result<Response<Order>, GrpcStatus> {
        let call = Call::of(&request)?.clone();
        let accepted = cancel_order(&self.0, &call, call.user()?, &request.get_ref().id).await?;
        Ok(written(accepted.order, accepted.replayed))
    }

    async fn list_order_events(&self, request: Request<ListOrderEventsRequest>) -> Result<Response<ListOrderEventsResponse>, GrpcStatus> {
        let caller = Call::of(&request)?.user()?;
        let events = list_order_events(&self.0, caller, &request.get_ref().id).await?;
        let events = events.into_iter().map(wire_event).collect::<Result<_, Error>>()?;
        Ok(Response::new(ListOrderEventsResponse { events }))
    }
}

fn read(request: CreateOrderRequest) -> Result<OrderRequest, Problem> {
    let item = |(index, item): (usize, OrderItemRequest)| {
        let product_id = Uuid::parse_str(&item.product_id);
        let product_id = product_id.map_err(|_| Problem::field(format!("items[{index}].product_id"), "must be a UUID"))?;
        Ok(WantedItem { product_id, quantity: i64::from(item.quantity) })
    };
    let items = request.items.into_iter().enumerate().map(item).collect::<Result<_, Problem>>()?;
    let payment = read_payment(request.payment.ok_or_else(|| Problem::field("payment", "is required"))?)?;
    let store_id = request.store_id.filter(|store_id| !store_id.is_empty());
    Ok(OrderRequest { external_id: request.external_id, items, payment, store_id, wait: read_wait(request.wait)? })
}

fn read_payment(payment: OrderPayment) -> Result<Payment, Problem> {
    let method = payment.method();
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    match (method, given(payment.account_id), given(payment.card_token)) {
        (order_payment::Method::Unspecified, ..) => Err(Problem::field("payment.method", "must be ACCOUNT or CARD")),
        (order_payment::Method::Account, None, _) => Err(Problem::field("payment.account_id", "is required for the method ACCOUNT")),
        (order_payment::Method::Account, Some(_), Some(_)) => Err(Problem::field("payment.card_token", "must not be given for the method ACCOUNT")),
        (order_payment::Method::Account, Some(id), None) => {
            Ok(Payment::Account(Uuid::parse_str(&id).map_err(|_| Problem::field("payment.account_id", "must be a UUID"))?))
        }
        (order_payment::Method::Card, _, None) => Err(Problem::field("payment.card_token", "is required for the method CARD")),
        (order_payment::Method::Card, Some(_), Some(_)) => Err(Problem::field("payment.account_id", "must not be given for the method CARD")),
        (order_payment::Method::Card, None, Some(token)) => Ok(Payment::Card(Some(CardToken(token)))),
    }
}

fn read_wait(wait: Option<pbjson_types::Duration>) -> Result<Duration, Problem> {
    let Some(wait) = wait else { return Ok(Duration::ZERO) };
    let parts = u64::try_from(wait.seconds).ok().zip(u32::try_from(wait.nanos).ok().filter(|nanos| *nanos < 1_000_000_000));
    let wait = parts.map(|(seconds, nanos)| Duration::new(seconds, nanos)).filter(|wait| *wait <= WAIT_MAX);
    wait.ok_or_else(|| Problem::field("wait", "must be between 0 and 30 s"))
}

const fn status_from_wire(status: order::Status) -> Option<Status> {
    match status {
        order::Status::Shipped => Some(Status::Shipped),
        order::Status::Delivered => Some(Status::Delivered),
        order::Status::Unspecified | order::Status::Pending | order::Status::Completed | order::Status::Cancelled | order::Status::Failed => None,
    }
}

const fn status_to_wire(status: Status) -> order::Status {
    match status {
        Status::Pending => order::Status::Pending,
        Status::Completed => order::Status::Completed,
        Status::Shipped => order::Status::Shipped,
        Status::Delivered => order::Status::Delivered,
        Status::Cancelled => order::Status::Cancelled,
        Status::Failed => order::Status::Failed,
    }
}

fn money(minor: Minor, currency: Currency) -> Option<Money> {
    Some(Money { currency_code: currency.code().to_owned(), amount: lastro_money::format(minor, currency) })
}

/// The answer to a write, with a token for reads that are to see what it stored.
fn written(order: orders::Order, replayed: bool) -> Response<Order> {
    let mark = order.progress.head.map(|head| (order.placed.id, head.version));
    let mut response = Response::new(wire(order, replayed));
    freshness::tell(response.metadata_mut(), ORDER_EVENTS.topic, mark);
    response
}

fn wire(order: orders::Order, replayed: bool) -> Order {
    let (placed, progress) = (order.placed, order.progress);
    let currency = placed.total.currency();
    let item = |item: &Item| OrderItem {
        product_id: item.product_id.to_string(),
        product_name: item.product_name.clone(),
        quantity: i32::try_from(item.quantity).unwrap_or(i32::MAX),
        price: money(item.price, currency),
    };
    let method = match placed.payment {
        Payment::Account(_) => order_payment::Method::Account,
        Payment::Card(_) => order_payment::Method::Card,
    };
    Order {
        id: placed.id.to_string(),
        customer_id: placed.owner_id.to_string(),
        external_id: placed.external_id.clone(),
        status: status_to_wire(progress.status) as i32,
        reason: progress.saga.reason,
        detail: progress.saga.detail,
        items: placed.items.iter().map(item).collect(),
        total_amount: money(placed.total.minor(), currency),
        payment_method: method as i32,
        payment_id: progress.payment_id.map(|id| id.to_string()).unwrap_or_default(),
        store_id: placed.store_id.clone().unwrap_or_default(),
        create_time: Some(timestamp(placed.create_time_us)),
        update_time: Some(timestamp(progress.update_time_us)),
        replayed,
    }
}

fn wire_event(event: Event) -> Result<OrderEventRecord, Error> {
    let payload = OrderEvent::decode(event.payload.as_slice()).map_err(lastro_database::Error::corrupt)?;
    let mut hash = String::with_capacity(64);
    for byte in event.hash {
        let _ = write!(hash, "{byte:02x}");
    }
    Ok(OrderEventRecord {
        id: event.id.to_string(),
        version: i32::try_from(event.version).unwrap_or(i32::MAX),
        r#type: event.kind,
        create_time: Some(timestamp(event.recorded_us)),
        correlation_id: event.correlation_id,
        causation_id: event.causation_id.map(|id| id.to_string()).unwrap_or_default(),
        hash,
        payload: Some(payload),
    })
}
