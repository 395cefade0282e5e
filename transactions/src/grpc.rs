//! The services of transactions on the wire: unwrap, call one use case, wrap.

mod accounts;
mod fresh;
mod operations;
mod order_payments;
mod owners;
mod payments;
mod transaction;
mod transactions;

use std::sync::Arc;

use lastro_money::{Currency, Minor};
use lastro_proto::internal::transactions::v1::order_payments_service_server::OrderPaymentsServiceServer;
use lastro_proto::internal::transactions::v1::owners_service_server::OwnersServiceServer;
use lastro_proto::transactions::v1::accounts_service_server::AccountsServiceServer;
use lastro_proto::transactions::v1::operations_service_server::OperationsServiceServer;
use lastro_proto::transactions::v1::payments_service_server::PaymentsServiceServer;
use lastro_proto::transactions::v1::transactions_service_server::TransactionsServiceServer;
use lastro_proto::r#type::v1::Money;
use tonic::service::Routes;

use crate::app::App;

pub fn public_routes(app: &Arc<App>) -> Routes {
    Routes::new(AccountsServiceServer::new(accounts::Accounts(app.clone())))
        .add_service(TransactionsServiceServer::new(transactions::Transactions(app.clone())))
        .add_service(PaymentsServiceServer::new(payments::Payments(app.clone())))
        .add_service(OperationsServiceServer::new(operations::Operations(app.clone())))
}

/// As [`public_routes`], with what only services may call.
pub fn all_routes(app: &Arc<App>) -> Routes {
    public_routes(app)
        .add_service(OwnersServiceServer::new(owners::Owners(app.clone())))
        .add_service(OrderPaymentsServiceServer::new(order_payments::OrderPayments(app.clone())))
}

fn money(minor: Minor, currency: Currency) -> Option<Money> {
    Some(Money { currency_code: currency.code().to_owned(), amount: lastro_money::format(minor, currency) })
}
