//! Places an order: checks what can be checked at the call, stores it with the prices of this moment, and begins its saga.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join;
use lastro_events::changes::Follower;
use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::status::{DEADLINE_EXCEEDED, PERMISSION_MISSING, Problem, UNAUTHENTICATED};
use lastro_money::{Currency, Minor};
use lastro_proto::card::is_card_number;
use lastro_proto::internal::inventory::v1::{CatalogueProduct, GetProductsRequest};
use lastro_proto::transactions::v1::GetAccountRequest;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tonic::Code;
use uuid::Uuid;

use super::{App, go_on, stored};
use crate::Error;
use crate::batches::{Accepted, NewOrder, Refused};
use crate::domain::order::{CardToken, Item, Payment, Placed, total};
use crate::store::orders;

/// What is asked for, as it was said.
pub struct OrderRequest {
    pub external_id: String,
    pub items: Vec<WantedItem>,
    pub payment: Payment,
    pub store_id: Option<String>,
    pub wait: Duration,
}

/// Pieces of a product that somebody wants to buy.
pub struct WantedItem {
    pub product_id: Uuid,
    pub quantity: i64,
}

/// What an order costs at most, in minor units: what a transaction moves at most if the operator says nothing.
const TOTAL_MINOR_MAX: i64 = 1_000_000_000_000_000;
/// What is left of the deadline is needed to answer.
const ANSWER_MARGIN: Duration = Duration::from_millis(100);

/// The order as it stands, once it is durable.
pub async fn create_order(app: &Arc<App>, call: &Call, caller: &Caller, request: OrderRequest) -> Result<Accepted, Error> {
    check(&request)?;
    let hash = request_hash(&request);
    let until = call.deadline.checked_sub(ANSWER_MARGIN).unwrap_or(call.deadline).min(Instant::now() + request.wait);
    // What was placed before is answered without a look at what it would cost now.
    let before = app.batches.placed_before((caller.id, &request.external_id)).await?;
    let (mut accepted, follower) = match before {
        Some(order) if order.placed.request_hash == hash => (Accepted { order, replayed: true, next: None }, None),
        Some(_) => return Err(Error::IdempotencyKeyReused),
        None => place(app, call, caller, request, hash).await?,
    };
    app.wait_until_decided(call, &mut accepted.order, follower, until).await;
    Ok(accepted)
}

/// The order, and who follows it since before it was stored, where it is new.
async fn place(app: &Arc<App>, call: &Call, caller: &Caller, request: OrderRequest, hash: [u8; 32]) -> Result<(Accepted, Option<Follower>), Error> {
    let waits = !request.wait.is_zero();
    let driving = app.driving_place(caller.id).await?;
    let key = request.external_id.clone();
    let placed = match price(app, call, caller, request, hash).await {
        Ok(placed) => placed,
        // A product that is not sold any more, or an account that is gone, does not matter to an order that was placed before.
        Err(error) => {
            return match orders::by_key(app.database.writer(), caller.id, &key).await? {
                Some(order) if order.placed.request_hash == hash => Ok((Accepted { order, replayed: true, next: None }, None)),
                Some(_) => Err(Error::IdempotencyKeyReused),
                None => Err(error),
            };
        }
    };
    let timeout_us = i64::try_from(app.settings.saga_timeout.as_micros()).unwrap_or(i64::MAX);
    let follower = waits.then(|| app.batches.changes().follow(placed.id));
    let accepted = stored(call, app.batches.place(NewOrder { placed, timeout_us })).await.map_err(|refused| match refused {
        Refused::KeyReused => Error::IdempotencyKeyReused,
        other => other.into(),
    })?;
    go_on(app, &accepted, Some(driving));
    let follower = follower.filter(|_| !accepted.replayed);
    Ok((accepted, follower))
}

/// The rules of the request itself.
fn check(request: &OrderRequest) -> Result<(), Problem> {
    for (index, item) in request.items.iter().enumerate() {
        if request.items[..index].iter().any(|before| before.product_id == item.product_id) {
            return Err(Problem::field(format!("items[{index}].product_id"), "must not be there twice: say how many pieces by quantity"));
        }
    }
    if let Payment::Card(Some(CardToken(token))) = &request.payment {
        if is_card_number(token) {
            return Err(Problem::field("payment.card_token", "must be a token of the payment provider, never the number of a card"));
        }
        if token.chars().any(char::is_control) {
            return Err(Problem::field("payment.card_token", "must not contain control characters"));
        }
    }
    Ok(())
}

/// What is wanted, with the prices of this moment, and that the account may pay for it.
async fn price(app: &App, call: &Call, caller: &Caller, request: OrderRequest, request_hash: [u8; 32]) -> Result<Placed, Error> {
    let (products, account_currency) = try_join(products(app, call, &request.items), paying_currency(app, call, caller, &request.payment)).await?;
    let mut items = Vec::with_capacity(request.items.len());
    let mut currency: Option<Currency> = None;
    for (index, wanted) in request.items.iter().enumerate() {
        let field = || format!("items[{index}].product_id");
        let product = products.iter().find(|product| product.id == wanted.product_id);
        let product = product.ok_or_else(|| Error::ProductNotFound { field: field() })?;
        if !product.active {
            return Err(Error::ProductInactive { field: field() });
        }
        if let Some(first) = currency.filter(|first| *first != product.currency) {
            let rule = format!("is priced in {}, and the first product in {first}: an order is in one currency", product.currency);
            return Err(Problem::field(field(), rule).into());
        }
        currency = Some(product.currency);
        let Product { id, price, merchant_account_id, .. } = *product;
        items.push(Item { product_id: id, product_name: product.name.clone(), quantity: wanted.quantity, price, merchant_account_id });
    }
    let currency = currency.ok_or_else(|| Problem::field("items", "must have 1 item at least"))?;
    if let (Payment::Account(account_id), Some(of_account)) = (&request.payment, account_currency) {
        if of_account != currency {
            return Err(Problem::field("payment.account_id", format!("must be an account in {currency}, in which the products are priced")).into());
        }
        if items.iter().any(|item| item.merchant_account_id == *account_id) {
            return Err(Problem::field("payment.account_id", "must not be the account of a merchant who is paid by it").into());
        }
    }
    let total = total(&items, currency).filter(|total| total.minor().get() <= TOTAL_MINOR_MAX);
    let total = total.ok_or_else(|| {
        let most = lastro_money::Amount::new(Minor::new(TOTAL_MINOR_MAX), currency);
        Problem::field("items", format!("must cost at most {most} together"))
    })?;
    Ok(Placed {
        id: clock::new_id(),
        owner_id: caller.id,
        external_id: request.external_id,
        request_hash,
        correlation_id: call.correlation_id.to_string(),
        traceparent: call.trace.to_header().to_str().unwrap_or_default().to_owned(),
        items,
        total,
        payment: request.payment,
        store_id: request.store_id,
        // Set when it is stored.
        create_time_us: 0,
        deadline_us: 0,
    })
}

/// A product of the catalogue.
struct Product {
    id: Uuid,
    name: String,
    currency: Currency,
    price: Minor,
    merchant_account_id: Uuid,
    active: bool,
}

/// What the catalogue says of them at this moment.
async fn products(app: &App, call: &Call, items: &[WantedItem]) -> Result<Vec<Product>, Error> {
    let product_ids = items.iter().map(|item| item.product_id.to_string()).collect();
    let answer = app.catalogue.clone().get_products(call.request(GetProductsRequest { product_ids })).await;
    let found = answer.map_err(|status| of_other("inventory", status))?.into_inner();
    let read = |product: CatalogueProduct| {
        Some(Product {
            id: Uuid::parse_str(&product.product_id).ok()?,
            currency: Currency::from_code(&product.currency_code)?,
            price: Minor::new(product.price_minor),
            merchant_account_id: Uuid::parse_str(&product.merchant_account_id).ok()?,
            name: product.name,
            active: product.active,
        })
    };
    let read: Option<Vec<_>> = found.products.into_iter().map(read).collect();
    Ok(read.ok_or_else(|| lastro_database::Error::corrupt("a product of the catalogue that does not read"))?)
}

/// What another service has said. What is the caller's own is told as it is: its token, or its deadline.
fn of_other(service: &'static str, status: tonic::Status) -> Error {
    let of_caller = match status.code() {
        Code::Unauthenticated => &UNAUTHENTICATED,
        Code::PermissionDenied => &PERMISSION_MISSING,
        Code::DeadlineExceeded => &DEADLINE_EXCEEDED,
        _ => return Error::Away { service, status: Box::new(status) },
    };
    Problem::new(of_caller, status.message()).into()
}

/// Whether the account is the caller's, and its currency: transactions is asked with the caller's own token, which it verifies itself.
async fn paying_currency(app: &App, call: &Call, caller: &Caller, payment: &Payment) -> Result<Option<Currency>, Error> {
    let Payment::Account(account_id) = payment else { return Ok(None) };
    let answer = app.accounts.clone().get_account(call.request(GetAccountRequest { id: account_id.to_string() })).await;
    let account = match answer {
        Ok(account) => account.into_inner(),
        Err(status) if status.code() == Code::NotFound => return Err(Error::AccountNotFound),
        Err(status) => return Err(of_other("transactions", status)),
    };
    // An administrator sees everybody's accounts, and pays from none but its own.
    if Uuid::parse_str(&account.owner_id).ok() != Some(caller.id) {
        return Err(Error::AccountNotFound);
    }
    let currency = Currency::from_code(&account.currency_code);
    Ok(Some(currency.ok_or_else(|| lastro_database::Error::corrupt("an account in no currency"))?))
}

/// By which the same request is told from another one with its key. Neither the order of the items counts, nor how long is waited.
fn request_hash(request: &OrderRequest) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"lastro order 1\0");
    let mut items: Vec<(Uuid, i64)> = request.items.iter().map(|item| (item.product_id, item.quantity)).collect();
    items.sort_unstable();
    hash.update((items.len() as u64).to_be_bytes());
    for (product_id, quantity) in items {
        hash.update(product_id);
        hash.update(quantity.to_be_bytes());
    }
    match &request.payment {
        Payment::Account(account_id) => {
            hash.update(b"account");
            hash.update(account_id);
        }
        Payment::Card(token) => {
            hash.update(b"card");
            hash.update(Sha256::digest(token.as_ref().map_or("", |token| token.0.as_str())));
        }
    }
    hash.update(request.store_id.as_deref().unwrap_or_default());
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(items: &[(u128, i64)], payment: Payment) -> OrderRequest {
        let item = |(product_id, quantity): &(u128, i64)| WantedItem { product_id: Uuid::from_u128(*product_id), quantity: *quantity };
        OrderRequest { external_id: "k".to_owned(), items: items.iter().map(item).collect(), payment, store_id: None, wait: Duration::ZERO }
    }

    #[test]
    fn what_is_asked_for_makes_the_hash_and_nothing_else() {
        let account = || Payment::Account(Uuid::from_u128(7));
        let card = |token: &str| Payment::Card(Some(CardToken(token.to_owned())));
        let one = request_hash(&request(&[(1, 2), (2, 1)], account()));
        assert_eq!(one, request_hash(&OrderRequest { wait: Duration::from_secs(9), ..request(&[(2, 1), (1, 2)], account()) }));
        for other in [
            request(&[(1, 2)], account()),
            request(&[(1, 1), (2, 2)], account()),
            request(&[(1, 2), (2, 1)], Payment::Account(Uuid::from_u128(8))),
            request(&[(1, 2), (2, 1)], card("tok")),
            OrderRequest { store_id: Some("rio".to_owned()), ..request(&[(1, 2), (2, 1)], account()) },
        ] {
            assert_ne!(one, request_hash(&other));
        }
        assert_ne!(request_hash(&request(&[(1, 1)], card("a"))), request_hash(&request(&[(1, 1)], card("b"))));
    }

    #[test]
    fn a_product_is_there_once_and_a_card_has_no_number() {
        let fields = |request: OrderRequest| check(&request).map_err(|problem| problem.fields[0].field.clone());
        assert_eq!(fields(request(&[(1, 1), (2, 1)], Payment::Account(Uuid::nil()))), Ok(()));
        assert_eq!(fields(request(&[(1, 1), (2, 1), (1, 5)], Payment::Account(Uuid::nil()))), Err("items[2].product_id".to_owned()));
        assert_eq!(
            fields(request(&[(1, 1)], Payment::Card(Some(CardToken("4111 1111 1111 1111".to_owned()))))),
            Err("payment.card_token".to_owned())
        );
    }
}
