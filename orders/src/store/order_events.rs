//! The events of orders, as they are told.

use lastro_events::event::{Event, GENESIS};
use lastro_events::{EventStore, NewEvent};
use lastro_mesh::clock;
use lastro_proto::orders::events::v1::{
    InventoryReleased, InventoryReserved, OrderCancelled, OrderCompleted, OrderCreated, OrderEvent, OrderFailed, OrderStatusUpdated, OrderedItem,
    PaymentFailed, PaymentProcessed, PaymentRefunded, ReservedPieces, order_event,
};
use prost::Message as _;
use uuid::Uuid;

use crate::domain::order::{Head, Payment, Placed, Progress, Status};

/// What orders tells of orders.
pub const ORDER_EVENTS: EventStore = EventStore { table: "order_events", topic: "orders", message: "lastro.orders.events.v1.OrderEvent" };

/// Something that is told of an order.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    Created,
    StatusUpdated { from: Status, to: Status },
    InventoryReserved(Vec<Reserved>),
    PaymentProcessed { transaction_id: Uuid },
    PaymentFailed { reason: String, detail: String, refund: bool, transaction_id: Option<Uuid> },
    PaymentRefunded { transaction_id: Uuid },
    InventoryReleased { returned: bool },
    Completed,
    Failed { reason: String, detail: String },
    Cancelled { was_completed: bool, reason: String, detail: String },
}

/// Pieces of a product in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserved {
    pub product_id: String,
    pub store_id: String,
    pub quantity: i32,
}

/// Appends a fact to the stream of an order that is locked; where it stands is brought up to it.
pub fn record(placed: &Placed, progress: &mut Progress, fact: Fact, correlation_id: &str, now_us: i64) -> Event {
    let (kind, event) = wire(placed, fact);
    let payload = OrderEvent { event: Some(event), trace_id: trace_id(&placed.traceparent).to_owned() };
    // Times of one stream never go back, whatever the clocks of replicas say.
    let recorded_us = now_us.max(progress.update_time_us);
    let new = NewEvent {
        id: clock::new_id(),
        kind,
        payload: payload.encode_to_vec(),
        correlation_id: correlation_id.to_owned(),
        causation_id: progress.head.map(|head| head.event_id),
        recorded_us,
    };
    let (version, previous) = progress.head.map_or((1, GENESIS), |head| (head.version + 1, head.hash));
    let event = new.at(placed.id, version, &previous);
    progress.head = Some(Head { event_id: event.id, version, hash: event.hash });
    progress.update_time_us = recorded_us;
    event
}

/// Of `00-<trace>-<span>-<flags>`.
fn trace_id(traceparent: &str) -> &str {
    traceparent.split('-').nth(1).unwrap_or_default()
}

fn wire(placed: &Placed, fact: Fact) -> (&'static str, order_event::Event) {
    let (currency_code, total_minor) = (placed.total.currency().code().to_owned(), placed.total.minor().get());
    match fact {
        Fact::Created => ("ORDER_CREATED", order_event::Event::Created(created(placed))),
        Fact::StatusUpdated { from, to } => {
            let updated = OrderStatusUpdated { from: from.name().to_owned(), to: to.name().to_owned() };
            ("ORDER_STATUS_UPDATED", order_event::Event::StatusUpdated(updated))
        }
        Fact::InventoryReserved(items) => {
            let item = |one: Reserved| ReservedPieces { product_id: one.product_id, store_id: one.store_id, quantity: one.quantity };
            let items = items.into_iter().map(item).collect();
            ("INVENTORY_RESERVED", order_event::Event::InventoryReserved(InventoryReserved { items }))
        }
        Fact::PaymentProcessed { transaction_id } => {
            let paid = PaymentProcessed { transaction_id: transaction_id.to_string(), currency_code, amount_minor: total_minor };
            ("PAYMENT_PROCESSED", order_event::Event::PaymentProcessed(paid))
        }
        Fact::PaymentFailed { reason, detail, refund, transaction_id } => {
            let transaction_id = transaction_id.map(|id| id.to_string()).unwrap_or_default();
            ("PAYMENT_FAILED", order_event::Event::PaymentFailed(PaymentFailed { reason, detail, refund, transaction_id }))
        }
        Fact::PaymentRefunded { transaction_id } => {
            ("PAYMENT_REFUNDED", order_event::Event::PaymentRefunded(PaymentRefunded { transaction_id: transaction_id.to_string() }))
        }
        Fact::InventoryReleased { returned } => ("INVENTORY_RELEASED", order_event::Event::InventoryReleased(InventoryReleased { returned })),
        Fact::Completed => ("ORDER_COMPLETED", order_event::Event::Completed(OrderCompleted { currency_code, total_minor })),
        Fact::Failed { reason, detail } => ("ORDER_FAILED", order_event::Event::Failed(OrderFailed { reason, detail })),
        Fact::Cancelled { was_completed, reason, detail } => {
            ("ORDER_CANCELLED", order_event::Event::Cancelled(OrderCancelled { was_completed, reason, detail }))
        }
    }
}

fn created(placed: &Placed) -> OrderCreated {
    let item = |item: &crate::domain::order::Item| OrderedItem {
        product_id: item.product_id.to_string(),
        product_name: item.product_name.clone(),
        quantity: i32::try_from(item.quantity).unwrap_or(i32::MAX),
        price_minor: item.price.get(),
        merchant_account_id: item.merchant_account_id.to_string(),
    };
    OrderCreated {
        customer_id: placed.owner_id.to_string(),
        items: placed.items.iter().map(item).collect(),
        currency_code: placed.total.currency().code().to_owned(),
        total_minor: placed.total.minor().get(),
        payment_method: match placed.payment {
            Payment::Account(_) => "ACCOUNT",
            Payment::Card(_) => "CARD",
        }
        .to_owned(),
        store_id: placed.store_id.clone().unwrap_or_default(),
        external_id: placed.external_id.clone(),
    }
}
