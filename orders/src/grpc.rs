//! The services of orders on the wire: unwrap, call one use case, wrap.

mod orders;
mod sagas;

use std::sync::Arc;

use lastro_proto::orders::v1::orders_service_server::OrdersServiceServer;
use lastro_proto::orders::v1::sagas_service_server::SagasServiceServer;
use tonic::service::Routes;

use crate::app::App;

/// Nothing of orders is for other services alone.
pub fn routes(app: &Arc<App>) -> Routes {
    Routes::new(OrdersServiceServer::new(orders::Orders(app.clone()))).add_service(SagasServiceServer::new(sagas::Sagas(app.clone())))
}
