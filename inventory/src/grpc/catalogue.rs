//! `lastro.internal.inventory.v1.CatalogueService`.

use std::sync::Arc;

use lastro_mesh::status::Problem;
use lastro_proto::internal::inventory::v1::catalogue_service_server::CatalogueService;
use lastro_proto::internal::inventory::v1::{CatalogueProduct, GetProductsRequest, GetProductsResponse};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::app::App;
use crate::app::get_products::get_products;
use crate::domain::product::Product;

pub struct Catalogue(pub Arc<App>);

#[tonic::async_trait]
impl CatalogueService for Catalogue {
    async fn get_products(&self, request: Request<GetProductsRequest>) -> Result<Response<GetProductsResponse>, Status> {
        let id = |text: &String| Uuid::parse_str(text).map_err(|_| Problem::field("product_ids", "must be UUIDs"));
        let ids: Vec<Uuid> = request.get_ref().product_ids.iter().map(id).collect::<Result<_, _>>()?;
        let products = get_products(&self.0, &ids).await?.into_iter().map(wire).collect();
        Ok(Response::new(GetProductsResponse { products }))
    }
}

fn wire(product: Product) -> CatalogueProduct {
    CatalogueProduct {
        product_id: product.id.to_string(),
        name: product.name,
        currency_code: product.price.currency().code().to_owned(),
        price_minor: product.price.minor().get(),
        merchant_account_id: product.merchant_account_id.to_string(),
        active: product.active,
    }
}
