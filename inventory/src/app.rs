//! The use cases of inventory: one file each.

pub mod adjust_stock;
pub mod create_product;
pub mod get_product;
pub mod get_products;
pub mod get_reservation;
pub mod get_stock;
pub mod list_products;
pub mod list_stock_events;
pub mod reserve_stock;
pub mod resolve_reservation;
pub mod saga_reservations;
pub mod update_product;

use std::sync::Arc;
use std::time::Duration;

use lastro_database::Database;
use lastro_database::batch_loader::BatchLoader;
use lastro_events::bus::Bus;
use lastro_mesh::call::Call;
use lastro_mesh::outbound::Outbound;
use lastro_mesh::status::Problem;
use lastro_mesh::turns::Turns;
use lastro_money::{Amount, Currency, Minor};
use lastro_proto::internal::transactions::v1::ConfirmAccountRequest;
use lastro_proto::internal::transactions::v1::owners_service_client::OwnersServiceClient;
use lastro_proto::r#type::v1::Money;
use lastro_service::ReadTurns;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::Error;
use crate::batches::{Batches, Refused};
use crate::cache::{StockCache, Stocks};
use crate::domain::product::Product;
use crate::store::reservations::Reservation;
use crate::store::{products, reservations, stock};

/// Items of orders of one buyer that are being reserved at once; what comes then waits for its turn. Each locks its product in every store.
pub(crate) const ITEMS_PER_BUYER: u32 = 512;
/// A change that could not be stored within this is not waited for any longer: its caller learns in time that the database is busy.
const STORE_MAX: Duration = Duration::from_secs(2);

/// What every use case works with.
pub struct App {
    pub(crate) database: Database,
    pub(crate) bus: Bus,
    pub(crate) transactions: OwnersServiceClient<Outbound>,
    pub(crate) cache: Arc<StockCache>,
    pub(crate) batches: Batches,
    /// Reads of single products, of their stores and of single reservations, which share statements.
    product_loader: BatchLoader<Product>,
    stores_loader: BatchLoader<Vec<String>>,
    reservation_loader: BatchLoader<Reservation>,
    /// Items that each buyer's sagas reserve at once.
    pub(crate) reserving: Turns<Uuid>,
    /// Reads of one product that no cache answers: of the past, and of events. Many who ask for one product leave those fast who ask for others.
    pub(crate) reads: ReadTurns<Uuid>,
}

impl App {
    /// On a migrated database.
    pub fn new(database: Database, bus: Bus, transactions: Outbound) -> Self {
        let cache = StockCache::new(Stocks(database.clone()), &bus);
        Self {
            batches: Batches::new(database.clone(), bus.clone(), cache.clone()),
            transactions: OwnersServiceClient::new(transactions),
            product_loader: products::loader(&database),
            stores_loader: stock::stores_loader(&database),
            reservation_loader: reservations::loader(&database),
            reserving: Turns::new(ITEMS_PER_BUYER as usize),
            reads: ReadTurns::new(&database, "reads of this product"),
            cache,
            database,
            bus,
        }
    }
}

/// Waits for a batch. Its work is its own: a caller that leaves does not cancel a commit in flight.
async fn stored<T>(call: &Call, work: impl Future<Output = Result<T, Refused>>) -> Result<T, Refused> {
    let by = call.deadline.min(Instant::now() + STORE_MAX);
    timeout_at(by, work).await.unwrap_or(Err(Refused::Unavailable))
}

/// A price: more than zero, and at most 10^15 minor units, so that an order of many pieces is within 64 bits.
fn read_price(money: Option<&Money>) -> Result<Amount, Problem> {
    const PRICE_MAX: i64 = 1_000_000_000_000_000;
    let money = money.ok_or_else(|| Problem::field("price", "is required"))?;
    let currency = Currency::from_code(&money.currency_code)
        .ok_or_else(|| Problem::field("price.currency_code", format!("{:?} is no ISO 4217 currency", money.currency_code)))?;
    let minor = lastro_money::parse(&money.amount, currency).map_err(|error| Problem::field("price.amount", error.to_string()))?;
    if minor <= Minor::ZERO {
        return Err(Problem::field("price.amount", "must be more than zero"));
    }
    if minor.get() > PRICE_MAX {
        return Err(Problem::field("price.amount", format!("must be at most {}", Amount::new(Minor::new(PRICE_MAX), currency))));
    }
    Ok(Amount::new(minor, currency))
}

/// That the merchant's account exists, and takes the price's currency: transactions knows.
async fn confirm_merchant(app: &App, call: &Call, account_id: Uuid, currency: Currency) -> Result<(), Error> {
    let request = ConfirmAccountRequest { account_id: account_id.to_string(), currency_code: currency.code().to_owned() };
    let confirmed = app.transactions.clone().confirm_account(call.request(request)).await.map_err(|status| Error::Transactions(Box::new(status)))?;
    let confirmed = confirmed.into_inner();
    if !confirmed.exists || confirmed.is_closed {
        return Err(Error::AccountNotFound);
    }
    if !confirmed.is_in_currency {
        return Err(Problem::field("price.currency_code", format!("{currency} is not the currency of the merchant's account")).into());
    }
    Ok(())
}

/// A UUID in a message, which validation has checked.
fn id(text: &str, field: &str) -> Result<Uuid, Problem> {
    Uuid::parse_str(text).map_err(|_| Problem::field(field, "must be a UUID"))
}
