//! The services of inventory on the wire: unwrap, call one use case, wrap.

mod catalogue;
mod inventory;
mod products;
mod reservations;

use std::sync::Arc;

use lastro_proto::internal::inventory::v1::catalogue_service_server::CatalogueServiceServer;
use lastro_proto::internal::inventory::v1::reservations_service_server::ReservationsServiceServer;
use lastro_proto::inventory::v1::inventory_service_server::InventoryServiceServer;
use lastro_proto::inventory::v1::products_service_server::ProductsServiceServer;
use tonic::service::Routes;

use crate::app::App;

pub fn public_routes(app: &Arc<App>) -> Routes {
    Routes::new(ProductsServiceServer::new(products::Products(app.clone())))
        .add_service(InventoryServiceServer::new(inventory::Inventory(app.clone())))
}

/// As [`public_routes`], with what only services may call.
pub fn all_routes(app: &Arc<App>) -> Routes {
    public_routes(app)
        .add_service(CatalogueServiceServer::new(catalogue::Catalogue(app.clone())))
        .add_service(ReservationsServiceServer::new(reservations::Reservations(app.clone())))
}
