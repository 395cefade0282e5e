//! The use cases of orders: one file each.

pub mod cancel_order;
pub mod create_order;
pub mod get_order;
pub mod list_order_events;
pub mod list_sagas;
pub mod resume_saga;
pub mod update_order_status;

use std::sync::Arc;
use std::time::Duration;

use lastro_database::Database;
use lastro_database::batch_loader::BatchLoader;
use lastro_events::bus::Bus;
use lastro_events::changes::{Change, Follower, Versions};
use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::outbound::Outbound;
use lastro_mesh::status::Problem;
use lastro_mesh::turns::Turns;
use lastro_proto::internal::inventory::v1::catalogue_service_client::CatalogueServiceClient;
use lastro_proto::internal::inventory::v1::reservations_service_client::ReservationsServiceClient;
use lastro_proto::internal::transactions::v1::order_payments_service_client::OrderPaymentsServiceClient;
use lastro_proto::permissions::Permission;
use lastro_proto::transactions::v1::accounts_service_client::AccountsServiceClient;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::batches::{Accepted, Asked, Batches, NewChange, Refused};
use crate::saga::drive;
use crate::settings::Settings;
use crate::store::orders::{self, Order};

/// Sagas that this replica goes on with at once. What comes then is refused, so that nobody waits for what cannot be begun.
const DRIVING_MAX: usize = 4_096;
/// Of one owner, so that others have places: what it places beyond that waits for its turn, and is refused after a second.
const DRIVING_OF_OWNER_MAX: usize = 1_024;
const DRIVING_WAIT: Duration = Duration::from_secs(1);
/// Calls that wait for an outcome at once. Each takes some KB for up to half a minute.
const WAITING_MAX: usize = 10_000;
/// A change that could not be stored within this is not waited for any longer: its caller learns in time that the database is busy.
const STORE_MAX: Duration = Duration::from_secs(2);

/// What every use case works with.
pub struct App {
    pub(crate) database: Database,
    pub(crate) batches: Batches,
    pub(crate) settings: Settings,
    pub(crate) catalogue: CatalogueServiceClient<Outbound>,
    pub(crate) reservations: ReservationsServiceClient<Outbound>,
    pub(crate) payments: OrderPaymentsServiceClient<Outbound>,
    pub(crate) accounts: AccountsServiceClient<Outbound>,
    /// Places of sagas that this replica goes on with.
    pub(crate) driving: Arc<Semaphore>,
    /// Those of each owner.
    driving_of_owner: Turns<Uuid>,
    /// Places of calls that wait for an outcome.
    waiting: Semaphore,
    /// Reads of single orders, which share statements.
    order_loader: BatchLoader<Order>,
}

impl App {
    /// On a migrated database.
    pub fn new(database: Database, bus: Bus, inventory: Outbound, transactions: Outbound, settings: Settings) -> Self {
        Self {
            batches: Batches::new(database.clone(), bus, settings.lease),
            catalogue: CatalogueServiceClient::new(inventory.clone()),
            reservations: ReservationsServiceClient::new(inventory),
            payments: OrderPaymentsServiceClient::new(transactions.clone()),
            accounts: AccountsServiceClient::new(transactions),
            driving: Arc::new(Semaphore::new(DRIVING_MAX)),
            driving_of_owner: Turns::new(DRIVING_OF_OWNER_MAX),
            waiting: Semaphore::new(WAITING_MAX),
            order_loader: orders::loader(&database),
            database,
            settings,
        }
    }

    /// An order that the caller may see: its own, or any for whoever may see all.
    async fn order_of(&self, caller: &Caller, id: &str) -> Result<Order, crate::Error> {
        let not_found = || crate::Error::OrderNotFound;
        let id = Uuid::parse_str(id).map_err(|_| not_found())?;
        let order = self.order_loader.load(id).await?.ok_or_else(not_found)?;
        let may_see = order.placed.owner_id == caller.id || caller.may(Permission::ReadAll);
        if may_see { Ok(order) } else { Err(not_found()) }
    }

    /// A place for a saga that is about to begin, or to be taken over.
    async fn driving_place(&self, owner_id: Uuid) -> Result<DrivingPlace, Problem> {
        let crowded = || Problem::crowded("too many orders are under way; ask again with the same key");
        let of_owner = self.driving_of_owner.take(owner_id, Instant::now() + DRIVING_WAIT).await;
        let of_owner = of_owner
            .ok_or_else(|| Problem::crowded("too many of your orders are under way; place fewer at once, and this one again with the same key"))?;
        let of_all = self.driving.clone().try_acquire_owned().map_err(|_| crowded())?;
        Ok(DrivingPlace { _of_owner: of_owner, _of_all: of_all })
    }

    /// Waits until an order is decided, or the time is over; the order as it stands then. A call that waits is no load, and gives its slot back; so many may
    /// wait, and one beyond does not.
    /// `follower` follows it since before it was stored, if it is new.
    async fn wait_until_decided(&self, call: &Call, order: &mut Order, follower: Option<Follower>, until: Instant) {
        if order.progress.status.is_decided() || until <= Instant::now() {
            return;
        }
        let Ok(_waiting) = self.waiting.try_acquire() else { return };
        call.slot.release();
        // Registered before it is stored, or read, so that no change in between is missed.
        let mut is_read = follower.is_some();
        let mut follower = follower.unwrap_or_else(|| self.batches.changes().follow(order.placed.id));
        loop {
            if std::mem::take(&mut is_read) {
                let version = order.progress.head.map_or(0, |head| head.version);
                let _ = timeout_at(until, follower.changed(version)).await;
            }
            // It is durable, and that is what counts: where it cannot be read now, the order as it stood is still an answer.
            if let Ok(Some(now)) = self.order_loader.load(order.placed.id).await {
                *order = now;
            }
            if order.progress.status.is_decided() || Instant::now() >= until {
                return;
            }
            let version = order.progress.head.map_or(0, |head| head.version);
            let _ = timeout_at(until, follower.changed(version)).await;
        }
    }
}

/// The places of a saga that this replica goes on with.
struct DrivingPlace {
    _of_owner: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

/// Of orders.
impl Versions for App {
    async fn versions(&self, ids: &[Uuid]) -> Result<Vec<Change>, lastro_database::Error> {
        orders::versions(self.database.reader(), ids).await
    }
}

/// Waits for a batch. Its work is its own: a caller that leaves does not cancel a commit in flight.
async fn stored(call: &Call, work: impl Future<Output = Result<Accepted, Refused>>) -> Result<Accepted, Refused> {
    let by = call.deadline.min(Instant::now() + STORE_MAX);
    timeout_at(by, work).await.unwrap_or(Err(Refused::Unavailable))
}

/// Changes an order, and goes on with its saga where that is the caller's now.
async fn change(app: &Arc<App>, call: &Call, order: &Order, asked: Asked) -> Result<Accepted, crate::Error> {
    // Who says how far the pieces are on their way does not go on with a saga.
    let drives = !matches!(asked, Asked::SetStatus(_));
    let place = if drives { Some(app.driving_place(order.placed.owner_id).await?) } else { None };
    let (placed, correlation_id) = (order.placed.clone(), call.correlation_id.to_string());
    let change = NewChange { placed, id: clock::new_id(), asked, jitter_permille: 500, correlation_id };
    let accepted = stored(call, app.batches.change(change)).await?;
    go_on(app, &accepted, place);
    Ok(accepted)
}

/// Goes on with a saga that was just stored, apart from whoever asked for it.
fn go_on(app: &Arc<App>, accepted: &Accepted, place: Option<DrivingPlace>) {
    let Some(next) = accepted.next else { return };
    let (app, order) = (app.clone(), accepted.order.clone());
    tokio::spawn(async move {
        drive(&app, order, next).await;
        drop(place);
    });
}
