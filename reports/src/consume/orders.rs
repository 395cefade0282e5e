//! Orders, the words by which they are found, counts and sales, from the events of orders. A batch of events is one database transaction of a few statements,
//! whatever it holds.

use lastro_database::Transaction;
use lastro_events::consumer::Failure;
use lastro_events::inbox::Progress;
use lastro_events::{Event, Handler};
use lastro_proto::orders::events::v1::{OrderCreated, OrderEvent, order_event};
use uuid::Uuid;

use super::{Readers, decode, id};
use crate::domain::calendar::Calendar;
use crate::domain::order::{Changes, Happened, Order, Status};
use crate::store::{edition, order_days, order_words, orders};

pub struct Orders {
    pub readers: Readers,
}

impl Handler for Orders {
    async fn apply(&self, tx: &Transaction, events: &[Event]) -> Result<(), Failure> {
        let streams = || events.chunk_by(|one, next| one.aggregate_id == next.aggregate_id);
        let begun_before: Vec<Uuid> = streams().filter(|stream| stream[0].version > 1).map(|stream| stream[0].aggregate_id).collect();
        let mut stored = orders::get(tx, &begun_before).await?;
        // That of the tables, whatever this process began with: another edition may have taken their place.
        let calendar = edition::get(tx).await?.calendar;
        let (mut new, mut changed, mut changes) = (Vec::new(), Vec::new(), Changes::default());
        for stream in streams() {
            let stored = stored.remove(&stream[0].aggregate_id);
            let is_new = stored.is_none();
            let order = after(stored, stream, &calendar, &mut changes)?;
            if is_new { new.push(order) } else { changed.push(order) }
        }
        orders::keep(tx, &new).await?;
        orders::add_items(tx, &new).await?;
        order_words::add(tx, &new).await?;
        orders::keep(tx, &changed).await?;
        Ok(order_days::add(tx, changes).await?)
    }

    fn applied(&self, events: &[Event]) {
        self.readers.tell(events, &[]);
    }

    fn progress(&self) -> Progress {
        orders::PROGRESS
    }
}

/// The order after the next events of its stream, of which this much is stored.
fn after(stored: Option<Order>, stream: &[Event], calendar: &Calendar, changes: &mut Changes) -> Result<Order, Failure> {
    let (mut order, later) = match stored {
        Some(order) => (order, stream),
        None => {
            let (first, later) = stream.split_first().ok_or_else(|| Failure::Event("no event".to_owned()))?;
            let order = created(first)?;
            changes.accepted(&order, calendar);
            (order, later)
        }
    };
    for event in later {
        order.apply(happened(event)?, event.version, event.recorded_us, calendar, changes);
    }
    Ok(order)
}

fn created(event: &Event) -> Result<Order, Failure> {
    let Some(order_event::Event::Created(created)) = decode::<OrderEvent>(event)?.event else {
        return Err(Failure::Event("the first event of an order is not that it was created".to_owned()));
    };
    let OrderCreated { customer_id, items, currency_code, total_minor, payment_method, store_id, external_id } = created;
    Ok(Order {
        id: event.aggregate_id,
        version: event.version,
        customer_id: id("customer_id", &customer_id)?,
        external_id,
        status: Status::Pending,
        reason: String::new(),
        detail: String::new(),
        items: items.into_iter().map(|item| orders::item(item).map_err(|error| Failure::Event(error.to_string()))).collect::<Result<_, _>>()?,
        currency_code,
        total: total_minor,
        payment_method,
        payment_id: Uuid::nil(),
        store_id,
        created_us: event.recorded_us,
        updated_us: event.recorded_us,
    })
}

fn happened(event: &Event) -> Result<Happened, Failure> {
    let transaction = |text: &str| if text.is_empty() { Ok(None) } else { id("transaction_id", text).map(Some) };
    Ok(match decode::<OrderEvent>(event)?.event {
        Some(order_event::Event::Created(_)) => return Err(Failure::Event("an order that is created a second time".to_owned())),
        Some(order_event::Event::StatusUpdated(updated)) => {
            // A status that is newer than we are cannot be counted: the event waits among the dead letters until this service is brought up to date.
            let to = Status::named(&updated.to).ok_or_else(|| Failure::Event(format!("to: there is no status {:?}", updated.to)))?;
            Happened::StatusUpdated { to }
        }
        Some(order_event::Event::PaymentProcessed(paid)) => Happened::Paid { transaction_id: id("transaction_id", &paid.transaction_id)? },
        Some(order_event::Event::PaymentFailed(failed)) => {
            Happened::NotPaid { reason: failed.reason, detail: failed.detail, transaction_id: transaction(&failed.transaction_id)? }
        }
        Some(order_event::Event::Completed(_)) => Happened::Completed,
        Some(order_event::Event::Failed(failed)) => Happened::Failed { reason: failed.reason, detail: failed.detail },
        Some(order_event::Event::Cancelled(cancelled)) => {
            Happened::Cancelled { was_completed: cancelled.was_completed, reason: cancelled.reason, detail: cancelled.detail }
        }
        // An event of a kind that is newer than we are tells nothing here.
        Some(order_event::Event::InventoryReserved(_) | order_event::Event::InventoryReleased(_) | order_event::Event::PaymentRefunded(_)) | None => {
            Happened::Else
        }
    })
}
